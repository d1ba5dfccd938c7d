"""The state of a session's agent in words."""

from __future__ import annotations

import pytest

from zmqbus.cli.agent_words import agent_of
from zmqbus.wire.verbs import Session

SESSION = Session("auth", None, "", "", "live", 0.0, "id", 1, 0, 0)


@pytest.mark.parametrize(
    ("agent", "age_s", "detail", "words"),
    [
        ("unknown", 0, "", "-"),
        ("idle", 0, "", "idle"),
        ("working", 70, "", "working 1m"),
        ("blocked", 300, "permission: Bash", "blocked 5m: permission: Bash"),
    ],
)
def test_words(agent: str, age_s: int, detail: str, words: str) -> None:
    assert agent_of(SESSION._replace(agent=agent, agent_s=age_s, agent_detail=detail)) == words
