"""Where a benchmark runs: a directory and a port of its own, and processes that end with it, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import FrameType

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
#: What takes longer than this hangs. Long: a machine that is shared may stand still for a while.
PATIENCE_S = 120.0
#: A process that was asked to end and has not after this is killed.
END_S = 15.0
#: Settings of the user that must not reach the systems under test. Nor python's: users have neither
#: PYTHONDONTWRITEBYTECODE nor PYTHONUNBUFFERED.
PRIVATE_PREFIXES = ("INTER_SESSION_", "CLAUDE", "PYTHON")
#: Ports from here on may be given out by the kernel as somebody's source port.
PORTS = (10_000, 30_000)
_PR_SET_PDEATHSIG = 1
#: Loaded here, since nothing may be loaded between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
#: Where Debian has its servers, which is not on everybody's path.
_MORE_PLACES = ("/usr/local/sbin", "/usr/sbin")


def program(name: str) -> str | None:
    """Where this program is; None: it is not installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_MORE_PLACES]))


def free_port() -> int:
    """A port below the ephemeral range that nobody has."""
    while True:
        port = random.randint(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(directory: str) -> dict[str, str]:
    """An environment for processes that shall touch nothing outside of `directory`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE_PREFIXES)}
    return kept | {
        "HOME": directory,
        "INTER_SESSION_DATA_DIR": os.path.join(directory, "data"),
        "INTER_SESSION_PORT": str(free_port()),
        "INTER_SESSION_IDLE_MINUTES": "2",  # should this process be killed, the broker ends by itself
    }


@contextlib.contextmanager
def stage() -> Iterator[dict[str, str]]:
    """An environment in a directory of its own, both gone at the end; a broker that was started in it is stopped."""
    with tempfile.TemporaryDirectory(prefix="zmqbus-bench-", ignore_cleanup_errors=True) as directory:
        environ = environment(directory)
        try:
            yield environ
        finally:
            stop_broker(environ)


def stop_broker(environ: dict[str, str]) -> None:
    """Stops the broker of this environment, if there is one; returns when it is gone."""
    command = [sys.executable, f"{ROOT}/bin/zmqbus", "broker", "--stop"]
    subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def start_broker(environ: dict[str, str]) -> int:
    """Starts a broker, or finds the running one; returns its pid."""
    command = [sys.executable, f"{ROOT}/bin/zmqbus", "broker"]
    subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE_S)
    return broker_pid(environ)


def broker_pid(environ: dict[str, str]) -> int:
    """The pid of this environment's broker."""
    path = os.path.join(environ["INTER_SESSION_DATA_DIR"], f"server.{environ['INTER_SESSION_PORT']}.pid")
    with open(path, encoding="ascii") as file:
        return int(file.read())


def start(command: list[str], environ: dict[str, str], *, errors: str, pipes: bool = False) -> subprocess.Popen[bytes]:
    """Starts a process that dies with this one. What it complains about is appended to the file `errors`; with `pipes`
    it is talked to over its standard input and output."""
    with open(errors, "ab") as stderr:
        return subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else stderr,
            stderr=stderr,
            cwd=environ["HOME"],
            start_new_session=True,  # Ctrl-C is for this process alone, which sees to it that all end
            preexec_fn=_die_with_parent,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that was started here, by its pid, and waits until it is gone."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    """Between fork and exec: makes this process end with its parent, on Linux. Elsewhere, processes that read commands
    from a pipe end when it is closed."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_on_sigterm() -> None:
    """SIGTERM is as good as Ctrl-C: everything is cleared away."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def raise_file_limit() -> None:
    """Hundreds of sessions in one process take a dozen descriptors each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def flush(directory: str) -> None:
    """Waits until all files below are on the disk."""
    for where, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile, or a socket
                descriptor = os.open(os.path.join(where, name), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
