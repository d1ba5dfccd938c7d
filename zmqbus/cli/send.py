"""`send.py`, `zmqbus send`, `zmqbus broadcast`: send a text to one session, to several, or to many.

Agents run this command most, and it lives for 45 milliseconds: it imports only what it needs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from zmqbus.cli.output import fail, tell
from zmqbus.cli.send_args import is_to_many, parse
from zmqbus.client import payload
from zmqbus.client.events import Incoming
from zmqbus.client.oneshot import OneShotClient, guest
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.errors import BrokerUnavailable, InvalidOption, InvalidPayload, RateLimited, ZmqbusError
from zmqbus.session.identity import identify
from zmqbus.settings import NO_DIRECTORY, Settings, shown_path, where_am_i
from zmqbus.system import cmdline
from zmqbus.text.display import as_block, sanitise
from zmqbus.text.units import format_age
from zmqbus.wire import verbs
from zmqbus.wire.naming import check_name
from zmqbus.wire.verbs import Scope

#: Sessions that an error names at most.
MAX_NAMED = 5
#: A text of the largest size, its line end, and one byte that shows that it is too long.
MAX_READ_BYTES = verbs.MAX_BODY_BYTES + 3

_Outcome = Receipt | BroadcastReceipt | ZmqbusError


def main(argv: list[str], *, broadcast: bool = False) -> int:
    """Sends, and prints the receipt. With `broadcast`, to all unless a project or a topic is given."""
    options = parse(argv, broadcast=broadcast)
    cmdline.hide((options.text,))
    try:
        caller = identify({"port": options.port})
        body = payload.from_text(_body(options), to_many=is_to_many(options))
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
    """A text from the command line; its bytes as typed where the locale could not decode them."""
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
        # The name is not UTF-8 or cannot be shown in a line: a notation that a shell reads as the file's name.
        shown = "$'" + "".join(map(_ansi_c, os.fsencode(path))) + "' (as bash writes it)"
    return f"Please read the file {shown} ({size_bytes:,} bytes) and handle it as if it stood here."


def _ansi_c(byte: int) -> str:
    character = chr(byte)
    return character if character.isascii() and character.isprintable() and character not in "\\'" else f"\\x{byte:02x}"


def _without_line_end(text: bytes) -> bytes:
    """Removes the last line end, which here-documents, `echo` and editors add to a text."""
    return text[: -2 if text.endswith(b"\r\n") else -1] if text.endswith(b"\n") else text


def _send(bus: OneShotClient, options: Any, body: bytes, project: str, settings: Settings) -> int:
    if options.reply_to is not None and not verbs.is_msg_id(options.reply_to):
        raise InvalidPayload("--reply-to takes the id of a message: 8 to 12 lower-case letters and digits")
    targets, scope = _targets(options, project)
    sent = [
        bus.post(target, body, scope=scope, reply_to=options.reply_to, await_answer=options.wait is not None)
        for target in targets
    ]
    outcomes = [_outcome(bus, msg_id) for msg_id in sent]
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
    errors = [outcome for outcome in outcomes if isinstance(outcome, ZmqbusError)]
    for receipt in receipts:
        errors += _not_reached(receipt, settings)
    return max(map(fail, errors), default=0)


def _outcome(bus: OneShotClient, msg_id: str) -> _Outcome:
    try:
        return bus.outcome(msg_id)
    except ZmqbusError as error:
        return error


def _not_reached(receipt: Receipt | BroadcastReceipt, settings: Settings) -> list[ZmqbusError]:
    """The errors of a broadcast for sessions that did not get it."""
    errors: list[ZmqbusError] = []
    if isinstance(receipt, BroadcastReceipt) and receipt.full:
        errors.append(RateLimited(f"not sent to {_names(receipt.full)}: mailbox full of unread messages; retry later"))
    if isinstance(receipt, BroadcastReceipt) and receipt.unsaved:
        errors.append(
            BrokerUnavailable(
                f"not sent to {_names(receipt.unsaved)}: the broker cannot store it; free some space on the disk of "
                f"{settings.data_dir}, see {settings.paths.broker_log}, then send it to them again"
            )
        )
    return errors


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (" …" if len(names) > MAX_NAMED else "")


def _tell(text: str, sent: str, *, raw: bool = False) -> None:
    tell(text, "the message was sent: " + sent.replace("\n", "; ") if sent else "", raw=raw)


def _tell_json(value: object, sent: str) -> None:
    from zmqbus.cli import jsonform  # only for this

    _tell(jsonform.encode(value), sent)


def _as_json(target: str, outcome: _Outcome) -> dict[str, Any]:
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
        targets.pop("", None)  # from a surplus comma
    return list(targets), Scope.SESSION


def read_answer(bus: OneShotClient, msg_id: str, timeout_s: float, settings: Settings) -> tuple[Incoming, int, bytes]:
    """Waits for the answer to a message; returns it, and the format and the body, to be printed and then taken.

    Raises `Timeout`, and the error of an answer that cannot be read.
    """
    answer = bus.answer_to(msg_id, timeout_s)
    fmt, body, error = payload.readable(answer, settings.paths.log)
    if error is not None:
        bus.take(answer)  # it will never be readable
        raise error
    return answer, fmt, body


def _wait(bus: OneShotClient, receipt: Receipt | BroadcastReceipt, options: Any, settings: Settings) -> int:
    """Waits for the answer, prints its text, and only then acknowledges it."""
    answer, fmt, body = read_answer(bus, receipt.msg_id, options.wait, settings)
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
    why = "busy" if receipt.busy else f"away {format_age(receipt.away_s)}"
    return f"queued msg={receipt.msg_id} to={sanitise(receipt.to)} ({why})"
