"""`zmqbus rename NEW`: give this session another name, in place.

The broker has stored the name when it reports success. The listener is notified at the same time, and stores the name
for the session's other commands and for its next listener. The command waits for that, because on a full disk it may
not succeed, and "renamed" alone would then be only half of the truth.
"""

from __future__ import annotations

import sys
import time

from zmqbus.cli.output import fail, tell
from zmqbus.cli.parser import Parser
from zmqbus.errors import ZmqbusError
from zmqbus.session.identity import Caller, identify
from zmqbus.text.display import sanitise
from zmqbus.wire import verbs
from zmqbus.wire.naming import check_name

#: How long the listener may take to store the new name. It normally takes a millisecond.
STORED_S = 2.0
#: Pause between two checks for that.
CHECK_S = 0.005


def main(argv: list[str]) -> int:
    """Renames the session; its listener goes on under the new name."""
    parser = Parser("rename", "Give this session another name; its listener goes on.")
    parser.add_argument("name", metavar="NEW")
    options = parser.parse_args(argv)
    try:
        name = check_name(options.name)
        caller = identify()
        with caller.act()[1] as bus:
            done = bus.request(lambda ref: verbs.Rename(ref, name))
    except ZmqbusError as error:
        return fail(error)
    assert isinstance(done, verbs.Done)
    if not _is_stored(caller, name):
        print(
            f"warning: the listener has not written the new name into {caller.settings.paths.clients} yet, and keeps "
            "trying; free some space if that disk is full",
            file=sys.stderr,
        )
    tell(f"renamed {sanitise(done.text)} to {name}" if done.text != name else f"already named {name}")
    return 0


def _is_stored(caller: Caller, name: str) -> bool:
    deadline_s = time.monotonic() + STORED_S
    while True:
        state = caller.session().state
        if state is None or state.name == name:
            return True  # the listener has ended meanwhile: the next one gets its name from the broker
        if time.monotonic() > deadline_s:
            return False
        time.sleep(CHECK_S)
