"""Checks of messages before they are accepted, with hostile or careless senders; batches equal single messages."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.saidkit import Said, both, messages, refused, with_ids
from zmqbus import errors
from zmqbus.broker import admission, events, mailbox
from zmqbus.broker.body_checks import no_spools
from zmqbus.journal.large_record import escape_body
from zmqbus.testing import SimNet, session_id_of
from zmqbus.testing.simnet import Death
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Format, Scope, State


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def test_an_answer_that_somebody_awaits_cannot_be_awaited_by_another(net):
    """Message ids are seen by receivers; knowing one is no right to its answer, nor to keep it from who asked."""
    asker, thief, bob = net.guest("asker"), net.guest("thief"), net.session("bob")
    msg_id = asker.ask("bob", b"question: ready?")
    net.settle()
    thief.raw(codec.encode([verbs.Await(msg_id)]))
    net.settle()
    bob.take_all()
    answer = bob.send("asker", b"answer: yes", reply_to=msg_id)
    net.settle()
    assert (asker.bodies, thief.bodies) == ([b"answer: yes"], [])
    asker.take_all()
    net.settle()
    receipt = bob.answers[answer]
    assert isinstance(receipt, verbs.Receipt) and receipt.state == State.DELIVERED


@pytest.mark.parametrize("reply_to", ["", "short", "UPPERCASE0", "abcdefgh\n", "x" * 13, "é" * 8])
def test_what_a_message_answers_is_a_message_id(net, reply_to):
    """It stands in the header of the receiver's line."""
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello", reply_to=reply_to)
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.ProtocolError | errors.InvalidPayload)
    assert bob.bodies == []


def test_answers_to_a_helper_that_takes_none_count_against_a_limit(net, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 5)
    alice, bob = net.session("alice"), net.session("bob")
    helper = net.helper(alice)
    msg_id = helper.ask("bob", b"question: ready?")
    net.settle()
    bob.take_all()
    sent = []
    for _ in range(10):
        sent.append(bob.send("alice", b"answer", reply_to=msg_id))
        net.settle()
    net.advance(2)
    refused = [one for one in sent if isinstance(bob.answers[one], errors.RateLimited)]
    assert refused == sent[5:]


# --- SENDS: in one piece or one by one, the same is accepted, refused, written, delivered and told


GOOD = messages(b"1", "zwei ü".encode(), b'3\n"\\', b"")


@pytest.mark.parametrize("fmt", Format)
def test_what_is_alike_is_passed_on(fmt):
    def play(said: Said) -> None:
        said.say("bob", GOOD, fmt)
        assert said.bob.bodies == [body for _, body in GOOD] and said.told == []
        said.bob.take(2)
        said.net.settle()
        said.bob.take_all()

    said = both(play)
    assert said.told == [(msg_id, "DELIVERED") for msg_id, _ in GOOD]
    assert said.net.broker.admission.last_id == "message0003"


def test_staged_in_one_piece_it_is_the_last_that_counts_as_the_last():
    """A session that connects between decision and journal entered after the whole batch."""
    said = Said("run")
    said.put("bob", GOOD)
    said.net._do(said.net.broker.handle(said.net.clock.now, events.Received(said.alice.route, [])))
    (frames,) = said.alice.up
    said.alice.up.clear()
    decoded = codec.Decoder(from_broker=False).decode(frames)
    said.net._do(said.net.broker.handle(said.net.clock.now, events.Received(said.alice.route, decoded)))
    assert said.net.broker.admission.last_id == "message0003"
    assert repr(said.net.broker.admission) == "<Admission: 1 pending, 0 accepted>"


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("alice", "unknown_peer"),
        (session_id_of("alice"), "unknown_peer"),
        ("nobody", "unknown_peer"),
        ("", "unknown_peer"),
    ],
)
def test_a_target_that_none_may_have_refuses_each(target, code):
    said = both(lambda said: said.say(target, GOOD))
    assert refused(said, *dict(GOOD)) == [code] * 4


def test_a_target_that_several_answer_to_refuses_each():
    def play(said: Said) -> None:
        said.net.session("bobby")
        said.net.session("bobcat")
        said.say("bobb", GOOD)  # one
        said.say("bobc", messages(b"x", b"y", first=10))
        said.say("bo", messages(b"x", b"y", first=20))

    said = both(play)
    assert refused(said, "message0020", "message0021") == ["ambiguous"] * 2
    assert said.net.broker.admission.accepted == 6


@pytest.mark.parametrize("bad", ["", "short", "UPPERCASE0", "abcdefg\n", "x" * 13, "é" * 8])
def test_one_that_has_no_id_of_its_own_is_refused_and_the_others_go_on(bad):
    said = both(lambda said: said.say("bob", with_ids("message0000", bad, "message0002")))
    assert refused(said, bad) == ["protocol"]
    assert said.bob.bodies == [b"0", b"2"]


def test_one_that_is_there_twice_is_one_message():
    said = both(lambda said: said.say("bob", with_ids("message0000", "message0001", "message0000", "message0002")))
    assert said.bob.bodies == [b"0", b"1", b"3"]


@pytest.mark.parametrize("bad", [b"\xff", b"ok \xc3", "é".encode()[:1], "\ud800".encode("utf-8", "surrogatepass")])
def test_a_text_that_is_none_is_refused_and_the_others_go_on(bad):
    said = both(lambda said: said.say("bob", messages(b"1", "é".encode(), bad, b"4")))
    assert refused(said, "message0002") == ["invalid_payload"]
    assert said.bob.bodies == [b"1", "é".encode(), b"4"]


def test_texts_that_are_one_only_together_are_none():
    first, second = "é".encode()[:1], "é".encode()[1:]
    said = both(lambda said: said.say("bob", messages(b"1", first, second)))
    assert refused(said, "message0001", "message0002") == ["invalid_payload"] * 2


@pytest.mark.parametrize("fmt", [3, -1, 2**40])
def test_a_format_that_there_is_not_refuses_each(fmt):
    said = both(lambda said: said.say("bob", GOOD, fmt))
    assert refused(said, *dict(GOOD)) == ["protocol"] * 4


@pytest.mark.parametrize("state", ["staged", "open", "settled"])
def test_an_id_of_another_session_is_refused_and_the_others_go_on(state):
    """Whether that message is on its way to the journal, under way, or over; and as often as it is tried."""

    def play(said: Said) -> None:
        carol = said.net.session("carol")
        said.net.clients.remove(carol)
        said.net.clients.insert(0, carol)  # she is heard first
        said.put("bob", messages(b"carol's", b"hers too", first=1), by=carol)
        if state != "staged":
            said.net.settle()
        if state == "settled":
            said.bob.take_all()
            said.net.settle()
        said.say("bob", messages(b"1", b"2", b"3", b"4"))

    said = both(play)
    assert refused(said, "message0001", "message0002") == ["protocol"] * 2
    assert [message.body for message in said.bob.history] == [b"carol's", b"hers too", b"1", b"4"]


@pytest.mark.parametrize("later", [1, 2, 3])
def test_said_again_before_it_is_in_the_journal_it_is_one_and_answered_where_it_was_said_last(later):
    def play(said: Said) -> None:
        helper = said.net.helper(said.alice)
        said.listen_in(helper)
        said.put("bob", messages(b"1", b"2", b"3"))
        helper.raw(
            codec.encode([verbs.Send.one(f"message{n:04d}", 0, "bob", 0, None, True, b"x") for n in range(later)])
        )
        said.net.settle()
        assert said.bob.bodies == [b"1", b"2", b"3"]
        said.bob.take_all()
        said.net.settle()

    said = Said("run")
    play(said)
    assert sorted(said.told) == [(f"message{number:04d}", "DELIVERED") for number in range(3)]
    assert said.net.broker._out.counts.accepted_bytes == 3


def test_said_again_while_it_is_under_way_the_receipts_go_to_the_newer_connection():
    said = Said("run")
    said.say("bob", messages(b"1", b"2", b"3"))
    said.heard.clear()
    helper = said.net.helper(said.alice)
    again = Said("run")  # what that one hears
    again.listen_in(helper)
    helper.raw(codec.encode([verbs.Send.one("message0001", 0, "bob", 0, None, True, b"2")]))
    said.net.settle()
    said.bob.take_all()
    said.net.settle()
    assert said.bob.history[-1].body == b"3" and len(said.bob.history) == 3
    receipts = [one for one in again.heard if isinstance(one, verbs.Receipt)]
    assert [one.msg_ids for one in receipts] == [("message0000", "message0001", "message0002")]
    assert said.told == []


def test_said_again_when_it_is_apart_and_its_fate_is_open_each_is_answered_there():
    """One before it has waited for a second: all that is under way was looked at, and the run is apart."""
    net = SimNet()
    alice, bob = net.session("alice"), net.session("bob")
    early = alice.send("bob", b"0")
    net.settle()
    net.advance(0.8, step_s=0.1)
    sent = alice.send_all("bob", [b"1", b"2", b"3"])
    net.settle()
    net.advance(0.4, step_s=0.1)
    told = alice.answers[early]
    assert isinstance(told, verbs.Receipt) and told.state == State.BUSY
    assert not any(msg_id in alice.answers for msg_id in sent)
    alice.disconnect()
    alice.connect()
    net.settle()
    bob.take_all()
    net.settle()
    for msg_id in sent:
        told = alice.answers[msg_id]
        assert isinstance(told, verbs.Receipt) and told.state == State.DELIVERED
    assert [message.body for message in bob.history] == [b"0", b"1", b"2", b"3"]


def test_a_run_of_which_one_is_settled_is_answered_for_that_and_accepted_for_the_rest():
    def play(said: Said) -> None:
        said.say("bob", messages(b"1", b"2"))
        said.bob.take_all()
        said.net.settle()
        said.say("bob", messages(b"1", b"2", b"3"))

    said = both(play)
    assert [message.body for message in said.bob.history] == [b"1", b"2", b"3"]
    assert said.told == [("message0000", "DELIVERED"), ("message0001", "DELIVERED")] * 2


@pytest.mark.parametrize("credit", [2, 1000])
def test_a_mailbox_takes_what_it_has_room_for_and_the_rest_is_refused(monkeypatch, credit):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 5)
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", credit)

    def play(said: Said) -> None:
        said.say("bob", messages(b"1", b"2", b"3"))
        said.put("bob", messages(b"4", b"5", b"6", first=3))  # in one wake: the first counts what it keeps
        said.put("bob", messages(b"7", b"8", first=6))
        said.net.settle()
        while said.bob.take_all():
            said.net.settle()
        said.say("bob", messages(b"8", b"9", first=7))  # what was refused stays so

    said = both(play)
    assert [message.body for message in said.bob.history] == [b"1", b"2", b"3", b"4", b"5", b"9"]
    assert refused(said, "message0005", "message0006", "message0007") == ["rate_limited"] * 3


def test_a_mailbox_that_has_no_room_for_all_of_its_bytes_takes_those_that_fit(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_BYTES", 10)
    said = both(lambda said: said.say("bob", messages(b"1234", b"12345", b"12", b"1")))
    assert said.bob.bodies == [b"1234", b"12345", b"1"]
    assert refused(said, "message0002") == ["rate_limited"]


def test_a_mailbox_that_is_away_stores_each(monkeypatch):
    def play(said: Said) -> None:
        said.bob.bye()
        said.net.settle()
        said.say("bob", GOOD)

    said = both(play)
    assert said.told == [(msg_id, "AWAY") for msg_id, _ in GOOD]
    assert said.net.store.total() == 4


def test_what_the_journal_does_not_take_is_refused_each_and_leaves_nothing():
    def play(said: Said) -> None:
        said.net.journal_fails = "no space"
        said.say("bob", GOOD)
        said.net.journal_fails = None
        said.say("bob", GOOD)  # a refusal is final
        said.say("bob", messages(b"later", first=9))

    said = both(play)
    assert [code for msg_id, code in said.told if msg_id in dict(GOOD)] == ["broker_unavailable: no space"] * 8
    assert said.bob.bodies == [b"later"] and len(said.net.journal) == 1


def several(count: int, **changes: Any) -> verbs.Send:
    ids = tuple(f"message{n:04d}" for n in range(count))
    return verbs.Send(0, "bob", 0, None, False, None, None, ids, (b"",) * count)._replace(**changes)


@pytest.mark.parametrize(
    ("send", "why"),
    [
        (several(verbs.MAX_ENVELOPE_MESSAGES + 1), "protocol: 257 messages in one SEND; the limit is 256"),
        (several(2, again=True), "protocol: a SEND with reply_to, again or file holds one message"),
        (several(2, reply_to="message0000"), "protocol: a SEND with reply_to, again or file holds one message"),
        (several(2, file="0" * 32), "protocol: a SEND with reply_to, again or file holds one message"),
    ],
    ids=("too many", "again", "reply_to", "file"),
)
def test_malformed_batch_is_refused_entirely(send, why):
    said = Said("run")
    said.alice.raw(codec.encode([send, verbs.Send.one("message9999", 0, "bob", 0, None, False, b"next")]))
    said.net.settle()
    assert said.bob.bodies == [b"next"]
    assert said.told == [*((msg_id, why) for msg_id in send.msg_ids)]


def test_the_largest_batch_is_taken():
    long = messages(*[b"%d" % number for number in range(verbs.MAX_ENVELOPE_MESSAGES)])
    said = both(lambda said: said.say("bob", long))
    assert said.bob.bodies == [body for _, body in long]


def test_only_who_may_send_may_send_runs():
    said = Said("run")
    observer = said.net.observer()
    said.listen_in(observer)
    said.put("bob", GOOD, by=observer)
    said.net.settle()
    assert said.bob.bodies == []
    assert [(ref, why.partition(":")[0]) for ref, why in said.told] == [(ref, "protocol") for ref, _ in GOOD]
    for number, speaker in enumerate((said.net.helper(said.alice), said.net.guest("script"))):
        said.bob.take_all()
        said.put("bob", messages(b"1", b"2", first=10 * number), by=speaker)
        said.net.settle()
        assert said.bob.bodies == [b"1", b"2"]


BODIES = st.sampled_from((b"", b"x", "ü".encode(), b"\n", b"\xff", bytes(300)))
NUMBERS = st.integers(0, 14)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.lists(st.tuples(NUMBERS, BODIES), min_size=1, max_size=6)),
        st.tuples(st.just("fresh"), st.lists(BODIES, min_size=1, max_size=6)),
        st.tuples(st.sampled_from(("take", "drop", "wait", "fail", "broadcast", "bye")), st.integers(1, 4)),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_is_said_in_runs_is_what_is_said_one_by_one(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "CREDIT_MESSAGES", 4)
        patch.setattr(mailbox, "CREDIT_BYTES", 1200)
        patch.setattr(mailbox, "MAX_MESSAGES", 9)

        def play(said: Said) -> None:
            fresh = 100
            for number, (step, what) in enumerate(steps):
                if step == "say":
                    said.say("bob", [(f"message{one:04d}", body) for one, body in what])
                elif step == "fresh":
                    said.say("bob", messages(*what, first=fresh))
                    fresh += len(what)
                elif step == "broadcast":
                    said.alice.raw(codec.encode([verbs.Send.one(f"toall{number:05d}", 1, "", 0, None, False, b"all")]))
                else:
                    said.befall(step, what)
                said.net.settle()

        both(play)


# --- bodies in files

LARGE = b'say "x"\n' * 10_000


class Spooling:
    """A sender whose bodies are put down, and what it says by hand."""

    def __init__(self, net: SimNet) -> None:
        self.net = net
        self.alice, self.bob = net.session("alice"), net.session("bob")

    def put_down(self, msg_id: str = "handmade0000", piece: bytes | None = None, **changes: Any) -> None:
        """Sends a piece of its own making."""
        piece = escape_body("text", LARGE) if piece is None else piece
        file = self.net.new_file()
        self.net.spool[file, 0] = piece
        numbers = {"size_bytes": len(LARGE), "offset": 0, "length": len(piece), "crc": zlib.crc32(piece)}
        numbers |= {name: changes.pop(name) for name in list(changes) if name in numbers}
        send = verbs.Send(Scope.SESSION, "bob", 0, None, False, file, tuple(numbers.values()), (msg_id,), (b"",))
        self.alice.raw(codec.encode([send._replace(**changes)]))

    def refusal(self, msg_id: str = "handmade0000") -> verbs.Refused:
        """What came back, which the client's core does not know of."""
        self.net.wake()
        (frames,) = self.alice.down
        self.alice.down.clear()
        (envelope,) = codec.Decoder(from_broker=True).decode(frames)
        assert isinstance(envelope, verbs.Refused) and envelope.ref == msg_id, envelope
        return envelope

    def receives(self) -> list[bytes]:
        """Bodies that bob takes, in order."""
        self.net.settle()
        return [self.net.body(one) for one in self.bob.take_all()]


@pytest.fixture
def spooling(net) -> Spooling:
    return Spooling(net)


class TestSpooled:
    def test_it_is_a_message_like_any_other_and_keeps_its_place(self, net, spooling):
        alice, bob = spooling.alice, spooling.bob
        sent = [alice.send("bob", body) for body in (b"before", LARGE, b"between", LARGE + b"2", b"behind")]
        assert len(net.spool) == 2
        assert spooling.receives() == [b"before", LARGE, b"between", LARGE + b"2", b"behind"]
        net.settle()
        for msg_id in sent:
            answer = alice.answers[msg_id]
            assert isinstance(answer, verbs.Receipt) and answer.state == State.DELIVERED
        assert net.spool == {}
        (large,) = [one for one in bob.history if one.msg_id == sent[1]]
        assert (large.header.from_name, large.body, large.header.fmt) == ("alice", b"", Format.TEXT)

    def test_the_line_is_the_one_that_the_broker_would_have_made(self, net, spooling):
        text = LARGE + b" re=abcdzqgh1 in the open"
        first = spooling.alice.send("bob", text, reply_to="questzqn0000")
        spooling.alice.core.spools = False
        second = spooling.alice.send("bob", text, reply_to="questzqn0000")
        net.settle()
        one, other = net.journal
        assert one.replace(first.encode(), b"") == other.replace(second.encode(), b"")
        assert b"abcdzqgh1" not in one and b"questzqn0000" not in one

    @pytest.mark.parametrize("fmt", [Format.BYTES, Format.MSGPACK])
    def test_bytes(self, net, spooling, fmt):
        spooling.alice.send("bob", bytes(range(256)) * 300, fmt=fmt)
        assert len(net.spool) == 1
        assert spooling.receives() == [bytes(range(256)) * 300]

    def test_to_many(self, net, spooling):
        carol = net.session("carol")
        msg_id = spooling.alice.send("", LARGE, scope=Scope.ALL)
        net.settle()
        assert (carol.bodies, spooling.bob.bodies) == ([LARGE], [LARGE])
        for one in (carol, spooling.bob):
            one.take_all()
        net.settle()
        assert spooling.alice.answers[msg_id] == verbs.Tally(msg_id, 2, 0)

    def test_for_one_who_is_away(self, net, spooling):
        spooling.bob.bye()
        net.settle()
        msg_id = spooling.alice.send("bob", LARGE)
        net.settle()
        answer = spooling.alice.answers[msg_id]
        assert isinstance(answer, verbs.Receipt) and answer.state == State.AWAY
        assert net.spool == {}
        back = net.session("bob")
        assert back.bodies == [LARGE]

    def test_what_cannot_be_read_is_refused_for_good(self, net, spooling):
        msg_id = spooling.alice.send("bob", LARGE)
        net.spool.clear()
        later = spooling.alice.send("bob", b"later")
        assert spooling.receives() == [b"later"]
        net.settle()
        refused = spooling.alice.answers[msg_id]
        assert isinstance(refused, errors.BrokerUnavailable) and "send it again" in str(refused)
        assert not isinstance(spooling.alice.answers[later], errors.ZmqbusError)
        # Said again, it would come behind the later one.
        again = verbs.Send.one(msg_id, Scope.SESSION, "bob", Format.TEXT, None, True, LARGE)
        spooling.alice.raw(codec.encode([again]))
        assert spooling.refusal(msg_id).code == "broker_unavailable"
        assert spooling.receives() == []

    @pytest.mark.parametrize("death", Death)
    def test_a_broker_dies_with_it(self, net, spooling, death):
        msg_id = spooling.alice.send("bob", LARGE)
        net.kill_broker(death)
        assert spooling.receives() == [LARGE]
        net.settle()
        assert isinstance(spooling.alice.answers[msg_id], verbs.Receipt)
        assert spooling.receives() == []

    def test_a_connection_is_lost_with_it(self, net, spooling):
        spooling.alice.send("bob", LARGE)
        net.wake()
        spooling.alice.disconnect()
        spooling.alice.send("bob", b"later")
        spooling.alice.connect()
        assert spooling.receives() == [LARGE, b"later"]

    def test_a_journal_that_cannot_be_written_refuses_it(self, net, spooling):
        net.journal_fails = "no room"
        msg_id = spooling.alice.send("bob", LARGE)
        net.settle()
        assert isinstance(spooling.alice.answers[msg_id], errors.BrokerUnavailable)
        net.journal_fails = None
        assert net.broker.registry.sessions[session_id_of("bob")].mailbox.total_bytes == 0
        assert spooling.receives() == []

    def test_it_counts_in_the_mailbox_as_what_it_is(self, net, spooling, monkeypatch):
        monkeypatch.setattr(mailbox, "MAX_BYTES", 2 * len(LARGE) + 1)
        sent = [spooling.alice.send("bob", LARGE) for _ in range(4)]
        net.settle()
        net.advance(2)
        refused = [one for one in sent if isinstance(spooling.alice.answers[one], errors.RateLimited)]
        assert refused in (sent[2:], sent[3:])

    def test_nothing_is_read_for_a_message_that_is_refused_anyway(self, net, spooling, monkeypatch):
        reads: list[object] = []
        monkeypatch.setattr(net.broker.admission, "_read_spooled", lambda *args: reads.append(args))
        spooling.put_down(target="nobody")
        assert spooling.refusal().code == "unknown_peer"
        spooling.put_down("handmade0001", length=5)
        assert spooling.refusal("handmade0001").code == "protocol"
        spooling.put_down("handmade0002", size_bytes=11 * 2**20, length=12 * 2**20)
        assert spooling.refusal("handmade0002").code == "text_too_long"
        spooling.put_down("handmade0003", scope=Scope.ALL, size_bytes=300 * 1024, length=300 * 1024)
        assert spooling.refusal("handmade0003").code == "text_too_long"
        assert reads == []

    def test_nor_for_one_that_is_known(self, net, spooling, monkeypatch):
        spooling.put_down()
        assert spooling.receives() == [LARGE]
        monkeypatch.setattr(net.broker.admission, "_read_spooled", lambda *_: pytest.fail("it was read again"))
        spooling.put_down()
        assert spooling.receives() == []

    @pytest.mark.parametrize(
        "bad",
        [
            b'"}\n{"ts":"2026-01-02T03:04:05.678Z","msg_id":"forged000000"}',
            b'","from_name":"root","x":"',
            b"\\",
            b"\xff",
            b"\n",
        ],
    )
    def test_what_could_forge_a_record_is_refused(self, net, spooling, bad):
        piece = b"x" * len(LARGE) + bad
        spooling.put_down(piece=piece)
        assert spooling.refusal().code == "invalid_payload"
        assert net.journal == []
        assert spooling.receives() == []

    def test_who_may_not_send_may_not_do_it_this_way(self, net, spooling):
        eve = net.observer()
        numbers = (len(LARGE), 0, len(LARGE), 0)
        eve.raw(codec.encode([verbs.Send(0, "bob", 0, None, False, "0" * 32, numbers, ("handmade0000",), (b"",))]))
        net.wake()
        (frames,) = eve.down
        (refused,) = codec.Decoder(from_broker=True).decode(frames)
        assert isinstance(refused, verbs.Refused) and (refused.ref, refused.code) == ("handmade0000", "protocol")

    def test_a_broker_that_has_no_files_says_so(self, net, spooling, monkeypatch):
        monkeypatch.setattr(net.broker.admission, "_read_spooled", no_spools)
        spooling.put_down()
        assert spooling.refusal().code == "unauthorized"


def test_guests_share_a_limit_of_broadcasts_since_their_names_cost_nothing(net):
    net.session("bob")
    told = {}
    for name in range(5):
        guest = net.guest(f"guest-{name}")
        ids = [guest.send("", b"x", scope=Scope.ALL) for _ in range(admission.BROADCASTS_PER_MINUTE // 2)]
        net.settle()
        net.advance(1.5)
        told[name] = [guest.answers[msg_id] for msg_id in ids]
    refused = [isinstance(one, errors.RateLimited) for name in range(5) for one in told[name]]
    assert refused == [False] * admission.GUEST_BROADCASTS_PER_MINUTE + [True] * 30
    session = net.session("alice")
    msg_id = session.send("", b"x", scope=Scope.ALL)
    net.settle()
    net.advance(1.5)
    assert isinstance(session.answers[msg_id], verbs.Tally)
    net.advance(admission.MINUTE_S)
    msg_id = guest.send("", b"x", scope=Scope.ALL)
    net.settle()
    net.advance(1.5)
    assert isinstance(guest.answers[msg_id], verbs.Tally)
