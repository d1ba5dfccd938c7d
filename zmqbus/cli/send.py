"""`send.py`, `zmqbus send`, `zmqbus broadcast`: say something to one session, to several, or to many.

This is the command that agents run most, and it lives for 40 milliseconds: it imports what it needs and no more.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from zmqbus.cli.fast_args import plain
from zmqbus.cli.output import fail, tell
from zmqbus.client import payload
from zmqbus.client.oneshot import CommandBus, guest
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.errors import BrokerUnavailable, InvalidOption, InvalidPayload, RateLimited, ZmqbusError
from zmqbus.session.identity import identify
from zmqbus.settings import NO_DIRECTORY, Settings, shown_path, where_am_i
from zmqbus.system import cmdline
from zmqbus.text.display import as_block, sanitise
from zmqbus.wire import verbs
from zmqbus.wire.naming import check_name
from zmqbus.wire.verbs import Scope

if TYPE_CHECKING:
    from zmqbus.cli.parser import Parser

#: How long `--wait` waits for an answer when no number is given.
WAIT_S = 120.0
#: Sessions that an error names at most.
MAX_NAMED = 5
#: A year. What is over that is not a time to wait, and does not fit into a poll.
MAX_WAIT_S = 366 * 24 * 3600.0
#: A text of the largest size, its line end, and one byte that tells that it is too long.
MAX_READ_BYTES = verbs.MAX_BODY_BYTES + 3
# What `plain` reads: word → field. Of the targets and of the contents it takes exactly one.
_TARGETS = {"--to": "to", "--group": "group", "--topic": "topic"}
_TARGET_SWITCHES = {"--all": "all", "--project": "project"}
_CONTENTS = {"--text": "text", "--text-file": "text_file", "--file": "file"}
_VALUES = {**_TARGETS, **_CONTENTS, "--reply-to": "reply_to", "--as": "sender", "--port": "port"}
_SWITCHES = {**_TARGET_SWITCHES, "--json": "json"}


def main(argv: list[str], *, broadcast: bool = False) -> int:
    """Sends; prints what became of it. With `broadcast`, to all if nothing else is said."""
    options = (None if broadcast else _plain(argv)) or _parse(argv, broadcast)
    cmdline.hide((options.text,))
    if broadcast and not (options.project or options.topic):
        options.all = True
    to_many = _is_to_many(options)
    try:
        caller = identify({"port": options.port})
        body = payload.from_text(_body(options), to_many=to_many)
        payload.check_not_empty(body)
        if options.sender:
            check_name(options.sender)
            bus, project = guest(caller.settings, options.sender), where_am_i().project
        else:
            state, bus = caller.act()
            project = state.project
        with bus:
            return _send(bus, options, body, project, caller.settings)
    except ZmqbusError as error:
        return fail(error)


def _plain(argv: list[str]) -> Any:
    given = plain(argv, _VALUES, _SWITCHES)
    if given is None:
        return None
    for choice in ({*_TARGETS.values(), *_TARGET_SWITCHES.values()}, set(_CONTENTS.values())):
        if len(choice & given.keys()) != 1:
            return None
    nothing = dict.fromkeys(_VALUES.values()) | dict.fromkeys(_SWITCHES.values(), False)
    return SimpleNamespace(**nothing | given, wait=None, raw=False)


def _parse(argv: list[str], broadcast: bool) -> Any:
    parser = _parser(broadcast)
    options = parser.parse_args(argv)
    if options.wait is not None and (_is_to_many(options) or "," in (options.to or "")):
        parser.error("--wait takes one receiver: a name after --to, or a group")
    if options.raw and options.wait is None:
        parser.error("--raw is about the answer; add --wait")
    return options


def _is_to_many(options: Any) -> bool:
    return bool(options.all or options.project or options.topic)


def _parser(broadcast: bool) -> Parser:
    from zmqbus.cli.parser import Parser

    if broadcast:
        parser = Parser("broadcast", "Send a text to every session, to those of this project, or of a topic.")
    else:
        parser = Parser("send", "Send a text to a session, to several, or to many.")
    to = parser.add_mutually_exclusive_group(required=not broadcast)
    if not broadcast:
        to.add_argument("--to", metavar="T[,T…]", help="names, unique prefixes of names, or session ids")
        to.add_argument("--group", metavar="G", help="the least loaded member of a group")
    to.add_argument("--all", action="store_true", help="every session")
    to.add_argument("--project", action="store_true", help="every session of this project")
    to.add_argument("--topic", metavar="T", help="every session that has joined the topic")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--text", metavar="S", help="the text; others see it in the process list for a moment: for secrets take a file"
    )
    what.add_argument(
        "--text-file",
        metavar="F",
        help="a file with the text; - is standard input; one line end at its end is no part of it",
    )
    what.add_argument("--file", metavar="PATH", help="ask the receiver to read this file")
    parser.add_argument("--reply-to", metavar="ID", help="the message that this one answers")
    if not broadcast:
        parser.add_argument(
            "--wait", nargs="?", type=_seconds, const=WAIT_S, metavar="S", help="wait for the answer, and print it"
        )
    parser.add_argument("--as", dest="sender", metavar="NAME", help="speak under this name, without a listener")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if not broadcast:
        parser.add_argument("--raw", action="store_true", help="with --wait: the answer as it is, not made safe")
    parser.add_port()
    parser.set_defaults(to=None, group=None, wait=None, raw=False)
    return parser


def _seconds(text: str) -> float:
    from argparse import ArgumentTypeError

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_WAIT_S:  # false for a NaN, too
        raise ArgumentTypeError(f"'{text:.40}' is not a number of seconds")
    return value


def _body(options: Any) -> str | bytes:
    if options.text is not None:
        return _typed(options.text)
    if options.file is not None:
        return _pointer(options.file)
    try:
        if options.text_file == "-":
            return _without_line_end(sys.stdin.buffer.read(MAX_READ_BYTES))
        with open(options.text_file, "rb") as file:
            return _without_line_end(file.read(MAX_READ_BYTES))
    except OSError as error:
        what = "standard input" if options.text_file == "-" else shown_path(options.text_file)
        raise InvalidPayload(f"cannot read {sanitise(what)}: {error.strerror}; check --text-file") from None
    except ValueError:  # a NUL in the name
        raise InvalidPayload("--text-file takes the path of a file, or -") from None


def _typed(text: str) -> str | bytes:
    """A text from the command line. Where the locale could not read it, its bytes as they were typed."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _pointer(path: str) -> str:
    """The text that asks the receiver to read a file."""
    shown = sanitise(shown_path(path))
    if not os.path.isabs(path):
        raise InvalidPayload(f"--file needs an absolute path, not '{shown}'; the receiver has another directory")
    try:
        size_bytes = os.path.getsize(path) if os.path.isfile(path) else None
    except (OSError, ValueError):
        size_bytes = None
    if size_bytes is None:
        raise InvalidPayload(f"there is no file at {shown}; check the path")
    if shown != path:
        # What a line of text cannot show, or is not UTF-8, in a notation that a shell takes for the file's name.
        shown = "$'" + "".join(map(_ansi_c, os.fsencode(path))) + "' (as bash writes it)"
    return f"Please read the file {shown} ({size_bytes:,} bytes) and handle it as if it stood here."


def _ansi_c(byte: int) -> str:
    character = chr(byte)
    return character if character.isascii() and character.isprintable() and character not in "\\'" else f"\\x{byte:02x}"


def _without_line_end(text: bytes) -> bytes:
    """A here-document, `echo` and an editor end the last line, too: that line end is no part of the text."""
    return text[: -2 if text.endswith(b"\r\n") else -1] if text.endswith(b"\n") else text


def _send(bus: CommandBus, options: Any, body: bytes, project: str, settings: Settings) -> int:
    if options.reply_to is not None and not verbs.is_msg_id(options.reply_to):
        raise InvalidPayload("--reply-to takes the id of a message: 8 to 12 lower-case letters and digits")
    targets, scope = _targets(options, project)
    sent = [
        bus.post(target, body, scope=scope, reply_to=options.reply_to, await_answer=options.wait is not None)
        for target in targets
    ]
    outcomes: list[Receipt | BroadcastReceipt | ZmqbusError] = []
    for msg_id in sent:
        try:
            outcomes.append(bus.outcome(msg_id))
        except ZmqbusError as error:
            outcomes.append(error)
    errors = [outcome for outcome in outcomes if isinstance(outcome, ZmqbusError)]
    receipts = [outcome for outcome in outcomes if not isinstance(outcome, ZmqbusError)]
    if options.wait is not None and receipts:
        return _wait(bus, receipts[0], options, settings)
    lines = "\n".join(map(_line, receipts))
    if options.json and len(targets) > 1:
        _tell_json({"receipts": [*map(_as_json, targets, outcomes)]}, lines)
    elif options.json and receipts:
        _tell_json(_as_json(targets[0], receipts[0]), lines)
    elif receipts:
        _tell(lines, lines)
    for receipt in receipts:
        if isinstance(receipt, BroadcastReceipt):
            if receipt.full:
                whom = _names(receipt.full)
                errors.append(RateLimited(f"not for {whom}: the mailbox is full of unread messages; retry later"))
            if receipt.unsaved:
                errors.append(
                    BrokerUnavailable(
                        f"not for {_names(receipt.unsaved)}: the broker cannot write it down; free some space on the "
                        f"disk of {settings.data_dir}, see {settings.paths.broker_log}, then send it to them again"
                    )
                )
    status = 0
    for refused in errors:
        status = fail(refused)
    return status


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (" …" if len(names) > MAX_NAMED else "")


def _tell(text: str, sent: str, *, raw: bool = False) -> None:
    tell(text, "the message was sent: " + sent.replace("\n", "; ") if sent else "", raw=raw)


def _tell_json(value: object, sent: str) -> None:
    from zmqbus.cli import jsonform  # only for this

    _tell(jsonform.encode(value), sent)


def _as_json(target: str, outcome: Receipt | BroadcastReceipt | ZmqbusError) -> dict[str, Any]:
    from zmqbus.cli import jsonform

    if isinstance(outcome, ZmqbusError):
        return jsonform.refusal(target, outcome)
    return jsonform.receipt(outcome)


def _targets(options: Any, project: str) -> tuple[list[str], Scope]:
    if options.all:
        return [""], Scope.ALL
    if options.project:
        if not project:
            raise InvalidOption(f"--project: {NO_DIRECTORY}")
        return [project], Scope.PROJECT
    if options.topic is not None:
        return [check_name(options.topic, "topic")], Scope.TOPIC
    if options.group is not None:
        return [check_name(options.group, "group")], Scope.GROUP
    targets = dict.fromkeys(target.strip() for target in options.to.split(","))
    if len(targets) > 1:
        targets.pop("", None)  # a comma too many
    return list(targets), Scope.SESSION


def _wait(bus: CommandBus, receipt: Receipt | BroadcastReceipt, options: Any, settings: Settings) -> int:
    """Prints the answer's text, and only then tells the broker that it has been taken."""
    answer = bus.answer_to(receipt.msg_id, options.wait)
    fmt, body, error = payload.readable(answer, settings.paths.log)
    if error is not None:
        bus.take(answer)  # it will never be readable, and is nobody's next message
        raise error
    sent = f"{_line(receipt)}; its answer {answer.msg_id} stays unread"
    if options.json:
        from zmqbus.cli import jsonform

        mine = bus.identity
        _tell_json(
            jsonform.receipt(receipt) | {"answer": jsonform.arrived(answer, body, mine.name, mine.session_id)}, sent
        )
    else:
        text = payload.as_text(fmt, body)
        _tell(text if options.raw else as_block(text), sent, raw=options.raw)
    bus.take(answer)
    return 0


def _line(receipt: Receipt | BroadcastReceipt) -> str:
    if isinstance(receipt, BroadcastReceipt):
        return f"broadcast msg={receipt.msg_id} delivered={receipt.delivered} queued={receipt.queued}"
    if receipt.state == "delivered":
        return f"delivered msg={receipt.msg_id} to={sanitise(receipt.to)}"
    from zmqbus.session.notify import format_age  # only for this, and it costs as much as the wire

    why = "busy" if receipt.busy else f"away {format_age(receipt.away_s)}"
    return f"queued msg={receipt.msg_id} to={sanitise(receipt.to)} ({why})"
