"""`send.py`, `zmqbus send`, `zmqbus broadcast`: say something to one session, to several, or to many.

This is the command that agents run most, and it lives for 40 milliseconds: it imports what it needs and no more.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from zmqbus import cmdline, protocol
from zmqbus.cli.common import act_as_session, fail, print_json, settings_of_session
from zmqbus.cli.plain import plain
from zmqbus.client import bodies
from zmqbus.client.command import CommandBus, guest
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.display import sanitise
from zmqbus.errors import BrokerUnavailable, InvalidPayload, RateLimited, ZmqbusError
from zmqbus.naming import check_name
from zmqbus.output import print_text
from zmqbus.protocol import Scope
from zmqbus.settings import Settings, find_project

if TYPE_CHECKING:
    from zmqbus.cli.parser import Parser

#: How long `--wait` waits for an answer when no number is given.
WAIT_S = 120.0
#: Sessions that an error names at most.
MAX_NAMED = 5
#: A year. What is over that is not a time to wait, and does not fit into a poll.
MAX_WAIT_S = 366 * 24 * 3600.0
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
        settings = settings_of_session({"port": options.port})
        body = _body(options)
        body = bodies.from_text(body, to_many=to_many)
        if options.sender:
            check_name(options.sender)
            bus, project = guest(settings, options.sender), find_project(os.getcwd())
        else:
            state, bus = act_as_session(settings)
            project = state.project
        with bus:
            return _send(bus, options, body, project, settings)
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
    what.add_argument("--text-file", metavar="F", help="a file with the text; - is standard input")
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
        return str(options.text)
    if options.file is not None:
        path: str = options.file
        if not os.path.isabs(path):
            raise InvalidPayload(f"--file needs an absolute path, not '{path}'; the receiver has another directory")
        if not os.path.isfile(path):
            raise InvalidPayload(f"there is no file at {path}; check the path")
        return f"Please read the file {path} ({os.path.getsize(path):,} bytes) and handle it as if it stood here."
    try:
        if options.text_file == "-":
            return sys.stdin.buffer.read(protocol.MAX_BODY_BYTES + 1)
        with open(options.text_file, "rb") as file:
            return file.read(protocol.MAX_BODY_BYTES + 1)
    except OSError as error:
        raise InvalidPayload(f"cannot read {options.text_file}: {error.strerror}; check --text-file") from None


def _send(bus: CommandBus, options: Any, body: bytes, project: str, settings: Settings) -> int:
    if options.reply_to is not None and not protocol.is_msg_id(options.reply_to):
        raise InvalidPayload("--reply-to takes the id of a message: 8 to 12 lower-case letters and digits")
    targets, scope = _targets(options, project)
    sent = [
        bus.post(target, body, scope=scope, reply_to=options.reply_to, await_answer=options.wait is not None)
        for target in targets
    ]
    receipts: list[Receipt | BroadcastReceipt] = []
    errors: list[ZmqbusError] = []
    for msg_id in sent:
        try:
            receipts.append(bus.outcome(msg_id))
        except ZmqbusError as error:
            errors.append(error)
    if options.wait is not None and receipts:
        return _wait(bus, receipts[0], options, settings)
    if options.json:
        if receipts:
            shown = [_as_dict(receipt) for receipt in receipts]
            print_json(shown[0] if len(targets) == 1 else {"receipts": shown})
    else:
        for receipt in receipts:
            print(_line(receipt))
    status = 0
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
    for refused in errors:
        status = fail(refused)
    return status


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (" …" if len(names) > MAX_NAMED else "")


def _targets(options: Any, project: str) -> tuple[list[str], Scope]:
    if options.all:
        return [""], Scope.ALL
    if options.project:
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
    text, error = bodies.readable(answer, settings.paths.log)
    if error is not None:
        bus.take(answer)  # it will never be readable, and is nobody's next message
        raise error
    if options.json:
        print_json(
            {
                **_as_dict(receipt),
                "answer": {
                    "msg_id": answer.msg_id,
                    "from": answer.from_session,
                    "from_name": answer.from_name,
                    "from_label": answer.from_label,
                    "text": text,
                },
            }
        )
    else:
        print_text(text, raw=options.raw)
    sys.stdout.flush()
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


def _as_dict(receipt: Receipt | BroadcastReceipt) -> dict[str, object]:
    if isinstance(receipt, BroadcastReceipt):
        return {"state": "broadcast", **receipt._asdict()}
    return receipt._asdict()
