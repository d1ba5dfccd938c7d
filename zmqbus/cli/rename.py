"""`zmqbus rename NEW`: another name for this session, in place.

The broker has stored the name when it says that it is done. The listener hears of it at the same time, and writes it
down for the session's other commands and for its next listener: that is waited for, since a full disk may keep it from
that, and "renamed" alone would not be all of the truth.
"""

from __future__ import annotations

import sys
import time

from zmqbus.cli.common import act_as_session, fail, own_session, tell
from zmqbus.cli.parser import Parser
from zmqbus.errors import ZmqbusError
from zmqbus.settings import Settings, load
from zmqbus.text.display import sanitise
from zmqbus.wire import verbs
from zmqbus.wire.naming import check_name

#: How long the listener may take to write down the new name. It takes a millisecond.
WRITTEN_S = 2.0
#: Between two looks at that.
LOOK_S = 0.005


def main(argv: list[str]) -> int:
    """Renames the session; its listener goes on under the new name."""
    parser = Parser("rename", "Give this session another name; its listener goes on.")
    parser.add_argument("name", metavar="NEW")
    options = parser.parse_args(argv)
    try:
        name = check_name(options.name)
        settings = load()
        _, bus = act_as_session(settings)
        with bus:
            done = bus.request(lambda ref: verbs.Rename(ref, name))
    except ZmqbusError as error:
        return fail(error)
    assert isinstance(done, verbs.Done)
    if not _is_written_down(settings, name):
        print(
            f"warning: the listener has not written the new name into {settings.paths.clients} yet; it goes on trying. "
            "Is the disk full? Its own lines say so",
            file=sys.stderr,
        )
    tell(f"renamed {sanitise(done.text)} to {name}" if done.text != name else f"already named {name}")
    return 0


def _is_written_down(settings: Settings, name: str) -> bool:
    deadline_s = time.monotonic() + WRITTEN_S
    while True:
        state, _ = own_session(settings)
        if state is None or state.name == name:
            return True  # the listener has ended meanwhile: the next one hears its name from the broker
        if time.monotonic() > deadline_s:
            return False
        time.sleep(LOOK_S)
