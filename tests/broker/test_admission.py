"""Checks of messages before they are accepted, with hostile or careless senders; batches equal single messages."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.send_ways import SendBus, in_each_way, messages, refused, with_ids
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


def test_awaited_answer_cannot_be_claimed_by_another_client(net):
    """Receivers know message ids; that gives no right to an answer, nor to keep it from the client that asked."""
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
def test_reply_to_must_be_a_message_id(net, reply_to):
    """It appears in the header of the line that the receiver displays."""
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello", reply_to=reply_to)
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.ProtocolError | errors.InvalidPayload)
    assert bob.bodies == []


def test_untaken_answers_of_a_helper_are_limited(net, monkeypatch):
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


# --- batches are accepted, refused, written, delivered and acknowledged like single messages


GOOD = messages(b"1", "zwei ü".encode(), b'3\n"\\', b"")


@pytest.mark.parametrize("fmt", Format)
def test_batch_is_delivered_and_acknowledged(fmt):
    def scenario(bus: SendBus) -> None:
        bus.send("bob", GOOD, fmt)
        assert bus.bob.bodies == [body for _, body in GOOD] and bus.outcomes == []
        bus.bob.take(2)
        bus.net.settle()
        bus.bob.take_all()

    bus = in_each_way(scenario)
    assert bus.outcomes == [(msg_id, "DELIVERED") for msg_id, _ in GOOD]
    assert bus.net.broker.admission.last_id == "message0003"


def test_last_id_of_a_pending_batch_is_that_of_its_last_message():
    """A session that connects between decision and journal entered after the whole batch."""
    bus = SendBus("batch")
    bus.send_unread("bob", GOOD)
    bus.net._do(bus.net.broker.handle(bus.net.clock.now, events.Received(bus.alice.route, [])))
    (frames,) = bus.alice.up
    bus.alice.up.clear()
    decoded = codec.Decoder(from_broker=False).decode(frames)
    bus.net._do(bus.net.broker.handle(bus.net.clock.now, events.Received(bus.alice.route, decoded)))
    assert bus.net.broker.admission.last_id == "message0003"
    assert repr(bus.net.broker.admission) == "<Admission: 1 pending, 0 accepted>"


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("alice", "unknown_peer"),
        (session_id_of("alice"), "unknown_peer"),
        ("nobody", "unknown_peer"),
        ("", "unknown_peer"),
    ],
)
def test_batch_to_an_invalid_target_is_refused(target, code):
    bus = in_each_way(lambda bus: bus.send(target, GOOD))
    assert refused(bus, *dict(GOOD)) == [code] * 4


def test_batch_to_an_ambiguous_target_is_refused():
    def scenario(bus: SendBus) -> None:
        bus.net.session("bobby")
        bus.net.session("bobcat")
        bus.send("bobb", GOOD)  # one
        bus.send("bobc", messages(b"x", b"y", first=10))
        bus.send("bo", messages(b"x", b"y", first=20))

    bus = in_each_way(scenario)
    assert refused(bus, "message0020", "message0021") == ["ambiguous"] * 2
    assert bus.net.broker.admission.accepted == 6


@pytest.mark.parametrize("bad", ["", "short", "UPPERCASE0", "abcdefg\n", "x" * 13, "é" * 8])
def test_invalid_message_id_is_refused_alone(bad):
    bus = in_each_way(lambda bus: bus.send("bob", with_ids("message0000", bad, "message0002")))
    assert refused(bus, bad) == ["protocol"]
    assert bus.bob.bodies == [b"0", b"2"]


def test_repeated_id_in_a_batch_is_one_message():
    bus = in_each_way(lambda bus: bus.send("bob", with_ids("message0000", "message0001", "message0000", "message0002")))
    assert bus.bob.bodies == [b"0", b"1", b"3"]


@pytest.mark.parametrize("bad", [b"\xff", b"ok \xc3", "é".encode()[:1], "\ud800".encode("utf-8", "surrogatepass")])
def test_invalid_utf8_is_refused_alone(bad):
    bus = in_each_way(lambda bus: bus.send("bob", messages(b"1", "é".encode(), bad, b"4")))
    assert refused(bus, "message0002") == ["invalid_payload"]
    assert bus.bob.bodies == [b"1", "é".encode(), b"4"]


def test_utf8_split_over_two_messages_is_refused():
    first, second = "é".encode()[:1], "é".encode()[1:]
    bus = in_each_way(lambda bus: bus.send("bob", messages(b"1", first, second)))
    assert refused(bus, "message0001", "message0002") == ["invalid_payload"] * 2


@pytest.mark.parametrize("fmt", [3, -1, 2**40])
def test_unknown_format_is_refused(fmt):
    bus = in_each_way(lambda bus: bus.send("bob", GOOD, fmt))
    assert refused(bus, *dict(GOOD)) == ["protocol"] * 4


@pytest.mark.parametrize("state", ["staged", "open", "settled"])
def test_id_of_another_session_is_refused_alone(state):
    """The other message is pending, in flight or settled; each attempt is refused."""

    def scenario(bus: SendBus) -> None:
        carol = bus.net.session("carol")
        bus.net.clients.remove(carol)
        bus.net.clients.insert(0, carol)  # she is received first
        bus.send_unread("bob", messages(b"carol's", b"hers too", first=1), by=carol)
        if state != "staged":
            bus.net.settle()
        if state == "settled":
            bus.bob.take_all()
            bus.net.settle()
        bus.send("bob", messages(b"1", b"2", b"3", b"4"))

    bus = in_each_way(scenario)
    assert refused(bus, "message0001", "message0002") == ["protocol"] * 2
    assert [message.body for message in bus.bob.history] == [b"carol's", b"hers too", b"1", b"4"]


@pytest.mark.parametrize("later", [1, 2, 3])
def test_repeat_before_the_journal_write_is_accepted_once(later):
    def scenario(bus: SendBus) -> None:
        helper = bus.net.helper(bus.alice)
        bus.listen_in(helper)
        bus.send_unread("bob", messages(b"1", b"2", b"3"))
        helper.raw(
            codec.encode([verbs.Send.one(f"message{n:04d}", 0, "bob", 0, None, True, b"x") for n in range(later)])
        )
        bus.net.settle()
        assert bus.bob.bodies == [b"1", b"2", b"3"]
        bus.bob.take_all()
        bus.net.settle()

    bus = SendBus("batch")
    scenario(bus)
    assert sorted(bus.outcomes) == [(f"message{number:04d}", "DELIVERED") for number in range(3)]
    assert bus.net.broker._out.counts.accepted_bytes == 3


def test_repeat_in_flight_moves_the_receipts_to_the_newer_connection():
    bus = SendBus("batch")
    bus.send("bob", messages(b"1", b"2", b"3"))
    bus.received.clear()
    helper = bus.net.helper(bus.alice)
    again = SendBus("batch")  # what that one hears
    again.listen_in(helper)
    helper.raw(codec.encode([verbs.Send.one("message0001", 0, "bob", 0, None, True, b"2")]))
    bus.net.settle()
    bus.bob.take_all()
    bus.net.settle()
    assert bus.bob.history[-1].body == b"3" and len(bus.bob.history) == 3
    receipts = [one for one in again.received if isinstance(one, verbs.Receipt)]
    assert [one.msg_ids for one in receipts] == [("message0000", "message0001", "message0002")]
    assert bus.outcomes == []


def test_repeat_after_a_split_is_answered_over_the_new_connection():
    """An earlier message became busy after a second, which split the batch from it."""
    net = SimNet()
    alice, bob = net.session("alice"), net.session("bob")
    early = alice.send("bob", b"0")
    net.settle()
    net.advance(0.8, step_s=0.1)
    sent = alice.send_all("bob", [b"1", b"2", b"3"])
    net.settle()
    net.advance(0.4, step_s=0.1)
    outcomes = alice.answers[early]
    assert isinstance(outcomes, verbs.Receipt) and outcomes.state == State.BUSY
    assert not any(msg_id in alice.answers for msg_id in sent)
    alice.disconnect()
    alice.connect()
    net.settle()
    bob.take_all()
    net.settle()
    for msg_id in sent:
        outcomes = alice.answers[msg_id]
        assert isinstance(outcomes, verbs.Receipt) and outcomes.state == State.DELIVERED
    assert [message.body for message in bob.history] == [b"0", b"1", b"2", b"3"]


def test_batch_with_settled_messages_is_accepted_for_the_rest():
    def scenario(bus: SendBus) -> None:
        bus.send("bob", messages(b"1", b"2"))
        bus.bob.take_all()
        bus.net.settle()
        bus.send("bob", messages(b"1", b"2", b"3"))

    bus = in_each_way(scenario)
    assert [message.body for message in bus.bob.history] == [b"1", b"2", b"3"]
    assert bus.outcomes == [("message0000", "DELIVERED"), ("message0001", "DELIVERED")] * 2


@pytest.mark.parametrize("credit", [2, 1000])
def test_full_mailbox_refuses_the_rest_of_a_batch(monkeypatch, credit):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 5)
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", credit)

    def scenario(bus: SendBus) -> None:
        bus.send("bob", messages(b"1", b"2", b"3"))
        bus.send_unread("bob", messages(b"4", b"5", b"6", first=3))  # in one wake: the first counts what it keeps
        bus.send_unread("bob", messages(b"7", b"8", first=6))
        bus.net.settle()
        while bus.bob.take_all():
            bus.net.settle()
        bus.send("bob", messages(b"8", b"9", first=7))  # what was refused stays so

    bus = in_each_way(scenario)
    assert [message.body for message in bus.bob.history] == [b"1", b"2", b"3", b"4", b"5", b"9"]
    assert refused(bus, "message0005", "message0006", "message0007") == ["rate_limited"] * 3


def test_messages_over_the_byte_limit_are_refused_alone(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_BYTES", 10)
    bus = in_each_way(lambda bus: bus.send("bob", messages(b"1234", b"12345", b"12", b"1")))
    assert bus.bob.bodies == [b"1234", b"12345", b"1"]
    assert refused(bus, "message0002") == ["rate_limited"]


def test_batch_to_an_absent_session_is_stored(monkeypatch):
    def scenario(bus: SendBus) -> None:
        bus.bob.bye()
        bus.net.settle()
        bus.send("bob", GOOD)

    bus = in_each_way(scenario)
    assert bus.outcomes == [(msg_id, "AWAY") for msg_id, _ in GOOD]
    assert bus.net.store.total() == 4


def test_batch_is_refused_while_the_journal_fails():
    def scenario(bus: SendBus) -> None:
        bus.net.journal_fails = "no space"
        bus.send("bob", GOOD)
        bus.net.journal_fails = None
        bus.send("bob", GOOD)  # a refusal is final
        bus.send("bob", messages(b"later", first=9))

    bus = in_each_way(scenario)
    assert [code for msg_id, code in bus.outcomes if msg_id in dict(GOOD)] == ["broker_unavailable: no space"] * 8
    assert bus.bob.bodies == [b"later"] and len(bus.net.journal) == 1


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
    bus = SendBus("batch")
    bus.alice.raw(codec.encode([send, verbs.Send.one("message9999", 0, "bob", 0, None, False, b"next")]))
    bus.net.settle()
    assert bus.bob.bodies == [b"next"]
    assert bus.outcomes == [*((msg_id, why) for msg_id in send.msg_ids)]


def test_largest_batch_is_accepted():
    long = messages(*[b"%d" % number for number in range(verbs.MAX_ENVELOPE_MESSAGES)])
    bus = in_each_way(lambda bus: bus.send("bob", long))
    assert bus.bob.bodies == [body for _, body in long]


def test_role_limits_who_may_send_batches():
    bus = SendBus("batch")
    observer = bus.net.observer()
    bus.listen_in(observer)
    bus.send_unread("bob", GOOD, by=observer)
    bus.net.settle()
    assert bus.bob.bodies == []
    assert [(ref, why.partition(":")[0]) for ref, why in bus.outcomes] == [(ref, "protocol") for ref, _ in GOOD]
    for number, speaker in enumerate((bus.net.helper(bus.alice), bus.net.guest("script"))):
        bus.bob.take_all()
        bus.send_unread("bob", messages(b"1", b"2", first=10 * number), by=speaker)
        bus.net.settle()
        assert bus.bob.bodies == [b"1", b"2"]


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
def test_batches_equal_single_messages(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "CREDIT_MESSAGES", 4)
        patch.setattr(mailbox, "CREDIT_BYTES", 1200)
        patch.setattr(mailbox, "MAX_MESSAGES", 9)

        def scenario(bus: SendBus) -> None:
            fresh = 100
            for number, (step, what) in enumerate(steps):
                if step == "say":
                    bus.send("bob", [(f"message{one:04d}", body) for one, body in what])
                elif step == "fresh":
                    bus.send("bob", messages(*what, first=fresh))
                    fresh += len(what)
                elif step == "broadcast":
                    bus.alice.raw(codec.encode([verbs.Send.one(f"toall{number:05d}", 1, "", 0, None, False, b"all")]))
                else:
                    bus.disturb(step, what)
                bus.net.settle()

        in_each_way(scenario)


# --- bodies in files

LARGE = b'say "x"\n' * 10_000


class SpoolingSender:
    """A sender with spooled bodies, which can also forge spool files and envelopes."""

    def __init__(self, net: SimNet) -> None:
        self.net = net
        self.alice, self.bob = net.session("alice"), net.session("bob")

    def send_spooled(self, msg_id: str = "handmade0000", piece: bytes | None = None, **changes: Any) -> None:
        """Sends a forged spool file."""
        piece = escape_body("text", LARGE) if piece is None else piece
        file = self.net.new_file()
        self.net.spool[file, 0] = piece
        numbers = {"size_bytes": len(LARGE), "offset": 0, "length": len(piece), "crc": zlib.crc32(piece)}
        numbers |= {name: changes.pop(name) for name in list(changes) if name in numbers}
        send = verbs.Send(Scope.SESSION, "bob", 0, None, False, file, tuple(numbers.values()), (msg_id,), (b"",))
        self.alice.raw(codec.encode([send._replace(**changes)]))

    def refusal(self, msg_id: str = "handmade0000") -> verbs.Refused:
        """Returns the refusal of a message that the client core did not send."""
        self.net.wake()
        (frames,) = self.alice.down
        self.alice.down.clear()
        (envelope,) = codec.Decoder(from_broker=True).decode(frames)
        assert isinstance(envelope, verbs.Refused) and envelope.ref == msg_id, envelope
        return envelope

    def receives(self) -> list[bytes]:
        """Returns the bodies that bob takes, in order."""
        self.net.settle()
        return [self.net.body(one) for one in self.bob.take_all()]


@pytest.fixture
def spooling(net) -> SpoolingSender:
    return SpoolingSender(net)


class TestSpooledBodies:
    def test_spooled_message_keeps_its_place(self, net, spooling):
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

    def test_record_equals_one_made_by_the_broker(self, net, spooling):
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

    def test_broadcast(self, net, spooling):
        carol = net.session("carol")
        msg_id = spooling.alice.send("", LARGE, scope=Scope.ALL)
        net.settle()
        assert (carol.bodies, spooling.bob.bodies) == ([LARGE], [LARGE])
        for one in (carol, spooling.bob):
            one.take_all()
        net.settle()
        assert spooling.alice.answers[msg_id] == verbs.Tally(msg_id, 2, 0)

    def test_absent_receiver(self, net, spooling):
        spooling.bob.bye()
        net.settle()
        msg_id = spooling.alice.send("bob", LARGE)
        net.settle()
        answer = spooling.alice.answers[msg_id]
        assert isinstance(answer, verbs.Receipt) and answer.state == State.AWAY
        assert net.spool == {}
        back = net.session("bob")
        assert back.bodies == [LARGE]

    def test_missing_file_is_refused_for_good(self, net, spooling):
        msg_id = spooling.alice.send("bob", LARGE)
        net.spool.clear()
        later = spooling.alice.send("bob", b"later")
        assert spooling.receives() == [b"later"]
        net.settle()
        refused = spooling.alice.answers[msg_id]
        assert isinstance(refused, errors.BrokerUnavailable) and "send it again" in str(refused)
        assert not isinstance(spooling.alice.answers[later], errors.ZmqbusError)
        # SendBus again, it would come behind the later one.
        again = verbs.Send.one(msg_id, Scope.SESSION, "bob", Format.TEXT, None, True, LARGE)
        spooling.alice.raw(codec.encode([again]))
        assert spooling.refusal(msg_id).code == "broker_unavailable"
        assert spooling.receives() == []

    @pytest.mark.parametrize("death", Death)
    def test_broker_dies_with_a_spooled_message(self, net, spooling, death):
        msg_id = spooling.alice.send("bob", LARGE)
        net.kill_broker(death)
        assert spooling.receives() == [LARGE]
        net.settle()
        assert isinstance(spooling.alice.answers[msg_id], verbs.Receipt)
        assert spooling.receives() == []

    def test_connection_is_lost_with_a_spooled_message(self, net, spooling):
        spooling.alice.send("bob", LARGE)
        net.wake()
        spooling.alice.disconnect()
        spooling.alice.send("bob", b"later")
        spooling.alice.connect()
        assert spooling.receives() == [LARGE, b"later"]

    def test_journal_failure_refuses_a_spooled_message(self, net, spooling):
        net.journal_fails = "no room"
        msg_id = spooling.alice.send("bob", LARGE)
        net.settle()
        assert isinstance(spooling.alice.answers[msg_id], errors.BrokerUnavailable)
        net.journal_fails = None
        assert net.broker.registry.sessions[session_id_of("bob")].mailbox.total_bytes == 0
        assert spooling.receives() == []

    def test_mailbox_counts_the_spooled_bytes(self, net, spooling, monkeypatch):
        monkeypatch.setattr(mailbox, "MAX_BYTES", 2 * len(LARGE) + 1)
        sent = [spooling.alice.send("bob", LARGE) for _ in range(4)]
        net.settle()
        net.advance(2)
        refused = [one for one in sent if isinstance(spooling.alice.answers[one], errors.RateLimited)]
        assert refused in (sent[2:], sent[3:])

    def test_file_of_a_refused_message_is_not_read(self, net, spooling, monkeypatch):
        reads: list[object] = []
        monkeypatch.setattr(net.broker.admission, "_read_spooled", lambda *args: reads.append(args))
        spooling.send_spooled(target="nobody")
        assert spooling.refusal().code == "unknown_peer"
        spooling.send_spooled("handmade0001", length=5)
        assert spooling.refusal("handmade0001").code == "protocol"
        spooling.send_spooled("handmade0002", size_bytes=11 * 2**20, length=12 * 2**20)
        assert spooling.refusal("handmade0002").code == "text_too_long"
        spooling.send_spooled("handmade0003", scope=Scope.ALL, size_bytes=300 * 1024, length=300 * 1024)
        assert spooling.refusal("handmade0003").code == "text_too_long"
        assert reads == []

    def test_file_of_a_repeat_is_not_read(self, net, spooling, monkeypatch):
        spooling.send_spooled()
        assert spooling.receives() == [LARGE]
        monkeypatch.setattr(net.broker.admission, "_read_spooled", lambda *_: pytest.fail("it was read again"))
        spooling.send_spooled()
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
    def test_forged_record_is_refused(self, net, spooling, bad):
        piece = b"x" * len(LARGE) + bad
        spooling.send_spooled(piece=piece)
        assert spooling.refusal().code == "invalid_payload"
        assert net.journal == []
        assert spooling.receives() == []

    def test_observer_may_not_send_a_spooled_message(self, net, spooling):
        eve = net.observer()
        numbers = (len(LARGE), 0, len(LARGE), 0)
        eve.raw(codec.encode([verbs.Send(0, "bob", 0, None, False, "0" * 32, numbers, ("handmade0000",), (b"",))]))
        net.wake()
        (frames,) = eve.down
        (refused,) = codec.Decoder(from_broker=True).decode(frames)
        assert isinstance(refused, verbs.Refused) and (refused.ref, refused.code) == ("handmade0000", "protocol")

    def test_broker_without_spool_files_refuses(self, net, spooling, monkeypatch):
        monkeypatch.setattr(net.broker.admission, "_read_spooled", no_spools)
        spooling.send_spooled()
        assert spooling.refusal().code == "unauthorized"


def test_guests_share_one_limit_of_broadcasts(net):
    net.session("bob")
    outcomes = {}
    for name in range(5):
        guest = net.guest(f"guest-{name}")
        ids = [guest.send("", b"x", scope=Scope.ALL) for _ in range(admission.BROADCASTS_PER_MINUTE // 2)]
        net.settle()
        net.advance(1.5)
        outcomes[name] = [guest.answers[msg_id] for msg_id in ids]
    refused = [isinstance(one, errors.RateLimited) for name in range(5) for one in outcomes[name]]
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
