"""`zmqbus inbox`: print the unread messages of this session, or one message whole."""

from __future__ import annotations

import sys
import time

from zmqbus.cli.jsonform import arrived, message, print_json
from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser
from zmqbus.client import payload
from zmqbus.client.core import Incoming, Persona
from zmqbus.errors import InvalidPayload, UnknownPeer, ZmqbusError
from zmqbus.journal import reader
from zmqbus.journal.record import JournalError, as_text
from zmqbus.session.identity import identify
from zmqbus.settings import Settings
from zmqbus.system.streams import print_text
from zmqbus.text.display import INDENT, sanitise, sanitise_lines
from zmqbus.wire import verbs


def main(argv: list[str]) -> int:
    """Prints unread messages, oldest first, and marks them read, unless `--peek` is given."""
    parser = Parser("inbox", "Print this session's unread messages, oldest first, and mark them read.")
    parser.add_argument("--peek", action="store_true", help="leave them unread")
    parser.add_argument("--msg", metavar="ID", help="print the whole text of this message, from the log")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object for each message")
    form.add_argument(
        "--raw",
        action="store_true",
        help="with --msg: the text unchanged, even at a terminal, which obeys its controls",
    )
    options = parser.parse_args(argv)
    if options.raw and options.msg is None:
        parser.error("--raw goes with --msg ID")
    try:
        caller = identify()
        settings = caller.settings
        if options.msg is not None:
            return _one(settings, options.msg, as_json=options.json, raw=options.raw or not sys.stdout.isatty())
        with caller.read() as bus:
            printed = False  # all that came may have been shown already, before the broker was replaced
            for item in bus.unread(peek=options.peek):
                if isinstance(item, verbs.Fetched):
                    _end(printed, item.left, as_json=options.json)
                    break
                printed = True
                error = _print(settings, bus.identity, item, as_json=options.json)
                sys.stdout.flush()
                if error is not None:
                    print(
                        f"warning: {error}; ask '{sanitise(item.header.from_name)}' to send it again", file=sys.stderr
                    )
                if not options.peek:
                    bus.take(item)
    except ZmqbusError as error:
        return fail(error)
    return 0


def _one(settings: Settings, msg_id: str, *, as_json: bool, raw: bool) -> int:
    """Prints one message whole: every byte to a file or a pipe, sanitised at a terminal."""
    if not verbs.is_msg_id(msg_id):
        raise InvalidPayload("--msg takes the id of a message: 8 to 12 lower-case letters and digits")
    record = reader.find(settings.paths.log, msg_id)
    if record is None:
        raise UnknownPeer(f"no message {msg_id} in {settings.paths.log} or its rotated files; check the id")
    print_json(message(record)) if as_json else print_text(as_text(record.fmt, record.body), raw=raw)
    return 0


def _print(settings: Settings, mine: Persona, incoming: Incoming, *, as_json: bool) -> JournalError | None:
    """Prints a message; returns the error if its text cannot be read.

    Such a message is marked read all the same; otherwise it would hold up all later ones for good.
    """
    header = incoming.header
    fmt, body, error = payload.readable(incoming, settings.paths.log)
    if as_json:
        form = arrived(incoming._replace(header=header._replace(fmt=fmt)), body, mine.name, mine.session_id)
        print_json(form if error is None else {**form, "damaged": True})
        return error
    audience = payload.audience(header)
    label = f' "{sanitise(header.from_label)}"' if header.from_label else ""
    answers = f" re={sanitise(header.reply_to)}" if header.reply_to else ""
    to = f" to={sanitise(audience)}" if audience else ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.ts))
    print(f'msg={sanitise(incoming.msg_id)} from="{sanitise(header.from_name)}"{label}{answers}{to} at {when}')
    # Indented, so that no line of a body looks like a header.
    for line in sanitise_lines(payload.as_text(fmt, body)):
        print(f"{INDENT}{line}")
    return error


def _end(printed: bool, left: int, *, as_json: bool) -> None:
    if as_json:
        return
    if not printed:
        print("no unread messages")
    if left:
        print(f"{left} more unread")
