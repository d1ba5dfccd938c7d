"""Drives a `Transport` for a program: one thread waits for what comes, any thread may speak.

Theory of operation
===================

ZeroMQ's sockets are for one thread at a time. Here a lock sees to that, and it is never held while anybody waits: the
I/O thread sleeps in `poll` on the sockets' descriptors and takes the lock when something has come; whoever
has something to say takes it, says it on the spot, and deals with whatever has come meanwhile. So a message goes out
without a change of threads. (A descriptor of ZeroMQ's is readable when there is something to look at, not as long as
there is something to read: whoever has touched a socket has to look until nothing is left. `Transport` knows which.)

*Streams.* Whoever says one thing after the other, with others still under way, would have each go out by itself, for
ten times what it costs together with others. So what is said in a stream is put down, and the thread, which is woken
for it, says it together with what was put down until it gets hold of the interpreter; or whoever puts the last of
`GATHER` down does, or whoever waits (`hurry`): whichever is first. Nothing waits for more to come, and what is alone
goes out at once.

What the transport brings is given to the `Application` under the lock, and acted upon outside of it, by the thread:
futures are resolved by `later`, since their callbacks are foreign code. A callback may call the thread's methods, but may
not wait for it (`waits_for_itself`); it may raise anything, and the thread goes on; and a caller of `say` never runs
callbacks, since it may hold a lock that they want.

The thread is a daemon, and joined by `close`, which an exit handler calls for whoever forgot; where the owner of all
this is collected before that, `close_soon` ends the thread. However it ends, it tells the application. It does not
survive a fork; nobody who calls in a child process gets further than `check`.
"""

from __future__ import annotations

import atexit
import math
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet

from zmqbus.client import core
from zmqbus.client.transport import Transport
from zmqbus.errors import ForkedBus, NotConnected, ZmqbusError
from zmqbus.system import descriptors
from zmqbus.wire import verbs

#: Looks at the sockets in a row, before others may take the lock.
TURNS = 16
#: So much of a stream is gathered at most: beyond it a message costs no less for being with others.
GATHER = 128
#: It is a stream while anything is on the way, and no longer than this after the last was said, s: some turns of a
#: scheduler that has others to care for. (With 200 µs every message went out by itself on a busy machine, and kept it
#: busy by that.)
STREAM_S = 0.01
#: How long a transport that is closed waits for the broker to have taken what was said last, and the question for that.
ARRIVAL_S = 0.5
ARRIVAL_REF = "arrived"
#: The longest sleep: poll() takes milliseconds, and a clock that was set wrong should not matter for long.
MAX_SLEEP_S = 60.0


#: All drivers of this process: each has to know when it finds itself in a child.
_HERE: WeakSet[IoThread] = WeakSet()


def _note_fork() -> None:
    for io in _HERE:
        io.forked = True


os.register_at_fork(after_in_child=_note_fork)


class Application(Protocol):
    """What an I/O thread is for. The first three are called under its lock: they must not block, nor call it. The others
    are called by its thread, without the lock."""

    def deal(self, effects: Sequence[core.Effect]) -> None:
        """Takes what the transport has brought, in order."""

    def speak(self, client: core.ClientCore) -> list[core.Effect]:
        """Says what there is to say now; asked whenever something has been dealt with."""

    def due_s(self) -> float | None:
        """When `ring` wants to be called, on the monotonic clock."""

    def ring(self) -> None:
        """The time has come."""

    def ended(self, error: ZmqbusError) -> None:
        """The connection has ended, as asked for (`NotConnected`) or not. Called once, and last."""


class IoThread:
    """A transport with a thread. Thread-safe."""

    def __init__(self, transport: Transport, application: Application) -> None:
        self._transport = transport
        self._application = application
        self._lock = threading.Lock()
        self._later: deque[Callable[[], None]] = deque()
        self._pid = os.getpid()
        #: This is a child of the process that opened it. Nothing here may be touched then: the locks are as they were
        #: when the process was forked.
        self.forked = False
        _HERE.add(self)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_lock = threading.Lock()  # or a wake could be written to what has got the pipe's number since
        self._asleep_until_s = 0.0  # until when the thread sleeps, or is about to; 0: it does not
        self._gathering = False  # something was put down, and the thread has been woken for it
        self._said_s = 0.0  # when somebody said something last
        self._closing = False
        self._reason: ZmqbusError | None = None  # of an end that was not asked for
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<IoThread of {self._transport!r}{', closed' if self._closing else ''}>"

    # --- life

    def open(self) -> core.Welcomed:
        """Connects, in the calling thread; returns when the broker has welcomed it. Raises why it cannot."""
        try:
            self._transport.open()
            welcomed: core.Welcomed | None = None
            while welcomed is None:
                for effect in self._transport.pump(None):
                    match effect:
                        case core.Welcomed():
                            welcomed = effect
                        case core.Closed(reason):
                            raise reason or NotConnected("the session was disconnected; connect anew")
                        case _:
                            self._application.deal((effect,))
        except BaseException:
            self._closing = True
            self._dispose()
            raise
        self._transport.patient = True  # from here on a broker that goes away is waited for, however long it takes
        self._transport.waits_to_launch = False  # and started, if need be, while others have something to say
        self._thread = threading.Thread(
            target=self._run, name=f"zmqbus {self._transport.core.persona.name}", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)
        return welcomed

    def close(self) -> None:
        """Leaves in good order: what has been said is sent, and the thread has ended when this returns, unless it is
        the thread that calls. Idempotent; takes at most a second if the broker hangs, and as long as callbacks do."""
        if self.forked:
            return  # the sockets are the parent's
        self._closing = True  # first of all: an interrupt from here on costs the wait, and not the end
        with self._lock:
            self._reason = None  # from here on it is closed, and no matter what came before
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        atexit.unregister(self.close)

    def close_soon(self) -> None:
        """As `close`, for a garbage collector, which may come at any point of any thread: waits for nobody, and takes
        no lock that may be held. The thread ends by itself, in good order."""
        if self.forked:
            return
        self._closing = True
        if self._wake_lock.acquire(blocking=False):  # else somebody is just waking it, or it has ended
            try:
                self._write_wake()
            finally:
                self._wake_lock.release()

    @property
    def waits_for_itself(self) -> bool:
        """Whether the caller is this thread: what it waited for here would never come."""
        return threading.current_thread() is self._thread

    def check(self) -> None:
        """Raises `ForkedBus` in a child process, `NotConnected` when closed, and what has ended the transport."""
        if self.forked:
            raise ForkedBus(
                f"this bus was opened by process {self._pid}, and this is a child of it; connect anew in the child"
            )
        if self._reason is not None:
            raise self._reason
        if self._closing:
            raise closed()

    # --- for any thread

    def say(self, speak: Callable[[core.ClientCore], list[core.Effect]] | None = None) -> None:
        """Has the core say something, and the application what it has to say, now. What `speak` raises goes to the
        caller. Raises as `check`."""
        self.check()  # before the lock, which nobody will release in a child process
        with self._lock:
            self.check()
            transport, application = self._transport, self._application
            # guards: I/O thread [effects = => self._gathering = False; effects =]
            effects = speak(transport.core) if speak is not None else []
            self._gathering = False  # not before: if that raises, the thread says what was put down
            try:
                if effects:
                    self._carry_out(effects)
                self._carry_out(application.speak(transport.core))
                busy = self._look(transport.overlooked())
            except Exception as error:
                self._over(error)
                busy = True
            if self._asleep_until_s and (busy or self._later or self._is_due_earlier()):
                self._wake()
            self._said_s = time.monotonic()

    def say_soon(self, gathered: int) -> None:
        """As `say`, for what the application has put down, so much by now; in a stream the thread says it, together
        with what is put down until it gets to that."""
        # guards: I/O thread [not self._transport.core.unconfirmed or =>]
        # guards: I/O thread [time.monotonic() - self._said_s > STREAM_S => True]
        # guards: I/O thread [or time.monotonic() - self._said_s > STREAM_S =>]
        alone = not self._transport.core.unconfirmed or time.monotonic() - self._said_s > STREAM_S
        if alone or gathered >= GATHER:  # guards: I/O thread [or gathered >= GATHER =>]
            self.say()
        elif not self._gathering:
            self._gathering = True
            if self._asleep_until_s:  # guards: I/O thread
                self._wake()

    def hurry(self) -> None:
        """Somebody waits for what becomes of it: what was put down is said now."""
        if self._gathering:
            try:
                self.say()  # guards: I/O thread
            except ZmqbusError:
                pass  # it has ended, and so will what is waited for

    def nudge(self, due_s: float) -> None:
        """The application's `due_s` has come nearer: the thread is woken if it would sleep for longer."""
        if due_s < self._asleep_until_s:
            self._wake()

    def later(self, act: Callable[[], None]) -> None:
        """Has the thread do this when the lock is free. For `deal`, `speak`, `ring` and `ended`."""
        self._later.append(act)

    # --- the thread

    def _run(self) -> None:
        try:
            self._drive()
        except Exception as error:
            with self._lock:
                self._over(error)
        try:
            self._dispose()
        finally:
            self._run_later()
            self._application.ended(self._reason or closed())
            self._run_later()
            atexit.unregister(self.close)

    def _drive(self) -> None:
        poller = select.poll()
        poller.register(self._wake_reader, select.POLLIN)
        watched: tuple[int, ...] = ()
        ready: Collection[int] = ()
        transport = self._transport
        until_s = 0.0
        while True:
            with self._lock:
                if self._closing:
                    return
                # Before the application is asked when it is due: who nudges after that has to see that it sleeps.
                self._asleep_until_s = math.inf
                if self._gathering:
                    self._gathering = False
                    self._carry_out(self._application.speak(self._transport.core))  # guards: I/O thread
                    self._said_s = time.monotonic()
                busy = self._look(ready, always=True)
                descriptors = transport.descriptors()
                # What was reckoned before will do as long as the session is there and nobody has woken the thread: to
                # the transport, time only gets longer by sending, and an earlier deadline of the application wakes it.
                known = transport.core.phase is core.Phase.READY and self._wake_reader not in ready
                if busy:
                    until_s = 0.0
                elif not known or until_s <= time.monotonic():
                    until_s = self._until_s()
                self._asleep_until_s = until_s
            self._run_later()
            if descriptors is not watched:
                for descriptor in watched:
                    poller.unregister(descriptor)
                for descriptor in descriptors:
                    poller.register(descriptor, select.POLLIN)
                ready = watched = descriptors
                continue  # something may have come before they were watched
            # Rounded up: a poll that ends a fraction early would turn into a spin until the time has come.
            sleep_ms = int((until_s - time.monotonic()) * 1000 + 0.999) if until_s else 0
            ready = [descriptor for descriptor, _ in poller.poll(max(0, sleep_ms))]
            if self._wake_reader in ready:
                self._drain_wakes()
            self._asleep_until_s = 0.0
            due_s = self._application.due_s()
            if due_s is not None and due_s <= time.monotonic():
                until_s = 0.0
                self._application.ring()

    def _look(self, ready: Collection[int], *, always: bool = False) -> bool:
        """Deals with what has come on these descriptors, and with what is overlooked; `always`: with the clock, too.
        Whether it may have left something. Under the lock."""
        transport = self._transport
        for _ in range(TURNS):
            if not ready and not always:
                return False
            always = False
            effects = transport.turn(ready)
            if effects:
                self._deal(effects)
                self._carry_out(self._application.speak(transport.core))
            ready = transport.overlooked()
        return bool(ready)

    def _carry_out(self, effects: list[core.Effect]) -> None:
        self._deal(self._transport.perform(effects))

    def _is_due_earlier(self) -> bool:
        """Whether anything is due before the thread wakes up."""
        if self._transport.core.phase is not core.Phase.READY:
            return self._until_s() < self._asleep_until_s
        # To the transport, time only gets longer by speaking.
        due_s = self._application.due_s()
        return due_s is not None and due_s < self._asleep_until_s

    def _until_s(self) -> float:
        """Until when there is nothing to do, if nothing comes. Under the lock."""
        until_s = time.monotonic() + max(0.0, min(self._transport.wait_s(), MAX_SLEEP_S))
        due_s = self._application.due_s()
        return until_s if due_s is None else min(until_s, due_s)

    def _deal(self, effects: list[core.Effect]) -> None:
        for number, effect in enumerate(effects):
            if isinstance(effect, core.Closed):
                self._application.deal(effects[:number])
                raise effect.reason or NotConnected("the session was disconnected by a command; connect anew")
            if effect.__class__ is core.Welcomed:
                self._wake()  # whoever sleeps does not watch the new descriptors
        if effects:
            self._application.deal(effects)

    def _run_later(self) -> None:
        while self._later:
            act = self._later.popleft()
            try:
                act()
            except BaseException:  # somebody's callback: it must not end the thread that all others rely on
                hook_args = (*sys.exc_info(), threading.current_thread())
                threading.excepthook(threading.ExceptHookArgs(hook_args))

    def _over(self, error: Exception) -> None:
        """The transport has come to an end. Under the lock."""
        if self._closing:
            return
        if getattr(error, "errno", None) in descriptors.SHORTAGE:
            error = descriptors.shortage("the bus", error)
        if not isinstance(error, ZmqbusError):  # a fault of this package: who waits must not wait for ever
            failed = ZmqbusError(f"the bus has failed ({type(error).__name__}: {error}); connect anew, and report this")
            failed.__cause__ = error
            error = failed
        self._closing = True
        self._reason = error

    def _dispose(self) -> None:
        with self._lock:
            try:
                # What the application was going to say together with what follows is said now: nothing does.
                self._transport.perform(self._application.speak(self._transport.core))
                self._see_it_arrive()
                self._transport.perform(self._transport.core.bye())
                self._transport.close()
            finally:
                with self._wake_lock:
                    os.close(self._wake_reader)
                    os.close(self._wake_writer)
                    self._wake_writer = -1

    def _see_it_arrive(self) -> None:
        """Waits until the broker has taken whatever nobody has confirmed yet, for `ARRIVAL_S` at most: it answers a
        question behind all that. Without this, what is under way is lost if something of the broker's comes meanwhile:
        a TCP connection that is closed with something unread is reset, and takes along what the other end has not read.
        """
        transport = self._transport
        end_s = time.monotonic() + ARRIVAL_S
        if not transport.core.unconfirmed or self._reason is not None:
            return
        effects = transport.core.request(verbs.Status(ARRIVAL_REF))
        with suppress(ZmqbusError):  # there is no broker any more
            found = transport.perform(effects)
            while transport.core.phase is core.Phase.READY and (left_s := end_s - time.monotonic()) > 0:
                found += transport.pump(left_s)
                self._application.deal(found)
                if any(isinstance(one, core.Response) and one.ref == ARRIVAL_REF for one in found):
                    return
                found = []

    def _wake(self) -> None:
        with self._wake_lock:
            self._write_wake()

    def _write_wake(self) -> None:
        try:
            if self._wake_writer >= 0:
                os.write(self._wake_writer, b"\0")
        except BlockingIOError:
            pass  # it has been woken often enough

    def _drain_wakes(self) -> None:
        try:
            while os.read(self._wake_reader, 4096):
                pass
        except BlockingIOError:
            pass


def closed() -> NotConnected:
    """The error of whoever wants something of an I/O thread that was closed."""
    return NotConnected("the bus is closed; open another one with zmqbus.connect()")
