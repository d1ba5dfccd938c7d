"""Runs all checks, in an order in which an earlier fault may explain a later one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from zmqbus.doctor import broker, client, environment, hooks, keys, leftovers, listener, permissions, storage
from zmqbus.doctor.report import Finding, fault
from zmqbus.errors import ZmqbusError
from zmqbus.process import Process
from zmqbus.session.owner import find_owners
from zmqbus.session.owner_files import files_of
from zmqbus.session.plugin_options import with_options
from zmqbus.settings import Settings, load


def examine(flags: dict[str, object] | None = None) -> Iterator[Finding]:
    """Runs every check and yields its findings. Changes and starts nothing. Raises `InvalidOption`."""
    warnings: list[str] = []
    settings = load(flags, warn=warnings.append)
    yield from _run("python", environment.python)
    packages = [*_run("packages", lambda: environment.packages(settings))]
    yield from packages
    yield from _run("venv", lambda: environment.venv(settings))
    directory = [*_run("directory", lambda: permissions.directory(settings))]
    if _has_fault(directory):
        # Nothing in the directory can be trusted.
        yield from environment.settings_given(warnings)
        yield from directory
        return
    owners = find_owners(settings.owner_pid_override, os.environ)
    environ: Mapping[str, str] = os.environ
    try:
        warnings.clear()
        environ = with_options(files_of(settings.data_dir, owners[0]), os.environ)
        settings = load(flags, environ, warnings.append)
    except ZmqbusError:
        pass  # others could have written the options file: the permissions check reports it
    yield from environment.settings_given(warnings)
    yield from _run("client", lambda: client.client(owners))
    yield from _run("hooks", lambda: hooks.hooks(settings, owners, environ))
    yield from _run("files", environment.file_limit)
    yield from _run("disk", lambda: environment.disk(settings))
    yield from directory
    if os.path.isdir(settings.data_dir):
        yield from _inside(settings, owners, can_connect=not _has_fault(packages))


def _inside(settings: Settings, owners: list[Process], *, can_connect: bool) -> Iterator[Finding]:
    """Checks that need a sound data directory."""
    private = [*_run("permissions", lambda: permissions.permissions(settings))]
    yield from private
    served = broker.any_broker(settings)
    key_files = (
        [*_run("keys", lambda: keys.keys(settings, broker.kill_command(served), is_served=served is not None))]
        if can_connect
        else []
    )
    yield from key_files
    sound = not _has_fault([*private, *key_files])
    if sound and can_connect:
        yield from _run("broker", lambda: broker.broker(settings))
    yield from _run("stale", lambda: leftovers.stale_files(settings))
    if sound:
        yield from _run("database", lambda: storage.database(settings, is_served=served is not None))
        yield from _run("log", lambda: storage.log(settings))
        yield from _run("index", lambda: storage.index(settings))
        yield from _run("clock", lambda: environment.clock(settings))
        if can_connect:
            yield from _run("listener", lambda: listener.listener(settings, owners))


def _has_fault(findings: list[Finding]) -> bool:
    return any(finding.level == "fault" for finding in findings)


def _run(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yields a check's findings; an error of the check itself becomes a fault and ends no other check."""
    try:
        yield from check()
    except (OSError, ZmqbusError) as error:
        yield fault(name, f"cannot be checked: {error}")
