"""`zmqbus forget NAME|ID`: remove a session that is away, with its unread messages."""

from __future__ import annotations

from zmqbus.cli.output import FAILED, confirm, fail, tell
from zmqbus.cli.parser import Parser
from zmqbus.client.oneshot import observer
from zmqbus.errors import Ambiguous, Unauthorized, UnknownPeer, ZmqbusError
from zmqbus.session.identity import identify
from zmqbus.text.display import sanitise
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Session

#: The shortest prefix of an id that finds a session, as for the target of a message.
MIN_ID_PREFIX = 4
#: Remove the session however many messages it has.
ANY = -1


def main(argv: list[str]) -> int:
    """Asks, then removes the session."""
    parser = Parser("forget", "Remove a session that is away, with its unread mail.")
    parser.add_argument("session", metavar="NAME|ID", help="name or session id, as in zmqbus list --all")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_port()
    options = parser.parse_args(argv)
    try:
        with observer(identify({"port": options.port}).settings) as bus:
            session = find(bus.sessions(everyone=True), options.session)
            if not options.yes and not _agreed(session):
                return FAILED
            limit = ANY if options.yes else session.waiting
            done = bus.request(lambda ref: verbs.Remove(ref, session.session_id, limit))
    except ZmqbusError as error:
        return fail(error)
    assert isinstance(done, verbs.Done)
    tell(f"forgot '{session.name}'" + (f" and {_messages(int(done.text))}" if done.text != "0" else ""))
    return 0


def find(sessions: list[Session], wanted: str) -> Session:
    """Finds the session with this name, id or beginning of an id.

    Raises `UnknownPeer`, `Ambiguous`, or `Unauthorized` where it is connected.
    """
    shown = sanitise(wanted, 80)
    found = matching(sessions, wanted)
    away = [session for session in found if session.state == "away"]
    if not away:
        raise Unauthorized(
            f"'{found[0].name}' is connected, and only sessions that are away can be removed; end it first: zmqbus "
            "disconnect in its own shell, or on the page of zmqbus console"
        )
    if len(away) > 1:
        listed = ", ".join(f"{session.session_id} ({sanitise(session.project)})" for session in away[:5])
        raise Ambiguous(f"'{shown}' matches {len(away)} sessions that are away: {listed}; give the id of one")
    return away[0]


def matching(sessions: list[Session], wanted: str) -> list[Session]:
    """Returns the sessions with this name, id or beginning of an id, at least one. Raises `UnknownPeer`."""
    found = [session for session in sessions if session.session_id == wanted]
    found = found or [session for session in sessions if session.name == wanted]
    if not found and len(wanted) >= MIN_ID_PREFIX:
        found = [session for session in sessions if session.session_id.startswith(wanted)]
    if not found:
        near = naming.nearest(wanted[:80], sorted({session.name for session in sessions}), 5)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise UnknownPeer(f"no session answers to '{sanitise(wanted, 80)}'; {hint}see who is there: zmqbus list --all")
    return found


def _agreed(session: Session) -> bool:
    what = (
        f"'{session.name}' ({session.session_id[:8]}, project {sanitise(session.project) or '-'}) is away; "
        f"{_messages(session.waiting)} would be removed with it"
    )
    return confirm(
        f"{what}. Forget it?",
        refusal=f"unauthorized: {what}, and there is no terminal to ask on",
        unchanged="nothing was removed",
    )


def _messages(count: int) -> str:
    return f"{count or 'no'} unread message{'' if count == 1 else 's'}"
