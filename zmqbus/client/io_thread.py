"""The thread of a connection: waits for input, while any thread of the program may send.

Theory of operation
===================

ZeroMQ's sockets are for one thread at a time. A lock sees to that, and nobody waits while holding it: the I/O thread
sleeps in `poll` on the sockets' descriptors and takes the lock when there is input; a thread that sends takes the lock,
sends on the spot, and handles the input that has come meanwhile. So a message goes out without a switch of threads. (A
ZeroMQ descriptor is edge-triggered: after using a socket, read until it is empty. `Transport` knows which are not.)

*Streams.* A thread that sends one message after the other, with earlier ones under way, would have each go out alone,
for ten times the cost of sending them together. So messages of a stream are put down. The first of these sends
them: the I/O thread, which is woken for that, once it gets hold of the interpreter; the thread that puts down the last
of `GATHER`; or a thread that waits for an outcome (`flush`). No message waits for more to come, and a single one goes
out at once.

*Callbacks.* The application gets effects under the lock, and acts on them outside of it, in the I/O thread: futures end
there (`call_later`), since their callbacks are foreign code. A callback may use the bus, but not wait for it
(`is_current_thread`). It may raise anything, and the thread goes on. A thread that sends never runs callbacks, since it
may hold a lock that they want.

*End.* The thread is a daemon. `close` joins it, and an exit handler calls `close` for a program that does not; where
the bus is garbage-collected before that, `close_soon` ends the thread. However it ends, the application is notified. It
does not survive a fork: in a child process, `check` refuses every call.
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

#: Reads of the sockets in a row before other threads may take the lock.
TURNS = 16
#: Messages of a stream that are sent together at most: with more, a message costs no less.
GATHER = 128
#: A stream lasts while messages are unconfirmed, and no longer than this after the last one, s: some time slices of a
#: busy scheduler. (With 200 µs every message went out alone on a busy machine, and kept it busy by that.)
STREAM_S = 0.01
#: How many seconds `close` waits until the broker has read the last messages, and the ref of the request for that.
ARRIVAL_S = 0.5
ARRIVAL_REF = "arrived"
#: The longest sleep in seconds, so that a wrong clock does not matter for long.
MAX_SLEEP_S = 60.0


#: All I/O threads of this process, to be marked in a child process.
_HERE: WeakSet[IoThread] = WeakSet()


def _note_fork() -> None:
    for io in _HERE:
        io.forked = True


os.register_at_fork(after_in_child=_note_fork)


class Application(Protocol):
    """The user of an I/O thread, which calls the first three methods under its lock (they must not block, nor call it)
    and the others without."""

    def on_effects(self, effects: Sequence[core.Effect]) -> None:
        """Handles the effects of input, in order."""

    def drain(self, client: core.ClientCore) -> list[core.Effect]:
        """Returns the effects of all that can be sent now. Called after every input, and by `execute`."""

    def deadline_s(self) -> float | None:
        """Returns when to call `on_deadline`, on the monotonic clock; None: never."""

    def on_deadline(self) -> None:
        """The deadline has come."""

    def on_end(self, error: ZmqbusError) -> None:
        """The connection has ended, as asked for (`NotConnected`) or not. Called once, and last."""


class IoThread:
    """A transport, with a thread that waits for its input. Thread-safe."""

    def __init__(self, transport: Transport, application: Application) -> None:
        self._transport = transport
        self._application = application
        self._lock = threading.Lock()
        self._later: deque[Callable[[], None]] = deque()
        self._pid = os.getpid()
        #: This is a child of the process that opened it, and must use nothing here: the locks are in the state that
        #: they had at the fork.
        self.forked = False
        _HERE.add(self)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_lock = threading.Lock()  # without it a wake could be written to a file that got the pipe's number
        self._asleep_until_s = 0.0  # end of the thread's sleep, which may be about to begin; 0: awake
        self._gathering = False  # messages were put down, and the thread was woken for them
        self._sent_s = 0.0  # time of the last send
        self._closing = False
        self._reason: ZmqbusError | None = None  # of an end that `close` did not ask for
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<IoThread of {self._transport!r}{', closed' if self._closing else ''}>"

    # --- life

    def open(self) -> core.Welcomed:
        """Connects, in the calling thread; returns at WELCOME. Raises as `Transport.open` and `Transport.pump`, and
        the broker's refusal."""
        try:
            self._transport.open()
            welcomed: core.Welcomed | None = None
            while welcomed is None:
                for effect in self._transport.pump(None):
                    match effect:
                        case core.Welcomed():
                            welcomed = effect
                        case core.Closed(reason):
                            raise reason or NotConnected("the session was disconnected; connect again")
                        case _:
                            self._application.on_effects((effect,))
        except BaseException:
            self._closing = True
            self._dispose()
            raise
        self._transport.patient = True  # from here on, wait for the next broker however long it takes
        self._transport.waits_to_launch = False  # and start it, if need be, while other threads send
        self._thread = threading.Thread(
            target=self._run, name=f"zmqbus {self._transport.core.persona.name}", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)
        return welcomed

    def close(self) -> None:
        """Closes in good order: all messages are sent, and the thread has ended on return, unless it is the caller.
        Idempotent; takes at most a second if the broker hangs, and as long as callbacks do."""
        if self.forked:
            return  # the sockets are the parent's
        self._closing = True  # first: an interrupt from here on costs the wait, and not the end
        with self._lock:
            self._reason = None  # from here on it is closed, whatever has happened before
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        atexit.unregister(self.close)

    def close_soon(self) -> None:
        """Closes without waiting, for a finaliser, which may run at any point of any thread: takes no lock that may be
        held. The thread ends by itself, in good order."""
        if self.forked:
            return
        self._closing = True
        if self._wake_lock.acquire(blocking=False):  # otherwise another thread is waking it, or it has ended
            try:
                self._write_wake()
            finally:
                self._wake_lock.release()

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is the I/O thread, where waiting for the bus would never end."""
        return threading.current_thread() is self._thread

    def check(self) -> None:
        """Raises `ForkedBus` in a child process, `NotConnected` when closed, and the error that ended the
        connection."""
        if self.forked:
            raise ForkedBus(
                f"this bus was opened by process {self._pid}, and this is a child of it; connect again in the child"
            )
        if self._reason is not None:
            raise self._reason
        if self._closing:
            raise closed()

    # --- for any thread

    def execute(self, act: Callable[[core.ClientCore], list[core.Effect]] | None = None) -> None:
        """Calls `act` with the core, under the lock, and sends its effects and all that the application can send.
        Raises as `check`, and as `act`."""
        self.check()  # before the lock, which is never released in a child process
        with self._lock:
            self.check()
            transport, application = self._transport, self._application
            # guards: I/O thread [effects = => self._gathering = False; effects =]
            effects = act(transport.core) if act is not None else []
            self._gathering = False  # not before: if that raises, the thread sends what was put down
            try:
                if effects:
                    self._carry_out(effects)
                self._carry_out(application.drain(transport.core))
                busy = self._look(transport.overlooked())
            except Exception as error:
                self._over(error)
                busy = True
            if self._asleep_until_s and (busy or self._later or self._is_due_earlier()):
                self._wake()
            self._sent_s = time.monotonic()

    def send_soon(self, gathered: int) -> None:
        """Sends the messages that the application has put down, `gathered` by now: at once, or in a stream together
        with those that are put down until the thread gets to it. Raises as `check`."""
        # guards: I/O thread [not self._transport.core.unconfirmed or =>]
        # guards: I/O thread [time.monotonic() - self._sent_s > STREAM_S => True]
        # guards: I/O thread [or time.monotonic() - self._sent_s > STREAM_S =>]
        alone = not self._transport.core.unconfirmed or time.monotonic() - self._sent_s > STREAM_S
        if alone or gathered >= GATHER:  # guards: I/O thread [or gathered >= GATHER =>]
            self.execute()
        elif not self._gathering:
            self._gathering = True
            if self._asleep_until_s:  # guards: I/O thread
                self._wake()

    def flush(self) -> None:
        """Sends what was put down, since a caller waits for its outcome."""
        if self._gathering:
            try:
                self.execute()  # guards: I/O thread
            except ZmqbusError:
                pass  # the connection has ended, and the outcome will be that

    def wake_by(self, deadline_s: float) -> None:
        """Wakes the thread if it would sleep beyond this new deadline of the application."""
        if deadline_s < self._asleep_until_s:
            self._wake()

    def call_later(self, act: Callable[[], None]) -> None:
        """Has the thread call this without the lock. For the methods of the application."""
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
            self._application.on_end(self._reason or closed())
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
                # Before the application's deadline is read: a `wake_by` after that must see that the thread sleeps.
                self._asleep_until_s = math.inf
                if self._gathering:
                    self._gathering = False
                    self._carry_out(self._application.drain(self._transport.core))  # guards: I/O thread
                    self._sent_s = time.monotonic()
                busy = self._look(ready, always=True)
                descriptors = transport.descriptors()
                # The time computed before is good as long as the session is READY and nobody has woken the thread:
                # sending only moves the transport's timers back, and an earlier deadline of the application wakes it.
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
                continue  # there may have been input before they were watched
            # Rounded up: a poll that ends a fraction early would spin until the time has come.
            sleep_ms = int((until_s - time.monotonic()) * 1000 + 0.999) if until_s else 0
            ready = [descriptor for descriptor, _ in poller.poll(max(0, sleep_ms))]
            if self._wake_reader in ready:
                self._drain_wakes()
            self._asleep_until_s = 0.0
            due_s = self._application.deadline_s()
            if due_s is not None and due_s <= time.monotonic():
                until_s = 0.0
                self._application.on_deadline()

    def _look(self, ready: Collection[int], *, always: bool = False) -> bool:
        """Handles the input on these descriptors, and on overlooked ones; with `always`, timers even without input.
        Returns whether there may be more. Under the lock."""
        transport = self._transport
        for _ in range(TURNS):
            if not ready and not always:
                return False
            always = False
            effects = transport.turn(ready)
            if effects:
                self._deal(effects)
                self._carry_out(self._application.drain(transport.core))
            ready = transport.overlooked()
        return bool(ready)

    def _carry_out(self, effects: list[core.Effect]) -> None:
        self._deal(self._transport.perform(effects))

    def _is_due_earlier(self) -> bool:
        """Returns whether a deadline comes before the thread wakes up."""
        if self._transport.core.phase is not core.Phase.READY:
            return self._until_s() < self._asleep_until_s
        # Sending only moves the transport's timers back.
        due_s = self._application.deadline_s()
        return due_s is not None and due_s < self._asleep_until_s

    def _until_s(self) -> float:
        """Returns until when there is nothing to do unless input comes. Under the lock."""
        until_s = time.monotonic() + max(0.0, min(self._transport.wait_s(), MAX_SLEEP_S))
        due_s = self._application.deadline_s()
        return until_s if due_s is None else min(until_s, due_s)

    def _deal(self, effects: list[core.Effect]) -> None:
        for number, effect in enumerate(effects):
            if isinstance(effect, core.Closed):
                self._application.on_effects(effects[:number])
                raise effect.reason or NotConnected("the session was disconnected by a command; connect again")
            if effect.__class__ is core.Welcomed:
                self._wake()  # a sleeping thread does not watch the new descriptors
        if effects:
            self._application.on_effects(effects)

    def _run_later(self) -> None:
        while self._later:
            act = self._later.popleft()
            try:
                act()
            except BaseException:  # of a foreign callback: it must not end the thread that all others rely on
                hook_args = (*sys.exc_info(), threading.current_thread())
                threading.excepthook(threading.ExceptHookArgs(hook_args))

    def _over(self, error: Exception) -> None:
        """Notes the error that ends the connection. Under the lock."""
        if self._closing:
            return
        if getattr(error, "errno", None) in descriptors.SHORTAGE:
            error = descriptors.shortage("the bus", error)
        if not isinstance(error, ZmqbusError):  # a bug of this package: threads that wait must not wait for ever
            failed = ZmqbusError(
                f"the bus has failed ({type(error).__name__}: {error}); connect again, and report this"
            )
            failed.__cause__ = error
            error = failed
        self._closing = True
        self._reason = error

    def _dispose(self) -> None:
        with self._lock:
            try:
                # Nothing follows that the application's gathered messages could be sent with.
                self._transport.perform(self._application.drain(self._transport.core))
                self._see_it_arrive()
                self._transport.perform(self._transport.core.bye())
                self._transport.close()
            finally:
                with self._wake_lock:
                    os.close(self._wake_reader)
                    os.close(self._wake_writer)
                    self._wake_writer = -1

    def _see_it_arrive(self) -> None:
        """Waits, `ARRIVAL_S` at most, until the broker has read all unconfirmed messages: it answers a request behind
        them. Without this, they are lost if input from the broker comes meanwhile: closing a TCP connection with unread
        input resets it, and discards what the other end has not read.
        """
        transport = self._transport
        end_s = time.monotonic() + ARRIVAL_S
        if not transport.core.unconfirmed or self._reason is not None:
            return
        effects = transport.core.request(verbs.Status(ARRIVAL_REF))
        with suppress(ZmqbusError):  # the broker has gone
            found = transport.perform(effects)
            while transport.core.phase is core.Phase.READY and (left_s := end_s - time.monotonic()) > 0:
                found += transport.pump(left_s)
                self._application.on_effects(found)
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
            pass  # the pipe is full of wakes

    def _drain_wakes(self) -> None:
        try:
            while os.read(self._wake_reader, 4096):
                pass
        except BlockingIOError:
            pass


def closed() -> NotConnected:
    """Returns the error of a call on a closed bus."""
    return NotConnected("the bus is closed; open another one with zmqbus.connect()")
