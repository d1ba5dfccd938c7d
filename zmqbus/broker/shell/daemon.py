"""Starts a broker: election, detached process, and the report to the process that started it.

Any number of clients may find no broker at the same instant, and each of them runs this program. The process that holds
the lock on the data directory is the broker (`flock` on the directory itself: no file could be deleted); the others
notice, and exit. A port proves nothing: it may be free for a moment, or be held by another program.

The starter receives one line on the file descriptor that it passed:

    ready <notices>           this process serves the port; the notices tell of damage that it has found
    exists                    another process does, or will in a moment
    held                      another program has bound the port
    error <code> <text>       the fault, and its remedy

Nothing costly is imported before the election is won: the twenty-nine losers of thirty should be cheap.
"""

from __future__ import annotations

import fcntl
import gc
import os
import sys
import time

from zmqbus.errors import BrokerUnavailable, PortHeld, ZmqbusError
from zmqbus.security.private_files import secure_dir
from zmqbus.settings import Settings, load
from zmqbus.system import network, pidfile

#: How long a candidate watches a lock whose holder, just starting or ending, has no pid file.
ELECTION_S = 5.0
#: Pause between two looks at the lock.
LOOK_S = 0.02
#: New objects at which the garbage collector looks for cycles.
COLLECT_AFTER = 20_000
#: Options of the detached process, each as `--name=value`. (`argparse` would take 0.4 MB of memory.)
OPTIONS = ("port", "idle-shutdown-minutes", "report", "elsewhere")


class BrokerExists(BrokerUnavailable):
    """Another process is, or will be in a moment, the broker of this data directory on this port."""


def elect(settings: Settings) -> int:
    """Makes this process the one broker of the data directory, and returns the descriptor that holds the lock.

    Raises `BrokerExists` if a broker serves the same port, `BrokerUnavailable` if one serves another port.
    """
    secure_dir(settings.data_dir)
    descriptor = os.open(settings.data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline_s = time.monotonic() + ELECTION_S
    while True:
        try:
            # guards: broker start: one broker at a time [fcntl.LOCK_EX => fcntl.LOCK_SH]
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            pass
        ports = _served(settings)
        mine = settings.port in ports or (ports and not settings.port_chosen)
        if mine or (not ports and time.monotonic() > deadline_s):
            os.close(descriptor)
            raise BrokerExists("a broker serves this port already")
        if ports:
            os.close(descriptor)
            raise BrokerUnavailable(
                f"a broker for {settings.data_dir} serves port {ports[0]}; use --port {ports[0]}, stop it with "
                f"zmqbus broker --stop --port {ports[0]}, or set INTER_SESSION_DATA_DIR to another directory"
            )
        time.sleep(LOOK_S)


def _served(settings: Settings) -> list[int]:
    """Ports with a pid file whose process may live.

    The holder of the lock writes its pid file before it answers, and removes it before it releases the lock. It may be
    in another PID namespace, where its pid cannot be checked.
    """
    return [port for port, served in pidfile.read_all(settings.paths) if served is not None and served.may_live]


def check_network(settings: Settings) -> None:
    """Raises `BrokerUnavailable` in a sandbox whose broker would hold the lock but could not be reached from outside.

    See `zmqbus.system.network`.
    """
    if settings.loopback_only:
        return
    served, served_open = pidfile.last_network(settings.paths)
    why = network.refusal_reason(os.environ, served, served_open=served_open)
    if why:
        raise BrokerUnavailable(
            f"no broker is started here: this shell has a network of its own with nothing but a loopback ({why}), and "
            f"would lock all other sessions out. {network.GET_OUT}; if all sessions live in this network, set "
            "INTER_SESSION_LOOPBACK_ONLY=1"
        )


class ElectedBroker:
    """Writes the pid file, serves, and cleans up."""

    def __init__(self, settings: Settings, lock: int) -> None:
        self._settings = settings
        self._lock = lock
        self._port = 0  # the port that it serves; 0: none yet

    def serve(self, *, foreground: bool, report: int | None = None) -> None:
        """Opens the server, reports `ready`, and serves until it ends."""
        from zmqbus.broker.shell.log import Log
        from zmqbus.broker.shell.server import Server

        log = Log(self._settings.paths.broker_log, echo=foreground)
        server = Server(self._settings, log)
        try:
            server.open()
            self._port = server.port
            pidfile.write(self._settings.paths, self._port)
            _report(report, " ".join(("ready", *server.notices)))
            server.run()
        finally:
            self._remove_pid()
            server.close()
            log.close()
            os.close(self._lock)

    def _remove_pid(self) -> None:
        served = pidfile.read(self._settings.paths, self._port) if self._port else None
        if served is not None and served.pid == os.getpid():
            pidfile.remove(self._settings.paths, self._port)


def _detach() -> None:
    """Continues in a child process, which inherits the lock, in a session and process group of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _report(descriptor: int | None, line: str) -> None:
    if descriptor is None:
        return
    try:
        os.write(descriptor, line.replace("\n", " ").encode(errors="replace") + b"\n")
        os.close(descriptor)
    except OSError:
        pass  # the starter did not wait


def main(argv: list[str] | None = None) -> int:
    """`python -m zmqbus.broker.shell.daemon`, run by `client.launch`: takes part in the election, detaches, serves."""
    given: dict[str, str] = {}
    for argument in sys.argv[1:] if argv is None else argv:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not equals or name not in OPTIONS:
            print(
                f"error: usage: the options are {', '.join(f'--{name}=…' for name in OPTIONS)}; "
                "see zmqbus broker --help",
                file=sys.stderr,
            )
            return 2
        given[name] = value
    settings = load({"port": given.get("port"), "idle_shutdown_minutes": given.get("idle-shutdown-minutes")})
    # With `elsewhere`, the starter accepts any port that the broker serves, and only begins at this one.
    settings = settings._replace(port_chosen=settings.port_chosen and "elsewhere" not in given)
    os.umask(0o077)
    report = int(given["report"]) if "report" in given else None
    try:
        _serve(settings, foreground=False, report=report)
    except BrokerExists:
        _report(report, "exists")
    except PortHeld:
        _report(report, "held")
    except ZmqbusError as error:
        _report(report, f"error {error.code} {error}")
    except OSError as error:
        _report(report, f"error broker_unavailable cannot start a broker: {error}; see zmqbus doctor")
    else:
        return 0
    return 1


def run_here(settings: Settings) -> None:
    """Runs a broker in this process until it is stopped, with its log on standard error as well. Raises as `elect`."""
    _serve(settings, foreground=True)


def _serve(settings: Settings, *, foreground: bool, report: int | None = None) -> None:
    lock = elect(settings)
    try:
        check_network(settings)
    except BaseException:
        os.close(lock)
        raise
    # Import ZeroMQ and the rest only in the winner of the election. And before the fork: memory that only the import
    # needs stays with the process that ends, which makes the broker 2 MB smaller.
    import zmqbus.broker.shell.server  # noqa: F401

    if not foreground:
        _detach()
    _raise_file_limit()
    _collect_less_often()
    ElectedBroker(settings, lock).serve(foreground=foreground, report=report)


def _collect_less_often() -> None:
    """Makes the garbage collector look for cycles less often.

    The broker's objects form no cycles. By default the collector looks for some after each 700 new objects (60
    messages), which took a tenth of the broker's time and found none.
    """
    gc.freeze()  # all objects so far live as long as the process
    gc.set_threshold(COLLECT_AFTER, 10, 10)


def _raise_file_limit() -> None:
    """Raises the limit of open files to the hard limit.

    Each session takes two connections, so the usual soft limit of 1,024 files would be reached at some 500 sessions.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise SystemExit(main())
