"""The systems that are compared, each as a sender, a receiver, and what is between them.

`SYSTEMS` has them by name. One that is not installed says so (`missing`) and is left out, by name; so is one that
fails (`crew.PeerFailed`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import procfs
from benchmarks.crew import Actor, Done, actors
from benchmarks.stage import free_port, stage, start_broker


class Pass(NamedTuple):
    """So many messages went from the sender to the receiver."""

    value: Any  #: what the receiver or the sender has measured
    confirmed_s: float  #: from the first send until the sender knew that all had come, or were safe
    cpu_s: dict[str, float]  #: processor time of "sender", "middle" and "receiver"


class Duo:
    """A sender and a receiver, connected; what is between them is a process that serves by itself."""

    def __init__(self, sender: Actor, receiver: Actor, middle_pid: int) -> None:
        self.sender = sender
        self.receiver = receiver
        self.middle_pid = middle_pid

    def exchange(self, count: int, size_bytes: int) -> Pass:
        """Pipelined: `value` is seconds from the first send until the receiver has read all of them."""
        got, sent, middle_s = self._both(
            ("receive", {"count": count, "size_bytes": size_bytes}),
            ("send", {"count": count, "size_bytes": size_bytes}),
            forwarded=count + 1,
            size_bytes=size_bytes,
        )
        began_s, confirmed_s = sent.value
        return Pass(got.value - began_s, confirmed_s - began_s, self._cpu(got, sent, middle_s))

    def one_way(self, count: int, pause_s: float) -> Pass:
        """At a gentle pace: `value` is how long each was under way, in seconds."""
        got, sent, middle_s = self._both(
            ("receive_stamped", {"count": count}), ("send_stamped", {"count": count, "pause_s": pause_s}), count
        )
        return Pass(got.value, 0.0, self._cpu(got, sent, middle_s))

    def round_trips(self, count: int, pause_s: float) -> Pass:
        """At a gentle pace: `value` is how long each question took until its answer was there, in seconds."""
        got, sent, middle_s = self._both(
            ("echo", {"count": count}), ("ask", {"count": count, "pause_s": pause_s}), 2 * count
        )
        return Pass(sent.value, 0.0, self._cpu(got, sent, middle_s))

    def _both(
        self,
        receiving: tuple[str, dict[str, Any]],
        sending: tuple[str, dict[str, Any]],
        forwarded: int,
        size_bytes: int = 0,
    ) -> tuple[Done, Done, float]:
        with self._middle(forwarded, size_bytes) as middle_s:
            self.receiver.begin(receiving[0], **receiving[1])
            self.sender.begin(sending[0], **sending[1])
            sent = self.sender.finish()
            got = self.receiver.finish()
        return got, sent, middle_s()

    @contextlib.contextmanager
    def _middle(self, count: int, size_bytes: int) -> Iterator[Callable[[], float]]:
        before_s = procfs.cpu_s(self.middle_pid)
        yield lambda: procfs.cpu_s(self.middle_pid) - before_s

    @staticmethod
    def _cpu(got: Done, sent: Done, middle_s: float) -> dict[str, float]:
        return {"sender": sent.cpu_s, "middle": middle_s, "receiver": got.cpu_s}


class _WithForwarder(Duo):
    """What is between them has to be told how much there is to do."""

    def __init__(self, sender: Actor, receiver: Actor, forwarder: Actor) -> None:
        super().__init__(sender, receiver, forwarder.pid)
        self._forwarder = forwarder

    @contextlib.contextmanager
    def _middle(self, count: int, size_bytes: int) -> Iterator[Callable[[], float]]:
        self._forwarder.begin("forward", count=count, size_bytes=size_bytes)
        done: list[Done] = []
        yield lambda: done[0].cpu_s
        done.append(self._forwarder.finish())


class System(NamedTuple):
    """One of those that are compared."""

    name: str
    promises: str  #: what it does for a message, in a few words
    modules: tuple[str, ...]  #: python modules that it needs
    programs: tuple[str, ...]  #: programs that it needs
    open: Callable[[], contextlib.AbstractContextManager[Duo]]

    def missing(self) -> str:
        """What it lacks here; "" if nothing."""
        modules = [name for name in self.modules if importlib.util.find_spec(name) is None]
        programs = [name for name in self.programs if shutil.which(name) is None]
        return f"{', '.join(programs + modules)} not installed" if modules or programs else ""


@contextlib.contextmanager
def _ours() -> Iterator[Duo]:
    module = "benchmarks.peers.zmqbus_"
    with stage() as environ:
        broker = start_broker(environ)
        with actors((module, "Receiver", {}), (module, "Sender", {}), environ=environ) as (receiver, sender):
            yield Duo(sender, receiver, broker)


@contextlib.contextmanager
def _forwarder() -> Iterator[Duo]:
    from benchmarks.peers.forwarder import curve_keys

    module = "benchmarks.peers.forwarder"
    where = {"port": free_port(), "keys": curve_keys()}
    parts = [(module, role, where) for role in ("Forwarder", "Receiver", "Sender")]
    with stage() as environ, actors(*parts, environ=environ) as (forwarder, receiver, sender):
        yield _WithForwarder(sender, receiver, forwarder)


OURS = "zmqbus"
FLOOR = "forwarder"

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(OURS, "encrypted, journalled, acknowledged by the receiver", (), (), _ours),
        System(FLOOR, "bare ZeroMQ: encrypted; nothing kept, nothing acknowledged", (), (), _forwarder),
    )
}
