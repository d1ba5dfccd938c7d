"""All checks, in the order in which one fault may explain the next."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from zmqbus.doctor import bus, client, files, installed
from zmqbus.doctor.report import Finding, fault
from zmqbus.errors import ZmqbusError
from zmqbus.process import Process
from zmqbus.session.owner import find_owners
from zmqbus.session.owner_files import files_of
from zmqbus.session.plugin_options import with_options
from zmqbus.settings import Settings, load


def examine(flags: dict[str, object] | None = None) -> Iterator[Finding]:
    """Looks at everything, and tells what it finds. Changes nothing, starts nothing; may raise `InvalidOption`."""
    warnings: list[str] = []
    settings = load(flags, warn=warnings.append)
    yield from _safely("python", installed.python)
    packages = [*_safely("packages", lambda: installed.packages(settings))]
    yield from packages
    yield from _safely("venv", lambda: installed.venv(settings))
    directory = [*_safely("directory", lambda: files.directory(settings))]
    if any(finding.level == "fault" for finding in directory):
        # Nothing in there can be believed.
        yield from installed.settings_given(warnings)
        yield from directory
        return
    owners = find_owners(settings.owner_pid_override, os.environ)
    try:
        warnings.clear()
        settings = load(flags, with_options(files_of(settings.data_dir, owners[0]), os.environ), warnings.append)
    except ZmqbusError:
        pass  # a file that others could have written: the look at the permissions finds it
    yield from installed.settings_given(warnings)
    yield from _safely("client", lambda: client.client(owners))
    yield from _safely("files", installed.file_limit)
    yield from _safely("disk", lambda: installed.disk(settings))
    yield from directory
    if os.path.isdir(settings.data_dir):
        yield from _inside(settings, owners, can_talk=all(finding.level != "fault" for finding in packages))


def _inside(settings: Settings, owners: list[Process], *, can_talk: bool) -> Iterator[Finding]:
    permissions = [*_safely("permissions", lambda: files.permissions(settings))]
    yield from permissions
    broker = bus.any_broker(settings)
    keys = (
        [*_safely("keys", lambda: files.keys(settings, bus.kill(broker), is_served=broker is not None))]
        if can_talk
        else []
    )
    yield from keys
    sound = all(finding.level != "fault" for finding in (*permissions, *keys))
    if sound and can_talk:
        yield from _safely("broker", lambda: bus.broker(settings))
    yield from _safely("stale", lambda: bus.stale_files(settings))
    if sound:
        yield from _safely("database", lambda: files.database(settings, is_served=broker is not None))
        yield from _safely("log", lambda: files.log(settings))
        yield from _safely("index", lambda: files.index(settings))
        yield from _safely("clock", lambda: installed.clock(settings))
        if can_talk:
            yield from _safely("listener", lambda: bus.listener(settings, owners))


def _safely(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; that it cannot look is a finding as well."""
    try:
        yield from look()
    except (OSError, ZmqbusError) as error:
        yield fault(check, f"cannot be looked at: {error}")
