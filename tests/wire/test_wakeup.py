"""Signals that end a poll."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

import pytest

from zmqbus.wire.wakeup import ENDING, Wakeup


def readable(descriptor: int, timeout_s: float = 0.0) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


@pytest.fixture(autouse=True)
def heeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restores the default handlers: the parent of the tests may ignore some signals."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    """`nohup`, and a shell that starts something in its background."""
    signal.signal(number, signal.SIG_IGN)
    with Wakeup() as wakeup:
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN and wakeup.caught is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert readable(wakeup.fd, 5.0) and wakeup.caught is signal.SIGTERM
    assert signal.getsignal(number) is signal.SIG_IGN


def test_sigterm_always_ends_the_program() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Wakeup() as wakeup:
        os.kill(os.getpid(), signal.SIGTERM)
        assert wakeup.caught is signal.SIGTERM


@pytest.mark.parametrize("number", ENDING)
def test_signal_makes_the_descriptor_readable(number):
    with Wakeup() as wakeup:
        assert wakeup.caught is None and not readable(wakeup.fd)
        os.kill(os.getpid(), number)
        assert readable(wakeup.fd, 5.0)
        assert wakeup.caught is number


def test_signal_ends_a_waiting_poll():
    with Wakeup() as wakeup:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        poller = select.poll()
        poller.register(wakeup.fd, select.POLLIN)
        os.kill(os.getpid(), signal.SIGTERM)
        assert poller.poll(20_000)


def test_handlers_are_restored():
    before = {number: signal.getsignal(number) for number in ENDING}
    with Wakeup():
        assert all(signal.getsignal(number) is not before[number] for number in ENDING)
    assert {number: signal.getsignal(number) for number in ENDING} == before
    with pytest.raises(ValueError), Wakeup():
        raise ValueError
    assert {number: signal.getsignal(number) for number in ENDING} == before


def test_descriptors_are_closed_and_not_inherited():
    with Wakeup() as wakeup:
        descriptor = wakeup.fd
        assert not os.get_inheritable(descriptor) and not os.get_blocking(descriptor)
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_flood_of_signals_is_harmless():
    with Wakeup() as wakeup:
        for _ in range(200):
            os.kill(os.getpid(), signal.SIGHUP)
        assert wakeup.caught is signal.SIGHUP and readable(wakeup.fd)


def test_repr():
    assert repr(Wakeup()) == "<Wakeup fd=-1 caught=None>"
