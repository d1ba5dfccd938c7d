"""Floods: the broker's memory stays below a bound during each flood, and shrinks afterwards.

The resident memory of the broker is sampled all the time by a thread of the test.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

from tests.real.conftest import Bus
from tests.real.test_hostile import DEAF, GREETING, VERB, Attacker, Stage
from zmqbus.wire import codec, verbs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what a connection has sent"),
]

MIB = 1 << 20
#: The most memory that the broker may have during a flood, and afterwards.
MAX_BYTES = 200 * MIB
AFTER_BYTES = 60 * MIB
#: How long each flood goes on, unless it is held back or closed.
FLOOD_S = 2.0
DEADLINE_S = 20.0


class Watch:
    """Records the largest resident memory of a process."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._done = threading.Event()
        self.peak_bytes = 0
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not self._done.wait(0.005):
                self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture
def stage(bus: Bus) -> Iterator[Stage]:
    stage = Stage(bus)
    yield stage
    stage.close()


def until_closed(dealers: list[zmq.Socket[bytes]], say: Callable[[zmq.Socket[bytes]], object]) -> None:
    """Sends over all of these sockets in turn, for the time of a flood."""
    end_s = time.monotonic() + FLOOD_S
    for dealer in dealers:
        dealer.sndtimeo = 200
    while time.monotonic() < end_s:
        for dealer in dealers:
            with contextlib.suppress(zmq.Again):
                say(dealer)


def nested(size_bytes: int) -> bytes:
    """Returns a frame of nested small arrays."""
    row = b"\xdc\x08\x00" + b"\x92\x91\x90\x90" * 2_048
    count = size_bytes // len(row)
    return b"\xdc" + count.to_bytes(2, "big") + row * count


def nested_arrays(attacker: Attacker) -> None:
    frame = nested(verbs.MAX_FRAME_BYTES - 10_000)
    peers = [attacker.enter(verbs.Role.GUEST, sndhwm=2) for _ in range(2)]
    until_closed(peers, lambda dealer: dealer.send(frame, copy=False))


def nested_arrays_within_the_limit(attacker: Attacker) -> None:
    frame = nested(verbs.MAX_HEADER_BYTES - 10_000)
    peers = [attacker.enter(verbs.Role.GUEST, sndhwm=10) for _ in range(2)]
    until_closed(peers, lambda dealer: dealer.send(frame, copy=False))


def handshakes_without_an_end(attacker: Attacker) -> None:
    """Handshakes without a key, each left unfinished."""
    size = verbs.MAX_FRAME_BYTES - 1_000
    for number in range(40):
        connection = attacker.tcp(attacker.ports[number % 2])
        with contextlib.suppress(OSError):
            connection.sendall(GREETING)
            connection.sendall(b"\x06" + struct.pack(">Q", size) + bytes(size - 10))


def subscriptions(attacker: Attacker) -> None:
    deaf = attacker.socket(zmq.XSUB, attacker.pub_port, sndhwm=1_000)
    deaf.sndtimeo = 200
    pad = os.urandom(32).hex().encode()
    end_s = time.monotonic() + FLOOD_S
    with contextlib.suppress(zmq.Again):
        for number in range(56 * MIB // 80):
            deaf.send(b"\1#%d%s\0" % (number, pad))
            if time.monotonic() > end_s:
                return


def lists_that_nobody_reads(attacker: Attacker) -> None:
    long = "x" * 4_000
    for number in range(100):
        dealer = attacker.socket()
        session_id = verbs.new_session_id()
        hello = attacker.hello(1, name=f"s{number}", session_id=session_id, cwd=long, project=long, named=False)
        attacker.say(dealer, hello)
        attacker.hear(dealer)
    peers = [attacker.enter(**DEAF) for _ in range(20)]
    ask = msgpack.packb([(VERB["List"], "r", True, "")] * 50)
    until_closed(peers, lambda dealer: dealer.send(ask))


def figures_that_nobody_reads(attacker: Attacker) -> None:
    peers = [attacker.enter(**DEAF) for _ in range(20)]
    ask = msgpack.packb([(VERB["Status"], "r")] * 500)
    until_closed(peers, lambda dealer: dealer.send(ask))


def refusals_that_nobody_reads(attacker: Attacker) -> None:
    peers = [attacker.enter(verbs.Role.GUEST, **DEAF) for _ in range(20)]
    send = (VERB["Send"], 0, "nobody-here", 0, None, False, None, None, "x", b"")
    say = msgpack.packb([send] * 500)
    until_closed(peers, lambda dealer: dealer.send(say))


def large_bodies(attacker: Attacker) -> None:
    peers = [attacker.enter(verbs.Role.GUEST, sndhwm=4) for _ in range(4)]
    number = iter(range(10**9))

    def say(dealer: zmq.Socket[bytes]) -> None:
        send = verbs.Send.one(f"large{next(number):07}", 0, "nobody", 0, None, False, bytes(verbs.MAX_BODY_BYTES))
        dealer.send_multipart(codec.encode([send]), copy=False)

    until_closed(peers, say)


FLOODS = [
    nested_arrays,
    nested_arrays_within_the_limit,
    handshakes_without_an_end,
    subscriptions,
    lists_that_nobody_reads,
    figures_that_nobody_reads,
    refusals_that_nobody_reads,
    large_bodies,
]


@pytest.mark.parametrize("attack", FLOODS, ids=lambda attack: attack.__name__)
def test_flood_grows_the_broker_within_its_bound_and_not_for_good(
    stage: Stage, attack: Callable[[Attacker], None]
) -> None:
    with Watch(stage.broker) as watch:
        attack(stage.attacker)

        stage.prove(MAX_BYTES)
    assert watch.peak_bytes < MAX_BYTES, f"{watch.peak_bytes >> 20} MiB"
    stage.attacker.close()
    deadline_s = time.monotonic() + DEADLINE_S
    while stage.broker.memory_info().rss >= AFTER_BYTES:
        assert time.monotonic() < deadline_s, f"{stage.broker.memory_info().rss >> 20} MiB"
        time.sleep(0.05)
