"""Checks the listener of the session that this shell belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zmqbus.client.locate import at_broker
from zmqbus.doctor.broker import plugin_port_remark, set_port_command
from zmqbus.doctor.report import Finding, command, fault, ok, warning
from zmqbus.errors import Unauthorized, ZmqbusError
from zmqbus.process import Process
from zmqbus.session.identity import find_joined, is_listening
from zmqbus.session.owner_files import files_of, stem_of
from zmqbus.session.state import SessionState, load_state
from zmqbus.settings import Settings


def listener(settings: Settings, owners: Sequence[Process]) -> Iterator[Finding]:
    """Checks the listener of the first owner that has one; without any, reports how to start one."""
    try:
        for owner in owners:
            finding = _listener_of(settings, owner)
            if finding is not None:
                yield finding
                return
        yield _no_listener(settings, owners)
    except Unauthorized:
        return  # the permissions check reports it
    except ZmqbusError as error:
        yield fault("listener", str(error))


def _listener_of(settings: Settings, owner: Process) -> Finding | None:
    state = load_state(settings.data_dir, stem_of(settings.data_dir, owner))
    if not is_listening(settings.data_dir, owner):
        return None
    if state is None:
        return warning("listener", f"one of process {owner.pid} is just starting, or its state file was removed")
    return _running(settings, state) if state.owner.is_same(owner) else None


def _running(settings: Settings, state: SessionState) -> Finding:
    if _is_stopped(state.listener_pid):
        return fault(
            "listener",
            f"the listener of '{state.name}' is stopped (pid {state.listener_pid}), so it shows no messages",
            command("kill", "-CONT", str(state.listener_pid)),
        )
    if state.port != at_broker(settings).port:
        return warning(
            "listener",
            f"'{state.name}' is on port {state.port}, and {settings.port} is set here{plugin_port_remark(settings)}",
            set_port_command(settings, state.port),
        )
    return ok("listener", f"'{state.name}', pid {state.listener_pid}")


def _is_stopped(pid: int) -> bool:
    import psutil  # may be missing

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _no_listener(settings: Settings, owners: Sequence[Process]) -> Finding:
    joined = find_joined(files_of(settings.data_dir, owner) for owner in owners)
    if joined is None or joined.identity is None or joined.identity.left:
        return ok("listener", "this shell belongs to no session; connect one with: zmqbus connect")
    name = joined.identity.name
    return ok("listener", f"none for '{name}'; read its mail with: zmqbus inbox; start one with: zmqbus connect")
