"""The plugin's options, handed on from its SessionStart hook to the monitor and the commands of the same session.

Claude Code gives what the user has set as `CLAUDE_PLUGIN_OPTION_<KEY>` to the plugin's hooks, and to nobody else: not
to monitors, not to the shells that the agent starts. So the hook writes it down, in
`<data>/clients/<owner pid>.options`, and whoever belongs to the same owner reads it there as if its own environment
held it. What that really holds wins.

Like the other files of an owner it bears the owner's start time and place, so that another process with the same pid
does not take it for its own (`zmqbus.session.owned`), and it is removed with them (`zmqbus.session.state`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from zmqbus.process import Process
from zmqbus.security.private_files import load_json, replace, secure_dir
from zmqbus.session.owned import OPTIONS, owner_in, path_of, record_of, stem_of
from zmqbus.settings import Paths

#: What is handed on. Other options are not the bus's.
VARIABLES = ("CLAUDE_PLUGIN_OPTION_PORT", "CLAUDE_PLUGIN_OPTION_IDLE_SHUTDOWN_MINUTES")
#: Two numbers. A larger file is not ours.
MAX_BYTES = 4096
#: A monitor that is started with the session may be faster than the hook. Where hooks are switched off it waits for
#: nothing, and nobody would notice two seconds at the start of a session.
WAIT_S = 2.0
LOOK_S = 0.01


def hand_on(data_dir: str, owner: Process, environ: Mapping[str, str]) -> None:
    """Writes down the options in `environ`; none is an answer too, for whoever waits for one.

    Raises `Unauthorized` where others could read it, `NotConnected` where it cannot be written.
    """
    secure_dir(data_dir)
    secure_dir(Paths(data_dir).clients)
    options = {name: environ[name] for name in VARIABLES if environ.get(name)}
    record = {**record_of(owner), "options": options}
    path = path_of(data_dir, stem_of(data_dir, owner), OPTIONS)
    if load_json(path, MAX_BYTES) != record:
        replace(path, json.dumps(record).encode())


def with_options(data_dir: str, owner: Process, environ: Mapping[str, str], wait_s: float = 0.0) -> Mapping[str, str]:
    """`environ`, and below it what was handed on to this owner; waits up to `wait_s` for the hook to do so.

    Raises `Unauthorized` where somebody else could have written the file.
    """
    deadline_s = time.monotonic() + wait_s
    while (options := _read(data_dir, owner)) is None:
        if time.monotonic() >= deadline_s:
            return environ
        time.sleep(LOOK_S)
    # Blank is not set, as everywhere.
    return {**environ, **{name: value for name, value in options.items() if not environ.get(name, "").strip()}}


def _read(data_dir: str, owner: Process) -> dict[str, str] | None:
    """What was handed on to this very process; None: nothing yet."""
    stem = stem_of(data_dir, owner)
    record = load_json(path_of(data_dir, stem, OPTIONS), MAX_BYTES)
    found = owner_in(record, stem)
    if found is None or not found.is_same(owner):
        return None
    options = record.get("options")
    if not isinstance(options, dict):
        return None
    return {name: options[name] for name in VARIABLES if isinstance(options.get(name), str)}
