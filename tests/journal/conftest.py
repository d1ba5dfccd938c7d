"""A place for a log, and logs that are open for writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zmqbus.journal.writer import Journal


@pytest.fixture
def path(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return str(tmp_path / "messages.log")


@pytest.fixture
def log(path: str) -> Iterator[Journal]:
    log = Journal(path)
    yield log
    log.close()


@pytest.fixture
def rotating(path: str) -> Iterator[Journal]:
    """A log that rotates after a few hundred bytes, so that a test has many segments."""
    log = Journal(path, segment_bytes=1000, keep=100)
    yield log
    log.close()
