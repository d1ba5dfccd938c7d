"""Which program holds a port."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from zmqbus import holder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")])
def test_a_program_of_this_user_is_named(family: int, address: str) -> None:
    with socket.socket(family) as taken:
        taken.bind((address, 0))
        port = taken.getsockname()[1]
        assert holder.who_holds(port) == ""  # it takes no connections yet
        taken.listen()
        name = Path("/proc/self/comm").read_text().strip()
        assert holder.who_holds(port) == f"{name} (pid {os.getpid()})"
    assert holder.who_holds(port) == ""


@pytest.mark.parametrize(("uid", "name"), [(0, "root"), (4_000_000_123, "4000000123")])
def test_of_another_users_program_it_is_told_whose_it_is(monkeypatch: pytest.MonkeyPatch, uid: int, name: str) -> None:
    monkeypatch.setattr(holder, "_socket", lambda port: (uid, "1"))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert holder.who_holds(9473) == f"a program of user {name}"
