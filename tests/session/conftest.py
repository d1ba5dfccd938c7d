"""A data directory of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def data(tmp_path: Path) -> str:
    """The path of a data directory, which does not exist yet."""
    return str(tmp_path / "data")
