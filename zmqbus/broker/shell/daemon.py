"""How a broker comes to be: the election, the detached process, and the word back to whoever started it.

Any number of clients may find no broker at the same instant, and each of them runs this program. Who holds the lock on
the data directory (`flock` on the directory itself: there is no file that could be deleted) is the broker; the others
see that, and leave. A port proves nothing: it may be free for a moment, or be held by a stranger.

What the starter is told, on the file descriptor it handed in, is one line:

    ready <notices>           this process serves the port; what it has found damaged, if anything
    exists                    another process does, or will in a moment
    held                      the port is bound by something else
    error <code> <text>       what is wrong, and what to do

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

#: How long a candidate watches a lock whose holder has no pid file: it is starting, or ending.
ELECTION_S = 5.0
#: Between two looks at that.
LOOK_S = 0.02
#: New objects before the collector looks for cycles among them.
COLLECT_AFTER = 20_000
#: What the detached process is told, each as `--name=value`. (`argparse` would take 0.4 MB of memory to read that.)
OPTIONS = ("port", "idle-shutdown-minutes", "report", "elsewhere")


class Elsewhere(BrokerUnavailable):
    """Another process is, or is about to be, the broker of this data directory on this port."""


def elect(settings: Settings) -> int:
    """Becomes the one broker of the data directory; returns the descriptor that holds the lock.

    Raises `Elsewhere` if a broker serves the same port, `BrokerUnavailable` if one serves another port.
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
            raise Elsewhere("a broker serves this port already")
        if ports:
            os.close(descriptor)
            raise BrokerUnavailable(
                f"a broker for {settings.data_dir} serves port {ports[0]}; use --port {ports[0]}, stop it with "
                f"zmqbus broker --stop --port {ports[0]}, or set INTER_SESSION_DATA_DIR to another directory"
            )
        time.sleep(LOOK_S)


def _served(settings: Settings) -> list[int]:
    """Ports that have a pid file of a process that may live. The holder of the lock writes its own before it answers,
    and removes it first. It may be in another PID namespace, where its pid means nothing here."""
    return [port for port, served in pidfile.read_all(settings.paths) if served is not None and served.may_live]


def check_network(settings: Settings) -> None:
    """Raises `BrokerUnavailable` where a broker would hold the lock, and nobody outside of this sandbox could reach it
    (`zmqbus.system.network`)."""
    if settings.loopback_only:
        return
    served, served_open = pidfile.last_network(settings.paths)
    why = network.why_closed(os.environ, served, served_open=served_open)
    if why:
        raise BrokerUnavailable(
            f"no broker is started here: this shell has a network of its own with nothing but a loopback ({why}), and "
            f"would lock all other sessions out. {network.GET_OUT}; if all sessions live in this network, set "
            "INTER_SESSION_LOOPBACK_ONLY=1"
        )


class Lockholder:
    """The elected process: writes the pid file, serves, and cleans up."""

    def __init__(self, settings: Settings, lock: int) -> None:
        self._settings = settings
        self._lock = lock
        self._port = 0  # that it serves; 0: not yet

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
    """Goes on as another process, which has inherited the election's lock. It leaves the starter's session and process
    group, and its terminal, for good."""
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
        pass  # the starter did not wait for it


def main(argv: list[str] | None = None) -> int:
    """`python -m zmqbus.broker.shell.daemon`: what `client.launch` runs. Stands for election, detaches, serves."""
    given: dict[str, str] = {}
    for argument in sys.argv[1:] if argv is None else argv:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not equals or name not in OPTIONS:
            print(
                f"error: usage: it takes {', '.join(f'--{name}=…' for name in OPTIONS)}; see zmqbus broker --help",
                file=sys.stderr,
            )
            return 2
        given[name] = value
    settings = load({"port": given.get("port"), "idle_shutdown_minutes": given.get("idle-shutdown-minutes")})
    # The starter follows the broker to whatever port it serves, though it would begin at this one.
    settings = settings._replace(port_chosen=settings.port_chosen and "elsewhere" not in given)
    os.umask(0o077)
    report = int(given["report"]) if "report" in given else None
    try:
        _serve(settings, foreground=False, report=report)
    except Elsewhere:
        _report(report, "exists")
    except PortHeld:
        _report(report, "held")
    except ZmqbusError as error:
        _report(report, f"error {error.code} {error}")
    except OSError as error:
        _report(report, f"error broker_unavailable cannot start a broker: {error}; mend that, or see zmqbus doctor")
    else:
        return 0
    return 1


def run_here(settings: Settings) -> None:
    """A broker in this very process, until it is stopped; its log goes to standard error, too. Raises as `elect`."""
    _serve(settings, foreground=True)


def _serve(settings: Settings, *, foreground: bool, report: int | None = None) -> None:
    lock = elect(settings)
    try:
        check_network(settings)
    except BaseException:
        os.close(lock)
        raise
    # ZeroMQ and the rest: only the winner of the election pays. And before the fork: what importing needed once of the
    # libraries is mapped in the process that ends with it, which makes the broker 2 MB smaller.
    import zmqbus.broker.shell.server  # noqa: F401

    if not foreground:
        _detach()
    _raise_file_limit()
    _collect_less_often()
    Lockholder(settings, lock).serve(foreground=foreground, report=report)


def _collect_less_often() -> None:
    """What the broker makes goes when its last user does. The collector of cycles, which by default looks for some
    after each 700 new objects (60 messages), took a tenth of the broker's time and found none."""
    gc.freeze()  # what is there by now stays
    gc.set_threshold(COLLECT_AFTER, 10, 10)


def _raise_file_limit() -> None:
    """Each session takes two connections; the usual soft limit of 1,024 files would end at some 500 sessions."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise SystemExit(main())
