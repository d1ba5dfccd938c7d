"""Finding the broker, and starting one where there is none.

A pid file, and a lock on the data directory that somebody holds, are taken as a sign to try and connect, no more. A
client that gets no answer launches all the same. That is always right, since the launched process stands for election
(`broker.daemon`) and leaves at once if there is a broker.

It is also 80 ms of a processor, and when a broker dies, all of its clients find that out at the same instant. So they
take turns: who has had to wait for another's launch looks again before its own.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from zmqbus.errors import BrokerUnavailable, PortHeld, from_code
from zmqbus.settings import Settings

#: How long another client's launch is waited for. It takes a tenth of that, unless it was stopped in the middle.
TURN_S = 2.0
#: Between two looks at that.
LOOK_S = 0.02
#: How long the launched process may take to say how it went: interpreter start, keys, binds, on a crowded machine.
LAUNCH_S = 20.0


def broker_pid(settings: Settings) -> int | None:
    """The pid in the port's pid file, if there is a broker for this data directory."""
    try:
        with open(settings.paths.pid_file(settings.port), encoding="ascii") as file:
            pid = int(file.read())
    except (OSError, ValueError):
        return None
    return pid if _is_elected(settings) else None


def _is_elected(settings: Settings) -> bool:
    """Whether anybody holds the lock of `broker.daemon`. A pid alone proves nothing: it may be a zombie's, or have been
    used again. (The lock is taken shared here, for microseconds; a candidate that meets it looks again.)"""
    try:
        descriptor = os.open(settings.data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def launch(settings: Settings) -> str:
    """Starts a broker, detached from this process in every way, and returns when one serves the port: with what it has
    found damaged or has set aside, for the user; mostly "".

    Raises `PortHeld` if something else is bound to the port, the broker's own error if it cannot start (keys that
    others can read, a data directory that another broker uses), `BrokerUnavailable` if it says nothing within 20 s.
    """
    turn, waited = _take_turn(settings)
    try:
        if waited and broker_pid(settings) is not None:
            return ""
        return _launch(settings)
    finally:
        if turn >= 0:
            os.close(turn)


def _take_turn(settings: Settings) -> tuple[int, bool]:
    """Waits until no other client is launching a broker: a descriptor to close, and whether another one was. It is -1
    where there is nothing to wait on, or the other one does not come to an end."""
    try:
        descriptor = os.open(settings.paths.keys, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1, False  # a broker has never been here, or the launch will tell what is wrong
    deadline_s = time.monotonic() + TURN_S
    waited = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor, waited
        except OSError:
            waited = True
        if time.monotonic() > deadline_s:
            os.close(descriptor)
            return -1, True
        time.sleep(LOOK_S)


def _launch(settings: Settings) -> str:
    import subprocess  # 5 ms that only whoever finds no broker pays

    last_words = ""
    reader, writer = os.pipe()
    command = [
        sys.executable,
        "-m",
        "zmqbus.broker.daemon",
        f"--port={settings.port}",
        f"--idle-shutdown-minutes={settings.idle_shutdown_s / 60}",
        f"--report={writer}",
    ]
    # This very package, and the way that this process found the others, be it a virtual environment put on the path by
    # the bootstrap. What is relative, or "", meant a directory that the broker does not run in.
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [package, *(os.path.abspath(entry) for entry in sys.path if entry)]
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(path), INTER_SESSION_DATA_DIR=settings.data_dir)
    try:
        with subprocess.Popen(
            command,
            # `-m` looks in the current directory first, which may be anybody's repository, with a zmqbus of its own.
            cwd="/",
            env=environ,
            pass_fds=(writer,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            os.close(writer)
            writer = -1
            report = _read_line(reader, time.monotonic() + LAUNCH_S)
            if not report:
                process.kill()  # the process that detaches; one that has detached already is not touched
                assert process.stderr is not None
                last_words = process.stderr.read()[-500:].decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
    except OSError as error:
        raise BrokerUnavailable(f"cannot start a broker with {sys.executable}: {error}") from None
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    word, _, text = report.partition(" ")
    if word in ("ready", "exists"):
        return text
    if report == "held":
        raise PortHeld(settings.port)
    if word == "error":
        code, _, text = text.partition(" ")
        raise from_code(code, text)
    raise BrokerUnavailable(
        f"a broker was started and did not come up{last_words and f' ({last_words})'}; see "
        f"{settings.paths.broker_log}, or run: zmqbus broker --foreground"
    )


def _read_line(descriptor: int, deadline_s: float) -> str:
    """The first line from a pipe, without its end; "" when it is closed, or nothing came in time."""
    import select

    got = b""
    while b"\n" not in got:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
            return ""
        part = os.read(descriptor, 4096)
        if not part:
            return ""
        got += part
    return got.split(b"\n", 1)[0].decode("utf-8", "replace")
