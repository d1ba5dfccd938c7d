"""Batches as they come and go, and taken apart."""

from __future__ import annotations

from zmqbus.client.batch import Broadcast, Deliver, Send, apart, delivered, published, to_wire
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope

HEADER = ("id", "alice", "Ä", Scope.TOPIC, "deploys", 2, None, 17.5)
IDS, BODIES = ("message0001", "message0002"), (b"x", b"y")


def test_envelopes_become_batches():
    deliver = verbs.Deliver(verbs.Header(*HEADER), 7, 0, 3, 5, (1, 2), 70_000, IDS, BODIES)
    assert delivered(deliver) == Deliver(7, 0, 3, *HEADER, 5, (1, 2), 70_000, IDS, BODIES)
    several = verbs.Broadcast(verbs.Header(*HEADER), "epoch", 17, 12, (3,), None, IDS, BODIES)
    assert published(several) == Broadcast("epoch", 17, 12, (3,), *HEADER, None, IDS, BODIES)


def test_a_batch_becomes_an_envelope():
    batch = Send(Scope.ALL, "", 2, None, False, IDS, BODIES)
    assert to_wire(batch) == verbs.Send(Scope.ALL, "", 2, None, False, None, None, IDS, BODIES)


class TestApart:
    """Each message of a batch as a batch of one, with its own number."""

    def test_of_the_mailbox(self):
        batch = Deliver(7, 0, 3, *HEADER, -1, None, -1, IDS, BODIES)
        first = batch._replace(msg_ids=IDS[:1], bodies=BODIES[:1])
        assert list(apart(batch)) == [first, first._replace(seq=8, msg_ids=IDS[1:], bodies=BODIES[1:])]

    def test_sent_again(self):
        (one,) = apart(Deliver(7, 17, 0, *HEADER, -1, None, -1, IDS[:1], BODIES[:1]))
        assert (one.seq, one.bcast) == (7, 17)

    def test_published(self):
        batch = Broadcast("epoch", 17, 12, (3,), *HEADER, None, IDS, BODIES)
        first = batch._replace(msg_ids=IDS[:1], bodies=BODIES[:1])
        assert list(apart(batch)) == [first, first._replace(bcast=18, prev=17, msg_ids=IDS[1:], bodies=BODIES[1:])]
