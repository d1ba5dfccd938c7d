"""`approve.py`, two hooks of the plugin: answer in the user's place for bus commands that only talk.

Claude Code passes a JSON object on standard input, and reads one from standard output. `zmqbus.agents.permission`
decides. Nothing printed means that the client goes on as without the hook: for every other command, for an event that
cannot be read, and where the option `approve_bus_commands` is off.

* PermissionRequest: the client runs it where it would ask, and nowhere else. Where the user is asked, for whatever
  tool, the session's agent is blocked until then (`zmqbus.session.agent_state`).
* PreToolUse, for the modes that do not ask: `auto`, where a check by a server decides, and `dontAsk`, where all is
  refused that no rule allows. A condition in hooks.json (`if`, which all clients with monitors know) runs it only for
  commands with a script of the skill. It also runs for the Monitor tool, of which the client (2.1.332) asks whatever a
  PermissionRequest hook says, and which starts the listener again each time that a monitor has ended.

The path of this script, as the client has called it, says which plugin's commands may run: links are not followed,
since the agent types the path as the client has told it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from zmqbus.agents.permission import MAX_COMMAND_BYTES, why_asked
from zmqbus.session.agent_state import report_quietly
from zmqbus.session.last_seen import note_seen
from zmqbus.session.owner import find_owners
from zmqbus.session.owner_files import LOCK, files_of
from zmqbus.session.plugin_options import approves
from zmqbus.settings import locate

_GO_ON: dict[str, object] = {
    "permissionDecision": "allow",
    "permissionDecisionReason": "a command of inter-session that only talks",
}
#: Event and tool -> what the answer says beside the event's name.
ANSWERS: dict[tuple[object, object], dict[str, object]] = {
    ("PermissionRequest", "Bash"): {"decision": {"behavior": "allow"}},
    ("PreToolUse", "Bash"): _GO_ON,
    ("PreToolUse", "Monitor"): _GO_ON,
}
#: A command of that size, each byte of it escaped as \u00xx, and what else the event says.
MAX_INPUT_BYTES = 6 * MAX_COMMAND_BYTES + 1024 * 1024
#: Where the plugin has a bin/.
PLACES = (("bin",), ("skills", "inter-session", "bin"))


def main(argv: list[str]) -> int:
    """Answers one event. Always returns 0: another status of a hook would disturb the session."""
    try:
        event = json.loads(sys.stdin.buffer.read(MAX_INPUT_BYTES))
        answer = _answer(event)
        if answer is not None:
            os.write(sys.stdout.fileno(), (json.dumps({"hookSpecificOutput": answer}) + "\n").encode())
        _note(event["hook_event_name"], "" if answer is not None else event["tool_name"])
    except Exception as error:  # reported on standard error; the user is asked
        print(f"inter-session hook: {type(error).__name__}: {error}", file=sys.stderr)
    return 0


def directories_of(script: str, environ: Mapping[str, str]) -> list[str]:
    """The directories of the plugin's scripts, each as an agent may have been told it."""
    roots = (os.path.dirname(os.path.dirname(os.path.abspath(script))), environ.get("CLAUDE_PLUGIN_ROOT", ""))
    return [os.path.join(root.rstrip("/"), *place) for root in roots if root for place in PLACES]


def _answer(event: dict[str, Any]) -> dict[str, object] | None:
    """What lets the command run; None: nothing to say."""
    kind, tool = event["hook_event_name"], event["tool_name"]
    # guards: permission [or not approves(os.environ) =>]
    if (kind, tool) not in ANSWERS or not approves(os.environ):
        return None
    # guards: permission
    if why_asked(event["tool_input"], directories_of(sys.argv[0], os.environ)) is not None:
        return None
    return {"hookEventName": kind, **ANSWERS[kind, tool]}


def _note(event: str, asked: str) -> None:
    """Stores for the doctor that this hook has run, and for the bus which tool the user is `asked` about."""
    location = locate(warn=lambda _: None)
    owners = find_owners(location.owner_pid_override, os.environ)
    files = files_of(location.data_dir, owners[0])
    note_seen(files, event)
    # guards: permission [event == "PermissionRequest" and => True and]
    if event == "PermissionRequest" and asked and os.path.exists(files.path(LOCK)):
        report_quietly(files, "blocked", f"permission for {asked}")
