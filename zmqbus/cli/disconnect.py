"""`zmqbus disconnect`: end this session's listener, if it has one, and free its name at once."""

from __future__ import annotations

from zmqbus.cli.output import fail, tell
from zmqbus.cli.parser import Parser
from zmqbus.errors import NotConnected, ZmqbusError
from zmqbus.session.identity import identify
from zmqbus.text.display import sanitise
from zmqbus.wire import verbs


def main(argv: list[str]) -> int:
    """Disconnects. Repeating it is no error."""
    Parser("disconnect", "End this session's listener and free its name. Idempotent.").parse_args(argv)
    try:
        caller = identify()
        try:
            with caller.read() as bus:
                done = bus.request(verbs.Disconnect)
        except NotConnected:
            caller.note_disconnected()
            print("not connected")
            return 0
        assert isinstance(done, verbs.Done)
        caller.note_disconnected()
        tell(sanitise(done.text))
    except ZmqbusError as error:
        return fail(error)
    return 0
