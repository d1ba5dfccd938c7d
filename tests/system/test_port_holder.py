"""Which program holds a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zmqbus.errors import PortHeld
from zmqbus.system import port_holder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")])
def test_program_of_this_user_is_named(family: int, address: str) -> None:
    with socket.socket(family) as taken:
        taken.bind((address, 0))
        port = taken.getsockname()[1]
        assert port_holder.holder_of(port) == ""  # it takes no connections yet
        taken.listen()
        name = Path("/proc/self/comm").read_text().strip()
        assert port_holder.holder_of(port) == f"{name} (pid {os.getpid()})"
    assert port_holder.holder_of(port) == ""


@pytest.mark.parametrize(("uid", "name"), [(0, "root"), (4_000_000_123, "4000000123")])
def test_user_of_another_program_is_named(monkeypatch: pytest.MonkeyPatch, uid: int, name: str) -> None:
    monkeypatch.setattr(port_holder, "_socket", lambda port: (uid, "1"))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert port_holder.holder_of(9473) == f"a program of user {name}"


def test_broker_of_another_data_directory_is_named() -> None:
    """It is well, and nothing to be ended lightly."""
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "zmqbus.broker.shell.daemon"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        port = int(process.stdout.readline())
        assert port_holder.holder_of(port) == f"a zmqbus broker of another data directory (pid {process.pid})"
        assert "end it" not in str(PortHeld(port, port_holder.holder_of(port)))
        process.stdin.close()
