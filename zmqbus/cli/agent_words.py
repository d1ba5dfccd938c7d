"""The state of a session's agent in words, for `list`, `status`, `wait` and `watch`."""

from __future__ import annotations

from zmqbus.text.units import format_age
from zmqbus.wire.verbs import Session


def agent_of(session: Session) -> str:
    """What a session's agent does, for how long, and what a blocked one waits for; "-" where nothing tells.

    The text is not sanitised.
    """
    if session.agent == "unknown":
        return "-"
    age = f" {format_age(session.agent_s)}" if session.agent_s else ""
    return f"{session.agent}{age}" + (f": {session.agent_detail}" if session.agent_detail else "")
