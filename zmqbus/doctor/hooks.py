"""Checks which parts of the plugin are in force in the session that this shell belongs to, and when each last ran."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zmqbus.doctor.report import Finding, ok, warning
from zmqbus.errors import ZmqbusError
from zmqbus.process import Process, ProcessTable, this_machine
from zmqbus.session.last_seen import last_seen
from zmqbus.session.owner import looks_like_claude
from zmqbus.session.plugin_options import approves
from zmqbus.settings import Settings
from zmqbus.text.units import format_age

#: Events whose hook answers for the user. The others show mail and follow the session.
APPROVING = ("PermissionRequest", "PreToolUse")
#: Settings that an administrator makes; they win.
MANAGED = "/etc/claude-code/managed-settings.json"
#: Settings that switch the plugin's hooks off.
SWITCHES = ("disableAllHooks", "allowManagedHooksOnly")
#: Read limit for a settings file of the client, which has some KiB.
MAX_BYTES = 1024 * 1024
PLUGIN = "inter-session"
#: What a session without hooks lacks.
_LACKING = "without a monitor, mail is shown by zmqbus inbox only"


def hooks(
    settings: Settings, owners: Sequence[Process], environ: Mapping[str, str], table: ProcessTable | None = None
) -> Iterator[Finding]:
    """Checks the hooks of a session of Claude Code. `environ` holds the plugin's options as well."""
    if not looks_like_claude((table or this_machine()).cmdline(owners[0].pid)):
        return
    try:
        seen = last_seen(settings.data_dir, owners[0])
    except ZmqbusError:
        return  # the permissions check reports it
    client = _client_settings(environ)
    yield _hooks(seen, client)
    yield _approvals(seen, client, environ)


def _hooks(seen: Mapping[str, float], client: Mapping[str, Any]) -> Finding:
    switch = _switched_off(client)
    if switch is not None:
        return warning("hooks", f"switched off by {switch} in the client's settings: {_LACKING}; set it to false there")
    told = _told({event: when_s for event, when_s in seen.items() if event not in APPROVING})
    if told:
        return ok("hooks", f"last run: {told}")
    if _has_plugin(client):
        return warning("hooks", f"none has run in this session: {_LACKING}; run /reload-plugins, and see /hooks there")
    return ok("hooks", "none has run in this session; the stand-alone skill has none, the plugin has")


def _approvals(seen: Mapping[str, float], client: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    if not approves(environ):
        return ok("approvals", "off, by the plugin's option approve_bus_commands: every command asks")
    told = _told({event: when_s for event, when_s in seen.items() if event in APPROVING})
    if told:
        return ok("approvals", f"on: commands that only talk do not ask; last asked: {told}")
    if _has_plugin(client) and _switched_off(client) is None:
        return ok("approvals", "on: commands that only talk do not ask; not asked yet in this session")
    return ok("approvals", "none has been given: they are the plugin's, by its hooks; every command may ask")


def _told(seen: Mapping[str, float]) -> str:
    """The events, the last one first, each with its age."""
    now_s = time.time()
    newest_first = sorted(seen.items(), key=lambda item: -item[1])
    return ", ".join(f"{event} {format_age(now_s - when_s)} ago" for event, when_s in newest_first)


def _switched_off(client: Mapping[str, Any]) -> str | None:
    """The setting of the client that switches the plugin's hooks off."""
    return next((name for name in SWITCHES if client.get(name) is True), None)


def _has_plugin(client: Mapping[str, Any]) -> bool:
    """Whether the client's user settings enable the plugin, from whichever marketplace."""
    enabled = client.get("enabledPlugins")
    return isinstance(enabled, dict) and any(
        on is True and name.partition("@")[0] == PLUGIN for name, on in enabled.items()
    )


def _client_settings(environ: Mapping[str, str]) -> Mapping[str, Any]:
    """The settings of Claude Code, the user's and an administrator's, as far as there are any that can be read."""
    home = environ.get("CLAUDE_CONFIG_DIR") or os.path.join(environ.get("HOME", ""), ".claude")
    found: dict[str, Any] = {}
    for path in (os.path.join(home, "settings.json"), MANAGED):
        try:
            with open(path, "rb") as file:
                settings = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(settings, dict):
            found.update(settings)
    return found
