"""The plugin's options, handed on from its SessionStart hook to the monitor and the commands of the same session.

Claude Code passes what the user has set as `CLAUDE_PLUGIN_OPTION_<KEY>` to the plugin's hooks only: not to monitors,
and not to the shells that the agent starts. So the hook stores the options in `<data>/clients/<owner pid>.options`, and
every process of the same owner reads them there as if they stood in its own environment. Its own environment wins.

Like the other files of an owner, this one holds the owner's start time and place, so that another process with the same
pid does not use it (`zmqbus.session.owner_files`), and it is removed with them (`zmqbus.session.leftovers`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from zmqbus.process import Process
from zmqbus.security.private_files import load_json, replace, secure_dir
from zmqbus.session.owner_files import OPTIONS, OwnerFiles, files_of, is_own, record_of
from zmqbus.settings import Paths

#: The option that lets commands of the bus that only talk run without asking the user.
APPROVE = "CLAUDE_PLUGIN_OPTION_APPROVE_BUS_COMMANDS"
#: The variables that are handed on. Other options do not concern the bus.
VARIABLES = ("CLAUDE_PLUGIN_OPTION_PORT", "CLAUDE_PLUGIN_OPTION_IDLE_SHUTDOWN_MINUTES", APPROVE)
#: Enough for three short values. A larger file was not written by zmqbus.
MAX_BYTES = 4096
#: A monitor that is started with the session may be faster than the hook. Where hooks are switched off it waits in
#: vain, and nobody notices two seconds at the start of a session.
WAIT_S = 2.0
#: Pause between two checks for the file.
CHECK_S = 0.01


def hand_on(data_dir: str, owner: Process, environ: Mapping[str, str]) -> None:
    """Stores the options in `environ`; having none is stored too, for a monitor that waits.

    Raises `Unauthorized` where others could read it, `NotConnected` where it cannot be written.
    """
    secure_dir(data_dir)
    secure_dir(Paths(data_dir).clients)
    options = {name: environ[name] for name in VARIABLES if environ.get(name)}
    record = {**record_of(owner), "options": options}
    path = files_of(data_dir, owner).path(OPTIONS)
    if load_json(path, MAX_BYTES) != record:
        replace(path, json.dumps(record).encode())


def await_options(data_dir: str, owner: Process, wait_s: float) -> None:
    """Waits up to `wait_s` for the hook to store the options of this owner. Raises as `with_options`."""
    deadline_s = time.monotonic() + wait_s
    while _read(files_of(data_dir, owner)) is None and time.monotonic() < deadline_s:
        time.sleep(CHECK_S)


def with_options(files: OwnerFiles, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Adds the options of this owner to `environ`, which wins.

    Raises `Unauthorized` where another user could have written the file.
    """
    options = _read(files)
    if not options:
        return environ
    # A blank variable counts as not set, as everywhere.
    return {**environ, **{name: value for name, value in options.items() if not environ.get(name, "").strip()}}


def approves(environ: Mapping[str, str]) -> bool:
    """Whether `APPROVE` is on: it is not set, or clearly true. Clients export it only where the user has set it."""
    # guards: permission [in ("", "true", "1", "on", "yes") => != "false"]
    return environ.get(APPROVE, "").strip().lower() in ("", "true", "1", "on", "yes")


def _read(files: OwnerFiles) -> dict[str, str] | None:
    """The options stored for this very owner; None: not yet stored."""
    record = load_json(files.path(OPTIONS), MAX_BYTES)
    if not is_own(record, files):
        return None
    options = record.get("options")
    if not isinstance(options, dict):
        return None
    return {name: options[name] for name in VARIABLES if isinstance(options.get(name), str)}
