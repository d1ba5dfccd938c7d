"""`zmqbus rename NEW`: another name for this session, in place."""

from __future__ import annotations

from zmqbus import protocol
from zmqbus.cli.common import act_as_session, fail
from zmqbus.cli.parser import Parser
from zmqbus.display import sanitise
from zmqbus.errors import ZmqbusError
from zmqbus.naming import check_name
from zmqbus.settings import load


def main(argv: list[str]) -> int:
    """Renames the session; its listener goes on under the new name."""
    parser = Parser("rename", "Give this session another name; its listener goes on.")
    parser.add_argument("name", metavar="NEW")
    options = parser.parse_args(argv)
    try:
        name = check_name(options.name)
        _, bus = act_as_session(load())
        with bus:
            done = bus.request(lambda ref: protocol.Rename(ref, name))
    except ZmqbusError as error:
        return fail(error)
    assert isinstance(done, protocol.Done)
    print(f"renamed {sanitise(done.text)} to {name}" if done.text != name else f"already named {name}")
    return 0
