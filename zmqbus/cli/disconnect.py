"""`zmqbus disconnect`: end this session's listener, if it has one, and free its name at once."""

from __future__ import annotations

from zmqbus.cli.common import fail, note_disconnected, read_as_session, tell
from zmqbus.cli.parser import Parser
from zmqbus.errors import NotConnected, ZmqbusError
from zmqbus.settings import load
from zmqbus.text.display import sanitise
from zmqbus.wire import verbs


def main(argv: list[str]) -> int:
    """Disconnects. Doing so twice is no error."""
    Parser("disconnect", "End this session's listener and free its name. Idempotent.").parse_args(argv)
    try:
        with read_as_session(load()) as bus:
            done = bus.request(verbs.Disconnect)
    except NotConnected:
        note_disconnected(load())
        print("not connected")
    except ZmqbusError as error:
        return fail(error)
    else:
        assert isinstance(done, verbs.Done)
        note_disconnected(load())
        tell(sanitise(done.text))
    return 0
