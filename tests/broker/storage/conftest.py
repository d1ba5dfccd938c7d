"""Fixtures of the tests of stores: a data directory with a journal, and a filled database in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.storekit import Bench, Kept, fill


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data")
    yield bench
    bench.journal.close()


@pytest.fixture
def kept(bench: Bench) -> Kept:
    """Content of the bench's database, which is closed."""
    store = bench.open()
    kept = fill(store, bench)
    store.close()
    return kept
