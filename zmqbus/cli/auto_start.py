"""`auto_start.py`, `zmqbus auto-start`: choose whether the plugin's monitor starts with the session or with the skill.

The choice is one field of the plugin's `monitors/monitors.json`, which belongs to Claude Code and its user: everything
else in it stays unchanged, and the file is replaced as a whole, so that nobody ever reads half of it.

Clients call the plugin's skill `inter-session:inter-session`; older ones may know it by its last part. The file has a
monitor for each of the two names, since a listener that finds another one of its session leaves without a word. The
choice is that of the first.

The path of the running script determines the plugin. Links are not followed: a stand-alone skill may be a link into a
plugin that is not in use.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser
from zmqbus.errors import ZmqbusError
from zmqbus.text import wording

PLUGIN = "inter-session"
MONITOR = "inter-session"
ALWAYS = "always"
ON_SKILL = f"on-skill-invoke:{PLUGIN}:inter-session"
#: The skill's name in older clients, and in files that an earlier release has written.
ON_SKILL_OLDER = "on-skill-invoke:inter-session"
#: The plugin's file has 300 bytes; users may add monitors.
MAX_BYTES = 1024 * 1024

_WHEN = {
    ALWAYS: "on: the monitor starts with every session",
    **dict.fromkeys((ON_SKILL, ON_SKILL_OLDER), "off: the monitor starts when a session uses the skill inter-session"),
}
_STAND_ALONE = (
    "auto-start: nothing to switch: this is a stand-alone skill or a checkout, not an installed plugin, and has no "
    "monitor of its own; {} starts one"
)


class MonitorsError(ZmqbusError):
    """monitors.json cannot be read or written."""

    code = "auto_start"


def main(argv: list[str]) -> int:
    """Prints the choice or changes it; returns 0 also where there is nothing to change."""
    parser = Parser("auto-start", "Choose whether the plugin's monitor starts with every session.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="print the choice (the default)")
    what.add_argument("--on", action="store_true", help="start it with every session")
    what.add_argument("--off", action="store_true", help="start it when the skill is used")
    options = parser.parse_args(argv)
    root = find_plugin(sys.argv[0])
    if root is None:
        print(_STAND_ALONE.format(wording.command("connect")))
        return 0
    path = os.path.join(root, "monitors", "monitors.json")
    try:
        monitors = _read(path)
        monitor = _our_monitor(monitors, path)
        before = monitor.get("when")
        wanted = ALWAYS if options.on else ON_SKILL if options.off else before
        if wanted != before:
            monitor["when"] = wanted
            _write(path, monitors)
    except MonitorsError as error:
        return fail(error)
    print(f"auto-start is {_WHEN.get(str(wanted), f'set to {wanted!r}, which this release does not know')}")
    if wanted != before:
        run = "run /reload-plugins" if wording.for_agent() else "run /reload-plugins in Claude Code"
        print(f"{run} to apply it; an update of the plugin sets it back to off")
    return 0


def find_plugin(script: str) -> str | None:
    """The root of the plugin to which a script in its `bin/`, or in its skill's, belongs; None: it belongs to none."""
    place = os.path.dirname(os.path.dirname(os.path.abspath(script)))
    for root in (place, os.path.dirname(os.path.dirname(place))):
        try:
            with open(os.path.join(root, ".claude-plugin", "plugin.json"), encoding="utf-8") as file:
                if json.load(file)["name"] == PLUGIN:
                    return root
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue
    return None


def _read(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.read(MAX_BYTES))
    except OSError as error:
        raise MonitorsError(f"cannot read {path}: {error.strerror}; reinstall the plugin") from None
    except (ValueError, RecursionError) as error:
        raise MonitorsError(f"{path} is not JSON ({error}); fix it, or reinstall the plugin") from None


def _our_monitor(monitors: Any, path: str) -> dict[str, Any]:
    for monitor in monitors if isinstance(monitors, list) else ():
        if isinstance(monitor, dict) and monitor.get("name") == MONITOR:
            return monitor
    raise MonitorsError(f"{path} has no monitor named '{MONITOR}'; fix it, or reinstall the plugin")


def _write(path: str, monitors: Any) -> None:
    path = os.path.realpath(path)
    draft = f"{path}.{os.getpid()}.tmp"
    text = json.dumps(monitors, indent=2, ensure_ascii=False) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError:  # JSON may contain a lone surrogate
        data = (json.dumps(monitors, indent=2) + "\n").encode()
    try:
        mode = os.stat(path).st_mode & 0o777
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        os.fchmod(descriptor, mode)  # the umask may have taken some of it
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, path)
    except OSError as error:
        try:
            os.unlink(draft)
        except OSError:
            pass  # it could not be created
        raise MonitorsError(
            f"cannot write {path}: {error.strerror}; make it and its directory writable and free some space; "
            "nothing was changed"
        ) from None
