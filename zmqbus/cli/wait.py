"""`zmqbus wait NAME --until STATE`: wait until a session's agent is in a state, or has answered."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from zmqbus.cli.jsonform import encode
from zmqbus.cli.output import fail, tell
from zmqbus.cli.parser import Parser, seconds
from zmqbus.cli.send import read_answer
from zmqbus.client import payload
from zmqbus.client.oneshot import OneShotClient, observer
from zmqbus.errors import InvalidPayload, Timeout, UnknownPeer, ZmqbusError
from zmqbus.journal.filter import Wanted
from zmqbus.journal.history import History
from zmqbus.session.identity import identify
from zmqbus.settings import Settings
from zmqbus.text.display import as_block, sanitise
from zmqbus.wire import verbs

#: States to wait for, and `answered`.
STATES = ("idle", "blocked", "working", "gone")
ANSWERED = "answered"
#: Seconds to wait if none are given: an agent's turn may take that long.
DEFAULT_S = 600.0
#: The longest wait, s: a week.
MAX_S = 7 * 86_400.0
#: Messages that are looked through, from the newest on, for the last one that was sent to the session.
MAX_BYTES = 64 * 1024 * 1024
#: Messages that are looked through at once for an answer.
PAGE = 200
MESSAGES = frozenset(("message",))
IN_VAIN = 4


def main(argv: list[str]) -> int:
    """Waits; returns 0 when it is so, 4 in vain."""
    parser = Parser("wait", "Wait until a session's agent is in a state, or has answered this session.")
    parser.add_argument("session", metavar="NAME", help="name or session id, as in zmqbus list --all")
    parser.add_argument(
        "--until", required=True, choices=(*STATES, ANSWERED), metavar="STATE", help=f"{', '.join(STATES)}; {ANSWERED}"
    )
    parser.add_argument("--msg", metavar="ID", help="with --until answered: the message; default: the last one to NAME")
    timeout_s = seconds(0.0, MAX_S)
    parser.add_argument("--timeout", metavar="S", type=timeout_s, default=DEFAULT_S, help="default: 600 s")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_port()
    options = parser.parse_args(argv)
    if options.msg is not None and options.until != ANSWERED:
        parser.error("--msg is for --until answered")
    try:
        caller = identify({"port": options.port})
        if options.until == ANSWERED:
            state, bus = caller.act()
            with bus:
                return _answered(bus, caller.settings, state.session_id, options)
        with observer(caller.settings) as bus:
            found = bus.until(options.session, [options.until], options.timeout)
        _print(options, {"session": options.session, "state": found}, f"{sanitise(options.session)} is {found}")
    except Timeout as error:
        fail(error)
        return IN_VAIN
    except ZmqbusError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    return 0


def _print(options: Any, fields: Mapping[str, object], line: str) -> None:
    tell(encode(fields) if options.json else line)


def _answered(bus: OneShotClient, settings: Settings, session_id: str, options: Any) -> int:
    """Waits for the answer to a message of this session, and prints its text, as `send --wait` does.

    The answer comes to this command from now on. One that came before is in the log: it has been shown, or waits.
    """
    name = options.session
    history = History(settings.paths.log)
    msg_id = options.msg or _last_to(history, session_id, name)
    if not verbs.is_msg_id(msg_id):
        raise InvalidPayload("--msg takes the id of a message: 8 to 12 lower-case letters and digits")
    bus.await_answer(msg_id)
    fields = {"session": name, "state": ANSWERED, "msg_id": msg_id}
    earlier = _answer_to(history, session_id, msg_id)
    if earlier is not None:
        line = f"answered msg={msg_id} by={earlier}; see: zmqbus inbox --msg {earlier}"
        _print(options, {**fields, "answer_id": earlier}, line)
        return 0
    answer, fmt, body = read_answer(bus, msg_id, options.timeout, settings)
    text = payload.as_text(fmt, body)
    _print(options, {**fields, "answer_id": answer.msg_id, "text": text}, as_block(text))
    sys.stdout.flush()
    bus.take(answer)
    return 0


def _last_to(history: History, session_id: str, name: str) -> str:
    wanted = Wanted(sender=session_id, receiver=name, kinds=MESSAGES)
    page = history.page(limit=1, wanted=wanted, limit_bytes=MAX_BYTES)
    if not page.entries:
        raise UnknownPeer(
            f"this session has sent '{sanitise(name, 80)}' nothing; send it a message first, or give --msg"
        )
    return page.entries[0].msg_id


def _answer_to(history: History, session_id: str, msg_id: str) -> str | None:
    """Returns the id of an answer that the log has already."""
    before = None
    wanted = Wanted(receiver=session_id, kinds=MESSAGES)
    while True:
        page = history.page(before, limit=PAGE, wanted=wanted, limit_bytes=MAX_BYTES)
        for entry in page.entries:
            if entry.reply_to == msg_id:
                return entry.msg_id
            if entry.msg_id == msg_id:
                return None
        if page.before is None or len(page.entries) < PAGE:
            return None
        before = page.before
