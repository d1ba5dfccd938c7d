"""What is checked before a message is accepted, where it takes hostile or careless senders to see it."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from zmqbus import codec, errors, protocol
from zmqbus.broker import mailbox
from zmqbus.broker.spooled import no_spools
from zmqbus.protocol import Format, Scope, State
from zmqbus.record import spell
from zmqbus.testing import SimNet
from zmqbus.testing.simnet import Death


@pytest.fixture
def net() -> SimNet:
    return SimNet()


def test_an_answer_that_somebody_awaits_cannot_be_awaited_by_another(net):
    """Message ids are seen by receivers; knowing one is no right to its answer, nor to keep it from who asked."""
    asker, thief, bob = net.guest("asker"), net.guest("thief"), net.session("bob")
    msg_id = asker.ask("bob", b"question: ready?")
    net.settle()
    thief.raw(codec.encode([protocol.Await(msg_id)]))
    net.settle()
    bob.take_all()
    answer = bob.send("asker", b"answer: yes", reply_to=msg_id)
    net.settle()
    assert (asker.bodies, thief.bodies) == ([b"answer: yes"], [])
    asker.take_all()
    net.settle()
    receipt = bob.answers[answer]
    assert isinstance(receipt, protocol.Receipt) and receipt.state == State.DELIVERED


@pytest.mark.parametrize("reply_to", ["", "short", "UPPERCASE0", "abcdefgh\n", "x" * 13, "é" * 8])
def test_what_a_message_answers_is_a_message_id(net, reply_to):
    """It stands in the header of the receiver's line."""
    alice, bob = net.session("alice"), net.session("bob")
    msg_id = alice.send("bob", b"hello", reply_to=reply_to)
    net.settle()
    assert isinstance(alice.answers[msg_id], errors.ProtocolError)
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


# --- bodies in files

LARGE = b'say "x"\n' * 10_000


class Spooling:
    """A sender whose bodies are put down, and what it says by hand."""

    def __init__(self, net: SimNet) -> None:
        self.net = net
        self.alice, self.bob = net.session("alice"), net.session("bob")

    def put_down(self, msg_id: str = "handmade0000", piece: bytes | None = None, **changes: Any) -> None:
        """Says SPOOLED of a piece of its own making."""
        piece = spell("text", LARGE, None) if piece is None else piece
        file = self.net.new_file()
        self.net.spool[file, 0] = piece
        spooled = protocol.Spooled(
            msg_id, Scope.SESSION, "bob", Format.TEXT, None, len(LARGE), file, 0, len(piece), zlib.crc32(piece)
        )
        self.alice.raw(codec.encode([spooled._replace(**changes)]))

    def refusal(self, msg_id: str = "handmade0000") -> protocol.Refused:
        """What came back, which the client's core does not know of."""
        self.net.wake()
        (frames,) = self.alice.down
        self.alice.down.clear()
        (envelope,) = codec.Decoder(from_broker=True).decode(frames)
        assert isinstance(envelope, protocol.Refused) and envelope.ref == msg_id, envelope
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
            assert isinstance(answer, protocol.Receipt) and answer.state == State.DELIVERED
        assert net.spool == {}
        (large,) = [one for one in bob.history if one.msg_id == sent[1]]
        assert (large.from_name, large.body, large.fmt) == ("alice", b"", Format.TEXT)

    def test_the_line_is_the_one_that_the_broker_would_have_made(self, net, spooling):
        text = LARGE + b" re=abcdefgh1 in the open"
        first = spooling.alice.send("bob", text, reply_to="question0000")
        spooling.alice.core.spools = False
        second = spooling.alice.send("bob", text, reply_to="question0000")
        net.settle()
        one, other = net.journal
        assert one.replace(first.encode(), b"") == other.replace(second.encode(), b"")
        assert b"abcdefgh1" not in one and b"question0000" not in one

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
        assert spooling.alice.answers[msg_id] == protocol.Tally(msg_id, 2, 0)

    def test_for_one_who_is_away(self, net, spooling):
        spooling.bob.bye()
        net.settle()
        msg_id = spooling.alice.send("bob", LARGE)
        net.settle()
        answer = spooling.alice.answers[msg_id]
        assert isinstance(answer, protocol.Receipt) and answer.state == State.AWAY
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
        again = protocol.Send(msg_id, Scope.SESSION, "bob", Format.TEXT, None, True, LARGE)
        spooling.alice.raw(codec.encode([again]))
        assert spooling.refusal(msg_id).code == "broker_unavailable"
        assert spooling.receives() == []

    @pytest.mark.parametrize("death", Death)
    def test_a_broker_dies_with_it(self, net, spooling, death):
        msg_id = spooling.alice.send("bob", LARGE)
        net.kill_broker(death)
        assert spooling.receives() == [LARGE]
        net.settle()
        assert isinstance(spooling.alice.answers[msg_id], protocol.Receipt)
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
        assert net.broker.registry.sessions["bob-session-id"].mailbox.total_bytes == 0
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
        monkeypatch.setattr(net.broker.intake, "_read_spooled", lambda *args: reads.append(args))
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
        monkeypatch.setattr(net.broker.intake, "_read_spooled", lambda *_: pytest.fail("it was read again"))
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
        piece = spell("text", LARGE, None)
        spooled = protocol.Spooled("handmade0000", 0, "bob", 0, None, len(LARGE), "0" * 32, 0, len(piece), 0)
        eve.raw(codec.encode([spooled]))
        net.wake()
        (frames,) = eve.down
        (refused,) = codec.Decoder(from_broker=True).decode(frames)
        assert isinstance(refused, protocol.Refused) and (refused.ref, refused.code) == ("handmade0000", "protocol")

    def test_a_broker_that_has_no_files_says_so(self, net, spooling, monkeypatch):
        monkeypatch.setattr(net.broker.intake, "_read_spooled", no_spools)
        spooling.put_down()
        assert spooling.refusal().code == "unauthorized"
