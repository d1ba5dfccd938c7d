"""The broker that answers, or what is in its place; what dead processes have left; and this session's own listener."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence

import zmqbus
from zmqbus.client.launch import at_broker, check_loopback, check_reach, find_broker, is_elected
from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import Unauthorized, ZmqbusError
from zmqbus.process import Process, is_alive
from zmqbus.session.identity import find_joined, is_listening
from zmqbus.session.leftovers import elsewhere, leftovers
from zmqbus.session.owner import find_owners
from zmqbus.session.owner_files import files_of, stem_of
from zmqbus.session.plugin_options import with_options
from zmqbus.session.state import load_state
from zmqbus.settings import DEFAULT_PORT, MAX_PORT, Settings
from zmqbus.system import network, pidfile
from zmqbus.system.port_holder import who_holds
from zmqbus.text.display import sanitise

#: See `zmqbus.settings`: it wins over INTER_SESSION_PORT.
_OPTION = "CLAUDE_PLUGIN_OPTION_PORT"
#: Old log that is kept for unread mail: as much as all that is kept for everybody.
MUCH_KEPT_BYTES = 256 * 1024 * 1024


def broker(settings: Settings) -> Iterator[Finding]:
    """Which broker answers on the port; where none does, whether one could. Starts none."""
    settings = at_broker(settings)
    served = find_broker(settings)
    if served is None:
        yield from _absent(settings)
        return
    from zmqbus.client.probe import Probe  # needs the packages, which may be what is missing

    pid = served.pid
    try:
        check_reach(settings)
        check_loopback(settings.port)
    except ZmqbusError as error:
        yield fault("broker", str(error))
        return
    try:
        with Probe(settings) as probe:
            figures = probe.figures()
    except ZmqbusError as error:
        yield _unusable(settings, served, error)
        return
    release = figures.get("release")
    says = f"release {release}, protocol {figures.get('protocol')}, port {settings.port}, pid {pid}"
    if release != zmqbus.__version__:
        yield warning("broker", f"{says}; this is release {zmqbus.__version__}", "zmqbus broker --stop")
    elif figures.get("notices"):
        # It has mended that. Whoever reads this knows it by now, and the next broker has nothing to tell.
        yield warning("broker", f"{says}; it has found: {figures['notices']}", "zmqbus broker --stop")
    else:
        yield ok("broker", f"{says}, {figures.get('sessions')} sessions")
    kept_bytes = figures.get("log_kept_bytes", 0)
    if isinstance(kept_bytes, int) and kept_bytes >= MUCH_KEPT_BYTES:
        says = f"{kept_bytes / 1e6:,.0f} MB of old log are kept for {figures.get('unread')} messages that are not read"
        yield warning("mail", f"{says}; see whose they are, and read or give them up", "zmqbus list --all")


def _unusable(settings: Settings, served: pidfile.Served, error: ZmqbusError) -> Finding:
    """A broker that holds the lock, and does not talk to this release, or to nobody."""
    pid = served.pid
    if "speaks protocol" in str(error):
        return fault("broker", f"{error} (pid {pid})", kill(served))
    says = str(error).partition(";")[0]
    if network.try_port(settings.port) is network.Port.REFUSED:
        # Neither hung nor stopped: those still accept connections. So the pid file is not that of the lock's holder.
        return fault(
            "broker",
            f"{says}: nobody listens there, though a process holds the lock on {settings.data_dir}; it is just "
            f"starting or ending, or serves another port or network; find it with: fuser -v {settings.data_dir}",
        )
    if kill(served) is None:
        return fault(
            "broker",
            f"{says}; it is hung or stopped, and in another PID namespace (pid {pid} there), so end it there: in the "
            "container or on the machine that it runs on",
        )
    # It loses nothing by that: whatever it has promised is on file, and the next one takes it up.
    return fault("broker", f"{says}; it is hung or stopped (pid {pid})", kill(served, "-9"))


def kill(served: pidfile.Served | None, *options: str) -> str | None:
    """The command that ends a broker; None where its pid may be another process's here."""
    if served is None or served.process is None or not is_alive(served.process):
        return None
    return command("kill", *options, str(served.pid))


def _absent(settings: Settings) -> Iterator[Finding]:
    port = settings.port
    others = [
        other for other, served in pidfile.read_all(settings.paths) if other != port and _serves(settings, served)
    ]
    if others:
        yield fault(
            "broker",
            f"the broker of {settings.data_dir} serves port {others[0]}, and {port} is set here{_by_option(settings)}; "
            "a directory has one",
            _set_port(settings, others[0]),
        )
    elif _is_free(port):
        last, last_open = pidfile.last_network(settings.paths)
        why = None if settings.loopback_only else network.why_closed(os.environ, last, served_open=last_open)
        if why:
            yield fault(
                "broker",
                f"none runs on port {port}, and none is started here: this shell has a network of its own with nothing "
                f"but a loopback ({why}). {network.GET_OUT}; if all sessions live in this network, set "
                "INTER_SESSION_LOOPBACK_ONLY=1",
            )
            return
        yield ok("broker", f"none runs on port {port}; the first session starts one")
    else:
        holder = who_holds(port)
        says = f"port {port} is held by another program" + (f": {holder}" if holder else "")
        if port == DEFAULT_PORT:
            yield warning("broker", f"{says}; the first session starts a broker on another port")
            return
        free = next((other for other in range(port + 1, min(port + 1000, MAX_PORT)) if _is_free(other)), 0)
        yield fault(
            "broker",
            f"{says}{_by_option(settings)}",
            _set_port(settings, free) if free else None,
        )


def _set_port(settings: Settings, port: int) -> str:
    """The command that sets the port in a shell. An option of the plugin wins over INTER_SESSION_PORT."""
    return f"export {_OPTION if _option(settings) else 'INTER_SESSION_PORT'}={port}"


def _by_option(settings: Settings) -> str:
    """A remark, where an option of the plugin says which port it is: it holds for all sessions, and not for a shell."""
    given = _option(settings)
    return f" (the plugin's option `port` says {given}; in Claude Code, /plugin changes it)" if given else ""


def _option(settings: Settings) -> str:
    """The plugin's option, as this shell or its session has it; "" where none is set."""
    owner = find_owners(settings.owner_pid_override, os.environ)[0]
    return sanitise(with_options(files_of(settings.data_dir, owner), os.environ).get(_OPTION, "").strip(), 20)


def any_broker(settings: Settings) -> pidfile.Served | None:
    """A broker of this data directory, whatever port it serves."""
    return next((served for _, served in pidfile.read_all(settings.paths) if _serves(settings, served)), None)


def _serves(settings: Settings, served: pidfile.Served | None) -> bool:
    """Whether a pid file tells the truth: somebody is elected, and it may be this process."""
    return served is not None and is_elected(settings) and served.may_live


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the broker does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def stale_files(settings: Settings) -> Iterator[Finding]:
    """What processes that are dead have left behind."""
    names: list[str] = []
    for port, served in pidfile.read_all(settings.paths):
        if not _serves(settings, served):
            names += filter(os.path.lexists, (settings.paths.pid_file(port), settings.paths.process_file(port)))
    names += [os.path.join(settings.paths.clients, name) for name in leftovers(settings.data_dir)]
    if names:
        what = "a file" if len(names) == 1 else f"{len(names)} files"
        first = ", ".join(map(os.path.basename, names[:3])) + (", …" if len(names) > 3 else "")
        yield warning("stale", f"{what} of processes that have ended: {first}", command("rm", "-f", *names))
    else:
        others = elsewhere(settings.data_dir)
        left = f"; of another PID namespace or machine, and not to be judged from here: {len(others)}" if others else ""
        yield ok("stale", f"nothing was left behind{left}")


def listener(settings: Settings, owners: Sequence[Process]) -> Iterator[Finding]:
    """The listener of the session that this shell belongs to."""
    for owner in owners:
        try:
            state = load_state(settings.data_dir, stem_of(settings.data_dir, owner))
            listening = is_listening(settings.data_dir, owner)
        except Unauthorized:
            return  # told about by the look at the permissions
        except ZmqbusError as error:
            yield fault("listener", str(error))
            return
        if listening and state is None:
            yield warning("listener", f"one of process {owner.pid} is just starting, or its state file was removed")
            return
        if listening and state is not None and state.owner.is_same(owner):
            import psutil

            try:
                status = psutil.Process(state.listener_pid).status()
            except psutil.Error:
                status = ""
            if status == psutil.STATUS_STOPPED:
                yield fault(
                    "listener",
                    f"the listener of '{state.name}' is stopped (pid {state.listener_pid}), and shows nothing",
                    command("kill", "-CONT", str(state.listener_pid)),
                )
            elif state.port != at_broker(settings).port:
                yield warning(
                    "listener",
                    f"'{state.name}' is on port {state.port}, and this is set to {settings.port}{_by_option(settings)}",
                    _set_port(settings, state.port),
                )
            else:
                yield ok("listener", f"'{state.name}', pid {state.listener_pid}")
            return
    try:
        joined = find_joined(files_of(settings.data_dir, owner) for owner in owners)
    except Unauthorized:
        return
    except ZmqbusError as error:
        yield fault("listener", str(error))
        return
    if joined is not None and joined.identity is not None and not joined.identity.left:
        name = joined.identity.name
        says = f"none for '{name}', whose mail waits: zmqbus inbox; one is begun with: zmqbus connect"
        yield ok("listener", says)
        return
    yield ok("listener", "this shell belongs to no session; one joins with: zmqbus connect")
