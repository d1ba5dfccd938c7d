"""Batches as they come and go, and taken apart."""

from __future__ import annotations

import pytest

from zmqbus.client.batch import Broadcast, Deliver, Send, apart, delivered, published, to_wire
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Scope

HEADER = ("id", "alice", "Ä", Scope.TOPIC, "deploys", 2, None, 17.5)
IDS, BODIES = ("message0001", "message0002"), (b"x", b"y")


def test_a_delivery_is_a_batch_of_one():
    one = verbs.Deliver(
        7, 0, 3, "message0001", "id", "a", None, 4, "g", 2, "question001", 17.5, 5, (1, 2), 70_000, b"x"
    )
    batch = delivered(one)
    assert batch == Deliver(7, 0, 3, *one[4:15], ("message0001",), (b"x",))
    assert (batch.reply_to, batch.age_s, batch.pointer, batch.size_bytes) == ("question001", 5, (1, 2), 70_000)


def test_several_deliveries_are_one_batch():
    batch = delivered(verbs.Delivers(7, 3, "id", "alice", "Ä", 2, 17.5, IDS, BODIES))
    assert batch == Deliver(7, 0, 3, "id", "alice", "Ä", 0, "", 2, None, 17.5, -1, None, -1, IDS, BODIES)


def test_broadcasts_are_batches():
    one = verbs.Broadcast("epoch", 17, 12, (3,), "message0001", *HEADER, (1, 2), b"x")
    assert published(one) == Broadcast("epoch", 17, 12, (3,), *HEADER, (1, 2), ("message0001",), (b"x",))
    several = verbs.Broadcasts("epoch", 17, 12, (3,), *HEADER[:6], 17.5, IDS, BODIES)
    assert published(several) == Broadcast("epoch", 17, 12, (3,), *HEADER, None, IDS, BODIES)


@pytest.mark.parametrize("as_one", [True, False])
def test_what_is_sent_is_one_envelope_if_the_broker_understands_it(as_one):
    batch = Send(Scope.ALL, "", 2, None, False, IDS, BODIES)
    alone = [verbs.Send(msg_id, Scope.ALL, "", 2, None, False, body) for msg_id, body in zip(IDS, BODIES, strict=True)]
    assert to_wire(batch, as_one=as_one) == ([verbs.Sends(Scope.ALL, "", 2, IDS, BODIES)] if as_one else alone)
    assert to_wire(batch._replace(msg_ids=IDS[:1], bodies=BODIES[:1]), as_one=as_one) == alone[:1]


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
