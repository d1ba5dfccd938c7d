"""Checks the broker on the configured port, or finds out why none answers there."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import zmqbus
from zmqbus.client.locate import at_broker, check_loopback, check_reach, find_broker, is_elected
from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import ZmqbusError
from zmqbus.process import is_alive
from zmqbus.session.owner import find_owners
from zmqbus.session.owner_files import files_of
from zmqbus.session.plugin_options import with_options
from zmqbus.settings import DEFAULT_PORT, MAX_PORT, Settings
from zmqbus.system import network, pidfile
from zmqbus.system.port_holder import holder_of
from zmqbus.text.display import sanitise

#: Variable of the plugin's option `port`, which takes precedence over INTER_SESSION_PORT (`zmqbus.settings`).
_OPTION = "CLAUDE_PLUGIN_OPTION_PORT"
#: Warn when this much old log is kept for unread mail: as much as the log keeps anyway.
MUCH_KEPT_BYTES = 256 * 1024 * 1024
#: A broker answers within milliseconds; one that takes this long is stopped, or overloaded.
PATIENCE_S = 3.0


def broker(settings: Settings) -> Iterator[Finding]:
    """Checks the broker on the port; if none answers, whether one could start there. Starts none."""
    settings = at_broker(settings)
    served = find_broker(settings)
    if served is None:
        yield from _no_broker(settings)
        return
    from zmqbus.client.oneshot import observer  # needs packages, which may be missing

    try:
        check_reach(settings, served)
        check_loopback(settings.port)
    except ZmqbusError as error:
        yield fault("broker", str(error))
        return
    try:
        with observer(settings, starts=False, patience_s=PATIENCE_S) as bus:
            figures = bus.figures()
    except ZmqbusError as error:
        yield _unusable(settings, served, error)
        return
    yield _answering(settings, served, figures)
    yield from _kept_log(figures)


def _answering(settings: Settings, served: pidfile.Served, figures: dict[str, Any]) -> Finding:
    release = figures.get("release")
    says = f"release {release}, protocol {figures.get('protocol')}, port {settings.port}, pid {served.pid}"
    if release != zmqbus.__version__:
        return warning("broker", f"{says}; this is release {zmqbus.__version__}", "zmqbus broker --stop")
    if figures.get("notices"):
        # The broker has repaired that. Reported once is enough: the next broker has no such notice.
        return warning("broker", f"{says}; it has found: {figures['notices']}", "zmqbus broker --stop")
    return ok("broker", f"{says}, {figures.get('sessions')} sessions")


def _kept_log(figures: dict[str, Any]) -> Iterator[Finding]:
    kept_bytes = figures.get("log_kept_bytes", 0)
    if isinstance(kept_bytes, int) and kept_bytes >= MUCH_KEPT_BYTES:
        says = f"{kept_bytes / 1e6:,.0f} MB of old log are kept for {figures.get('unread')} unread messages"
        yield warning("mail", f"{says}; see whose they are, then read or forget them", "zmqbus list --all")


def _unusable(settings: Settings, served: pidfile.Served, error: ZmqbusError) -> Finding:
    """Reports a broker that holds the lock but speaks another protocol or does not answer."""
    pid = served.pid
    if "speaks protocol" in str(error):
        return fault("broker", f"{error} (pid {pid})", kill_command(served))
    says = str(error).partition(";")[0]
    if network.try_port(settings.port) is network.Port.REFUSED:
        # A hung or stopped broker still accepts connections, so the pid file is not that of the lock's holder.
        return fault(
            "broker",
            f"{says}: nothing listens there, though a process holds the lock on {settings.data_dir}; it is just "
            f"starting or ending, or serves another port or network; find it with: fuser -v {settings.data_dir}",
        )
    if kill_command(served) is None:
        return fault(
            "broker",
            f"{says}; it is hung or stopped, and in another PID namespace (pid {pid} there), so end it there: in the "
            "container or on the machine that it runs on",
        )
    # Killing it loses nothing: all that it has promised is on disk, and the next broker continues from there.
    return fault("broker", f"{says}; it is hung or stopped (pid {pid})", kill_command(served, "-9"))


def kill_command(served: pidfile.Served | None, *options: str) -> str | None:
    """Returns the command that ends a broker; None when its pid may belong to another process here."""
    if served is None or served.process is None or not is_alive(served.process):
        return None
    return command("kill", *options, str(served.pid))


def _no_broker(settings: Settings) -> Iterator[Finding]:
    port = settings.port
    others = [other for other, served in pidfile.read_all(settings.paths) if other != port and serves(settings, served)]
    if others:
        yield fault(
            "broker",
            f"the broker of {settings.data_dir} serves port {others[0]}, and {port} is set here"
            f"{plugin_port_remark(settings)}; a directory has one broker",
            set_port_command(settings, others[0]),
        )
    elif is_free(port):
        yield _none_yet(settings)
    else:
        yield _held(settings)


def _none_yet(settings: Settings) -> Finding:
    """Reports a free port: whether a broker could start there."""
    last, last_open = pidfile.last_network(settings.paths)
    why = None if settings.loopback_only else network.refusal_reason(os.environ, last, served_open=last_open)
    if not why:
        return ok("broker", f"none runs on port {settings.port}; the first session starts one")
    return fault(
        "broker",
        f"none runs on port {settings.port}, and none is started here: this shell has a network of its own with "
        f"nothing but a loopback ({why}). {network.GET_OUT}; if all sessions live in this network, set "
        "INTER_SESSION_LOOPBACK_ONLY=1",
    )


def _held(settings: Settings) -> Finding:
    """Reports a port that another program holds."""
    port = settings.port
    holder = holder_of(port)
    says = f"port {port} is held by another program" + (f": {holder}" if holder else "")
    if port == DEFAULT_PORT:
        return warning("broker", f"{says}; the first session starts a broker on another port")
    free = next((other for other in range(port + 1, min(port + 1000, MAX_PORT)) if is_free(other)), 0)
    return fault("broker", f"{says}{plugin_port_remark(settings)}", set_port_command(settings, free) if free else None)


def set_port_command(settings: Settings, port: int) -> str:
    """Returns the command that sets the port in a shell. The plugin's option wins over INTER_SESSION_PORT."""
    return f"export {_OPTION if _plugin_port(settings) else 'INTER_SESSION_PORT'}={port}"


def plugin_port_remark(settings: Settings) -> str:
    """Returns a remark if the port comes from the plugin's option, which is set for all sessions; "" otherwise."""
    given = _plugin_port(settings)
    return f" (the plugin's option `port` says {given}; in Claude Code, /plugin changes it)" if given else ""


def _plugin_port(settings: Settings) -> str:
    """Returns the plugin's option `port` as this shell or its session has it; "" when it is not set."""
    owner = find_owners(settings.owner_pid_override, os.environ)[0]
    return sanitise(with_options(files_of(settings.data_dir, owner), os.environ).get(_OPTION, "").strip(), 20)


def any_broker(settings: Settings) -> pidfile.Served | None:
    """Returns the broker of this data directory, whatever port it serves; None if none runs."""
    return next((served for _, served in pidfile.read_all(settings.paths) if serves(settings, served)), None)


def serves(settings: Settings, served: pidfile.Served | None) -> bool:
    """Whether a pid file may be that of a running broker: the broker's lock is held, and the process may live."""
    return served is not None and is_elected(settings) and served.may_live


def is_free(port: int) -> bool:
    """Whether no program listens on a port; a port that may not be bound counts as free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the broker does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True
