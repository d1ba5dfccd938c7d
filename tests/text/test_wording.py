"""The names of commands for agents and for people at a shell."""

from __future__ import annotations

import pytest

from zmqbus.text import wording


@pytest.fixture(autouse=True)
def at_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "_script", False)
    for name in wording.AGENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_command_for_a_shell() -> None:
    assert wording.command("connect <name>") == "zmqbus connect <name>"
    assert not wording.for_agent()


@pytest.mark.parametrize("name", wording.AGENT_VARIABLES)
def test_command_for_the_shell_of_an_agent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert wording.command("connect") == "/inter-session connect"
    monkeypatch.setenv(name, "")
    assert wording.command("connect") == "zmqbus connect"


def test_command_for_scripts_of_the_skill() -> None:
    wording.set_script(True)
    assert wording.command("install-deps") == "/inter-session install-deps"
    wording.set_script(False)
    assert wording.command("install-deps") == "zmqbus install-deps"
