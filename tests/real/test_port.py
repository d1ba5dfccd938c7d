"""Another program takes the port, after the death of a broker or before the first one.

The well-known port is one for the whole machine, so tests with it run in a network namespace: each test whose name ends
in `_alone` is run by the one above it, in a process that has nothing but a loopback device.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.real.conftest import LONG_DEADLINE_S, ROOT, Bus, ListenerProcess, wait_until
from zmqbus.settings import DEFAULT_PORT

pytestmark = pytest.mark.slow

MARK = "ZMQBUS_TEST_NETWORK"
alone = pytest.mark.skipif(MARK not in os.environ, reason="run by its namesake, in a network of its own")
NETWORK = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@functools.cache
def has_networks() -> bool:
    try:
        return subprocess.run([*NETWORK, "true"], capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def play(name: str) -> None:
    """Runs `<name>_alone` of this file in a network namespace."""
    if not has_networks():
        pytest.skip("this system lets nobody make a network")
    done = subprocess.run(
        [*NETWORK, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{name}_alone"],
        env={**os.environ, MARK: "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG_DEADLINE_S * 2,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


class Holder:
    """Listens on a port, as another program might."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self._socket.listen(1000)

    def close(self) -> None:
        self._socket.close()


def take(port: int) -> Holder | None:
    try:
        return Holder(port)
    except OSError:
        return None


def kill_broker(bus: Bus, listeners: list[ListenerProcess]) -> Holder:
    """Kills the broker while its listeners are stopped, and takes its port before they can."""
    broker = psutil.Process(bus.broker_pid())
    port = bus.port
    for listener in listeners:
        listener.send_signal(signal.SIGSTOP)
    broker.kill()
    holder: Holder = wait_until(lambda: take(port), "the port is free")
    for listener in listeners:
        listener.send_signal(signal.SIGCONT)
    return holder


# --- a port that somebody chose ---


def test_listeners_wait_for_a_held_chosen_port(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    auth_id = auth.session_id
    holder = kill_broker(bus, [auth, pay])
    try:
        for listener in (auth, pay):
            line = listener.wait_for(rf"^\[inter-session\] port {bus.port} is held by another program; ")
            assert re.search(rf"; it is \S.* \(pid {os.getpid()}\); end it, or choose .*; this waits until", line), line
        refused = bus.send("--to", "pay", "--text-file", "-", owner=auth, input="now?")
        assert refused.returncode == 1 and f"port {bus.port} is held by another program; it is" in refused.stderr
    finally:
        holder.close()
    bus.deliver("pay", "and we are back", owner=auth)
    pay.wait_message("and we are back", timeout=LONG_DEADLINE_S)
    wait_until(lambda: bus.states() == {"auth": "live", "pay": "live"}, "both are back", LONG_DEADLINE_S)
    assert auth.session_id == auth_id
    for listener in (auth, pay):
        assert listener.status is None and listener.errors == []
        assert sum("is held" in line for line in listener.lines) == 1


# --- the well-known port, which nobody chose ---


@pytest.fixture
def well_known(bus: Bus) -> Iterator[Bus]:
    """A bus on the well-known port, in the network namespace of this test."""
    bus.port = DEFAULT_PORT
    make_env = bus._make_env
    bus._make_env = lambda extra: make_env({"INTER_SESSION_LOOPBACK_ONLY": "1", **(extra or {})})
    yield bus


def serving_port(bus: Bus) -> int | None:
    """Returns the port of the data directory's pid file, or None."""
    names = [path.name for path in Path(bus.data_dir).glob("server.*.pid")]
    return int(names[0].split(".")[1]) if len(names) == 1 else None


def test_replacement_broker_takes_another_port() -> None:
    play("test_replacement_broker_takes_another_port")


@alone
def test_replacement_broker_takes_another_port_alone(well_known: Bus) -> None:
    bus = well_known
    auth, pay = bus.listener("auth"), bus.listener("pay")
    holder = kill_broker(bus, [auth, pay])
    wait_until(lambda: serving_port(bus) not in (None, DEFAULT_PORT), "another port is named")
    port = serving_port(bus)
    wait_until(lambda: auth.state.get("port") == port and pay.state.get("port") == port, "both are there")
    # Every command finds it, even without a session or with the well-known port.
    bus.deliver("pay", "over another port", owner=auth)
    pay.wait_message("over another port")
    bus.deliver("auth", "from a stranger", "--port", str(DEFAULT_PORT))
    auth.wait_message("from a stranger")
    assert f"port={port}\n" in bus.run("list.py", "--self", owner=auth).stdout
    assert f"port={port}\n" in bus.zmqbus("broker", "--status").stdout
    assert f"port {port}, pid" in bus.zmqbus("doctor", owner=auth).stdout
    told = [line for one in (auth, pay) for line in one.lines if "is held by" in line]
    assert len(told) == 1 and f"port {DEFAULT_PORT} is held by" in told[0] and f"on port {port}" in told[0], told
    # When the holder and this broker are gone, the next broker takes the well-known port again.
    holder.close()
    for one in (auth, pay):
        one.send_signal(signal.SIGSTOP)
    bus.port = port or 0
    psutil.Process(bus.broker_pid()).kill()
    for one in (auth, pay):
        one.send_signal(signal.SIGCONT)
    wait_until(lambda: auth.state.get("port") == pay.state.get("port") == DEFAULT_PORT, "back", LONG_DEADLINE_S)
    bus.deliver("pay", "over the usual port", owner=auth)
    pay.wait_message("over the usual port")
    assert (auth.status, pay.status) == (None, None)


def test_first_broker_takes_another_port() -> None:
    play("test_first_broker_takes_another_port")


@alone
def test_first_broker_takes_another_port_alone(well_known: Bus) -> None:
    bus = well_known
    holder = Holder(DEFAULT_PORT)
    try:
        auth = bus.listener("auth")
        port = auth.state["port"]
        assert port != DEFAULT_PORT and serving_port(bus) == port
        bus.deliver("auth", "hello")
        auth.wait_message("hello")
        stopped = bus.zmqbus("broker", "--stop")
        assert stopped.returncode == 0 and "stopped" in stopped.stdout, stopped
    finally:
        holder.close()
