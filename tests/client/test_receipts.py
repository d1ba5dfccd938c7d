"""What the broker has said of messages, as senders are told."""

from __future__ import annotations

import pytest

from zmqbus import errors
from zmqbus.client.receipts import BroadcastReceipt, Receipt, receipt_of, receipts_of
from zmqbus.wire import verbs
from zmqbus.wire.verbs import State


@pytest.mark.parametrize(
    ("state", "away_s", "expected"),
    [
        (State.DELIVERED, 0, Receipt("m1", "delivered", "bob", "sid", False, 0)),
        (State.AWAY, 180, Receipt("m1", "queued", "bob", "sid", False, 180)),
        (State.BUSY, 0, Receipt("m1", "queued", "bob", "sid", True, 0)),
    ],
)
def test_to_one(state, away_s, expected):
    receipt = verbs.Receipt(state, "sid", "bob", away_s, ("m1", "m2"))
    assert receipt_of("m1", receipt) == expected
    assert list(receipts_of(("m1", "m2"), receipt)) == [("m1", expected), ("m2", expected._replace(msg_id="m2"))]


def test_to_many():
    tally = verbs.Tally("m1", 3, 2, ("full",))
    expected = BroadcastReceipt("m1", 3, 2, ("full",))
    assert receipt_of("m1", tally) == expected
    assert list(receipts_of(("m1",), tally)) == [("m1", expected)]


def test_an_error_is_the_error_of_each():
    error = errors.UnknownPeer("no such session")
    assert list(receipts_of(("m1", "m2"), error)) == [("m1", error), ("m2", error)]
