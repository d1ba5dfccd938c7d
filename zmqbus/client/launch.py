"""Starts a broker where none runs.

That is always safe, since the launched process stands for election (`broker.shell.daemon`) and leaves at once if there
is a broker. But it costs 80 ms of a processor, and all clients of a broker that dies notice at the same instant. So
they take turns: a client that has waited for another's launch looks again before its own.

`launch` blocks until the broker serves. A `Launch` goes in steps that do not wait, for a caller with other duties (the
I/O thread, whose lock other threads want).
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time
from typing import TYPE_CHECKING

from zmqbus.client.locate import broker_pid, check_loopback
from zmqbus.errors import BrokerUnavailable, PortHeld, from_code
from zmqbus.settings import Settings
from zmqbus.system import children
from zmqbus.system.descriptors import SHORTAGE, explained, shortage
from zmqbus.system.port_holder import holder_of

if TYPE_CHECKING:
    import subprocess

#: How many seconds to wait for another client's launch. It takes a tenth of that, unless that client is stopped.
TURN_S = 2.0
#: Seconds between two looks at that.
LOOK_S = 0.02
#: How many seconds the launched process may take to report: interpreter start, keys, binds, on a busy machine.
LAUNCH_S = 20.0


def launch(settings: Settings) -> str:
    """Starts a broker, detached from this process in every way; returns when one serves the port. The result is the
    broker's notice for the user of what it has found damaged or has set aside; mostly "".

    Raises `PortHeld` if another program is bound to the port, the broker's own error if it cannot start (keys that
    others can read, a data directory that another broker uses), `BrokerUnavailable` if it reports nothing within 20 s.
    """
    starting = Launch(settings)
    try:
        while (notice := starting.step()) is None:
            starting.wait()
        return notice
    finally:
        starting.close()


class Launch:
    """The start of a broker in steps that do not wait. Not thread-safe.

    Takes its turn among other clients, starts the process, and reads the line that this reports.
    """

    look_s = LOOK_S  #: seconds between two steps while it waits

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = -1  # descriptor of the lock that clients take in turn
        self._waited = False  # another client was launching
        self._turn_deadline_s = time.monotonic() + TURN_S
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline_s = 0.0
        self._reader = -1
        self._said = b""

    def __repr__(self) -> str:
        state = "waits for its turn" if self._process is None else f"pid {self._process.pid}"
        return f"<Launch for port {self._settings.port}: {state}>"

    def step(self) -> str | None:
        """Goes on as far as possible without waiting; returns None if it is not done. Otherwise returns or raises as
        `launch` does; close it then."""
        if self._process is None:
            if not self._take_turn():
                return None
            if self._waited and broker_pid(self._settings) is not None:
                return ""
            check_loopback(self._settings.port)
            self._process = self._spawn()
            self._deadline_s = time.monotonic() + LAUNCH_S
        report = self._report()
        return None if report is None else self._outcome(report)

    def wait(self) -> None:
        """Sleeps until another step may get further."""
        if self._reader < 0:
            time.sleep(LOOK_S)
        else:
            _is_readable(self._reader, max(0.0, self._deadline_s - time.monotonic()))

    def close(self) -> None:
        """Releases everything, and ends a process that has neither reported nor detached itself. Idempotent."""
        if self._process is not None:
            assert self._process.stderr is not None
            if self._reader >= 0:
                self._process.kill()
            self._process.stderr.close()
            self._process.wait()
            self._process = None
        if self._reader >= 0:
            os.close(self._reader)
        if self._turn >= 0:
            fcntl.flock(
                self._turn, fcntl.LOCK_UN
            )  # a child forked meanwhile has the descriptor and would keep the lock
            os.close(self._turn)
        self._reader = self._turn = -1

    # --- its turn

    def _take_turn(self) -> bool:
        """Returns whether it is this client's turn: no other one is launching a broker, or it takes too long."""
        if self._turn < 0:
            try:
                self._turn = os.open(self._settings.paths.keys, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                return True  # there was never a broker, or the launch will report the fault
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            self._waited = True
        return time.monotonic() > self._turn_deadline_s

    # --- the process

    def _spawn(self) -> subprocess.Popen[bytes]:
        import subprocess  # 5 ms that only a client without a broker pays

        settings = self._settings
        with explained("the start of a broker"):
            self._reader, writer = os.pipe()
        command = children.command(
            "zmqbus.broker.shell.daemon",
            f"--port={settings.port}",
            f"--idle-shutdown-minutes={settings.idle_shutdown_s / 60}",
            f"--report={writer}",
            *(() if settings.port_chosen else ("--elsewhere=1",)),
        )
        try:
            return subprocess.Popen(
                command,
                cwd="/",  # so that it keeps no directory from being removed or unmounted
                env=children.environ({"INTER_SESSION_DATA_DIR": settings.data_dir}),
                pass_fds=(writer,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            if error.errno in SHORTAGE:
                raise shortage("the start of a broker", error) from None
            raise BrokerUnavailable(f"cannot start a broker with {sys.executable}: {error}") from None
        finally:
            os.close(writer)

    def _report(self) -> str | None:
        """Returns the first line that the process reports, without its end; "" if it has closed the pipe or is late;
        None: not yet."""
        while b"\n" not in self._said:
            if not _is_readable(self._reader, 0.0):
                return None if time.monotonic() < self._deadline_s else ""
            part = os.read(self._reader, 4096)
            if not part:
                return ""
            self._said += part
        return self._said.split(b"\n", 1)[0].decode("utf-8", "replace")

    def _outcome(self, report: str) -> str:
        assert self._process is not None and self._process.stderr is not None
        last_words = ""
        if not report:
            self._process.kill()  # the process that detaches; not one that has detached already
            last_words = self._process.stderr.read()[-500:].decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        os.close(self._reader)
        self._reader = -1
        word, _, text = report.partition(" ")
        if word in ("ready", "exists"):
            return text
        if report == "held":
            raise PortHeld(self._settings.port, holder_of(self._settings.port))
        if word == "error":
            code, _, text = text.partition(" ")
            raise from_code(code, text)
        raise BrokerUnavailable(
            f"a broker was started and did not come up{last_words and f' ({last_words})'}; see "
            f"{self._settings.paths.broker_log}, or run: zmqbus broker --foreground"
        )


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    """Waits up to `timeout_s` for input. Not with select(), which fails above 1,023 open files."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(int(timeout_s * 1000 + 0.999)))
