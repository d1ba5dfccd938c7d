"""Batches, their parts in a mailbox, the stages that these pass through, and the window."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.broker.in_flight import NEXT_STAGES, Batch, BroadcastProgress, InFlight, Stage, Window
from zmqbus.broker.storage.api import Entry
from zmqbus.wire.verbs import Header

HEADER = Header("s", "n", "l", 0, "", 0, None, 1.5)


def batch(count: int, *, segment: int = 1, spilled: bool = False) -> Batch:
    """Messages with bodies of 1, 2, 3… bytes; a spilled one is of 100,000."""
    ids = tuple(f"message{number:05d}" for number in range(count))
    bodies = (b"",) if spilled else tuple(bytes(number + 1) for number in range(count))
    size_bytes = 100_000 if spilled else sum(map(len, bodies))
    pointers = [(segment, number, 9, 0) for number in range(count)]
    return Batch(HEADER, ids, bodies, pointers, 7.5, size_bytes, b"route")


def in_flight(count: int, *, seq: int = 1, bcast: int = 0, segment: int = 1, stage: Stage = Stage.UNSTORED) -> InFlight:
    return InFlight(batch(count, segment=segment), 0, count, seq, 8.0, bcast, stage)


class TestBatch:
    def test_entries_hold_what_the_store_keeps(self):
        assert batch(2).entry(1) == Entry(HEADER, "message00001", 7.5, 2, (1, 1, 9, 0), b"\0\0")

    def test_a_spilled_message_keeps_its_size(self):
        alone = batch(1, spilled=True)
        assert alone.spilled and not batch(1).spilled
        assert alone.entry(0) == Entry(HEADER, "message00000", 7.5, 100_000, (1, 0, 9, 0), b"")

    def test_a_stored_message_is_a_batch_of_one(self):
        entry = batch(1, spilled=True).entry(0)
        assert Batch.of_entry(entry).entry(0) == entry

    def test_apart_each_message_is_a_batch(self):
        several = batch(3)
        parts = list(several.apart())
        assert [one.entry(0) for one in parts] == [several.entry(at) for at in range(3)]
        assert {one.origin for one in parts} == {b"route"}


class TestInFlight:
    @given(st.integers(2, 6), st.data())
    def test_a_split_divides_all_that_it_has(self, count, data):
        whole, rest = in_flight(count, seq=10, bcast=20), in_flight(count, seq=10, bcast=20)
        rest.batch.progress = [BroadcastProgress(msg_id, 1) for msg_id in rest.batch.msg_ids]
        at = data.draw(st.integers(1, count - 1))
        first = rest.take(at)
        assert (first.count, rest.count) == (at, count - at)
        assert (first.seq, rest.seq, first.bcast, rest.bcast) == (10, 10 + at, 20, 20 + at)
        assert [*first.msg_ids, *rest.msg_ids] == list(whole.msg_ids)
        assert [*first.bodies, *rest.bodies] == list(whole.bodies)
        assert [*first.entries(), *rest.entries()] == list(whole.entries())
        assert [one.msg_id for one in (*first.progress, *rest.progress)] == list(whole.msg_ids)
        assert first.size_bytes + rest.size_bytes == whole.size_bytes
        assert first.weight_bytes + rest.weight_bytes == whole.weight_bytes

    def test_a_message_weighs_what_travels_of_it(self):
        assert InFlight(batch(1, spilled=True), 0, 1, 1, 8.0).weight_bytes == 200
        assert in_flight(3).weight_bytes == 606

    def test_a_part_has_the_stage_of_the_whole(self):
        piece = in_flight(3, stage=Stage.DUE)
        assert piece.take(2).stage is piece.stage is Stage.DUE


class TestStages:
    @pytest.mark.parametrize(("before", "after"), itertools.product(Stage, Stage), ids=lambda stage: stage.name.lower())
    def test_only_the_transitions_of_the_table_are_made(self, before, after):
        piece = in_flight(1, stage=before)
        if after in NEXT_STAGES[before]:
            piece.enter(after)
            assert piece.stage is after
        else:
            with pytest.raises(AssertionError, match=f"cannot become {after.name.lower()}"):
                piece.enter(after)

    def test_what_a_stage_says(self):
        pieces = {stage: in_flight(1, stage=stage) for stage in Stage}
        assert {stage for stage, piece in pieces.items() if piece.stored} == {Stage.STORED, Stage.DUE, Stage.TOLD}
        assert {stage for stage, piece in pieces.items() if piece.told} == {Stage.TOLD, Stage.DONE}

    def test_every_stage_leads_to_the_last(self):
        assert not NEXT_STAGES[Stage.DONE]
        assert all(Stage.DONE in NEXT_STAGES[stage] for stage in Stage if stage is not Stage.DONE)


class TestWindow:
    def test_it_counts_messages_and_iterates_over_pieces(self):
        window = Window()
        assert not window and window.oldest_segment() is None
        pieces = [in_flight(2, segment=4), in_flight(3, seq=3, segment=3), in_flight(1, seq=6, segment=5)]
        for piece in pieces:
            window.append(piece)
        assert len(window) == 6 and list(window) == pieces == list(window)
        assert window.oldest is pieces[0] and window.oldest_segment() == 3

    def test_the_oldest_leave_a_piece_at_a_time(self):
        window = Window()
        window.append(in_flight(3))
        window.append(in_flight(2, seq=4))
        first = window.pop(2)
        assert ((first.seq, first.count), len(window)) == ((1, 2), 3)
        rest = window.pop(9)
        assert ((rest.seq, rest.count), len(window)) == ((3, 1), 2)
        window.pop(2)
        assert not window


def test_repr():
    assert repr(batch(2)) == "<Batch of 2 from n: message00000, message00001>"
    assert repr(BroadcastProgress("m", 2)) == "<BroadcastProgress m: 0 delivered, 0 queued, 2 open>"
    assert repr(in_flight(2, seq=4)) == "<InFlight of 2 from 4 by DEALER, unstored>"
