"""Who is told which command."""

from __future__ import annotations

import pytest

from zmqbus.text import wording


@pytest.fixture(autouse=True)
def at_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "_script", False)
    for name in wording.AGENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_shell_is_told_what_can_be_typed_there() -> None:
    assert wording.command("connect <name>") == "zmqbus connect <name>"
    assert not wording.for_agent()


@pytest.mark.parametrize("name", wording.AGENT_VARIABLES)
def test_in_the_shell_of_an_agent_it_is_the_skill(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert wording.command("connect") == "/inter-session connect"
    monkeypatch.setenv(name, "")
    assert wording.command("connect") == "zmqbus connect"


def test_the_scripts_of_the_skill_speak_to_the_agent() -> None:
    wording.set_script(True)
    assert wording.command("install-deps") == "/inter-session install-deps"
    wording.set_script(False)
    assert wording.command("install-deps") == "zmqbus install-deps"
