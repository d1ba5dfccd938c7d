"""A data directory that is not there yet, and the umasks under which files have to come out private."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def data(tmp_path) -> str:
    return str(tmp_path / "data")


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids="umask {:03o}".format)
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)
