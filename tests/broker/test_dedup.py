"""The dedup window: which outcomes are kept, for how long, and which of them survive the broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zmqbus.broker import dedup
from zmqbus.broker.dedup import DedupWindow, Outcome
from zmqbus.broker.storage.api import Refusal
from zmqbus.testing.store import MemoryStore
from zmqbus.wire import verbs
from zmqbus.wire.verbs import State

RECEIPT = verbs.Receipt(State.DELIVERED, "bob-id", "bob", 0, ())
REFUSED = verbs.Refused("message0001", "rate_limited", "its mailbox is full")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def known(store: MemoryStore) -> DedupWindow:
    return DedupWindow(store)


def test_shared_receipt_names_the_requested_message(known):
    known.keep_all(["message0001", "message0002"], Outcome("alice-id", RECEIPT))
    for msg_id in ("message0001", "message0002"):
        outcome = known.find(msg_id)
        assert outcome.sender_id == "alice-id"
        assert outcome.answer_for(msg_id) == RECEIPT._replace(msg_ids=(msg_id,))
    assert known.find("message0003") is None


@pytest.mark.parametrize("answer", [verbs.Tally("message0001", 2, 1, ("carol",)), REFUSED])
def test_answer_of_one_message_is_repeated_unchanged(known, answer):
    known.keep("message0001", Outcome("alice-id", answer))
    assert known.find("message0001").answer_for("message0001") == answer


@pytest.mark.parametrize("how", ["one by one", "together", "mixed"])
def test_oldest_outcomes_are_forgotten(known, monkeypatch, how):
    monkeypatch.setattr(dedup, "REMEMBERED_OUTCOMES", 3)
    ids = [f"message{number:04d}" for number in range(7)]
    outcome = Outcome("alice-id", RECEIPT)
    if how == "together":
        known.keep_all(ids, outcome)
    else:
        for number, msg_id in enumerate(ids):
            if how == "mixed" and number % 2:
                known.keep_all([msg_id], outcome)
            else:
                known.keep(msg_id, outcome)
    assert [msg_id for msg_id in ids if known.find(msg_id)] == ids[-3:]
    assert repr(known) == "<DedupWindow of 3 messages, and of 0 before>"


def test_refusals_alone_are_kept_for_the_next_broker(known, store):
    known.keep("message0000", Outcome("alice-id", RECEIPT))
    known.keep_refused(REFUSED, "alice-id")
    known.keep_full("message0002", "alice-id", "bob-box")
    store.commit()
    assert store.recover(10).refusals == [
        Refusal("message0001", "alice-id", "rate_limited", "its mailbox is full"),
        Refusal("message0002/bob-box", "alice-id", "", ""),
    ]


def test_refusals_of_an_earlier_broker_stay(known, store):
    known.keep_refused(REFUSED, "alice-id")
    known.keep_full("message0002", "alice-id", "bob-box")
    known.keep_full("message0002", "alice-id", "carol-box")
    store.commit()
    later = DedupWindow(store)
    for refusal in store.recover(10).refusals:
        later.remember_refused(refusal)
    assert later.find("message0001") == Outcome("alice-id", REFUSED)
    assert later.find("message0002") is None  # it is no outcome: others may get it yet
    assert not later.none_of(["message0002"])
    assert later.earlier_cast("message0002") == ((), {"bob-box", "carol-box"})


def test_message_queued_by_an_earlier_broker_is_answered_as_away(known):
    bob: Any = SimpleNamespace(session_id="bob-id", name="bob")
    known.remember_queued("message0001", "alice-id", bob)
    outcome = known.find("message0001")
    assert outcome.sender_id == "alice-id"
    assert outcome.answer_for("message0001") == verbs.Receipt(State.AWAY, "bob-id", "bob", 0, ("message0001",))


def test_holders_of_an_earlier_broadcast_are_returned_once(known):
    known.remember_cast("message0001", "bob-box")
    known.remember_cast("message0001", "carol-box")
    assert known.find("message0001") is None and not known.none_of(["message0001"])
    assert known.earlier_cast("message0001") == ({"bob-box", "carol-box"}, ())
    assert known.earlier_cast("message0001") == ((), ())
    assert known.none_of(["message0001"])


def test_batch_is_new_if_none_of_its_ids_is_known(known):
    ids = [f"message{number:04d}" for number in range(9)]
    assert known.none_of(ids) and known.none_of([])
    known.keep("message0009", Outcome("alice-id", RECEIPT))
    assert known.none_of(ids)
    known.keep("message0008", Outcome("alice-id", RECEIPT))
    assert not known.none_of(ids) and known.none_of(ids[:8])
