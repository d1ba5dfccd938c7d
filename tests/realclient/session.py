"""A session of the real client in a terminal, with a scripted model of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.realclient.model import Call, ScriptedModel
from tests.realclient.terminal import Terminal

#: How long a condition may take, s. The client needs 3 s to start on an idle machine, and a monitor looks each 10 s.
DEADLINE_S = 60.0
POLL_S = 0.05
#: The client takes a burst of keys for a paste, and Enter at its end as part of it.
ENTER_PAUSE_S = 0.5
#: After this time without effect, a key is pressed again.
KEY_TIMEOUT_S = 3.0

#: What the screen shows while the client asks for permission.
QUESTION = re.compile(r"Do you want to [^\n]*\?")
#: The path that the skill tells the model to type.
ZMQBUS = re.compile(r'python3 "([^"\n]+/bin/zmqbus)"')
#: The id of a message and the text after its header.
MESSAGE = re.compile(r"\[inter-session msg=([a-z0-9]+) [^\]\n]*\] ([^\n<]*)")

KEY = "sk-ant-api03-not-a-key-of-anybody-at-all"


def bash(command: str) -> Call:
    return Call("Bash", {"command": command, "description": "a test"})


def monitor(command: str, timeout_ms: int = 1_800_000) -> Call:
    given = {"command": command, "description": "messages from other sessions", "timeout_ms": timeout_ms}
    return Call("Monitor", {**given, "persistent": True})


LOAD_TOOLS = Call("ToolSearch", {"query": "select:Monitor,TaskStop"})


def trust(home: Path, *directories: Path) -> None:
    """Writes the client's own settings as they are after its first start in these directories."""
    path = home / ".claude.json"
    kept: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    kept |= {"hasCompletedOnboarding": True, "theme": "dark"}
    kept["customApiKeyResponses"] = {"approved": [KEY[-20:]], "rejected": []}
    projects = kept.setdefault("projects", {})
    for directory in directories:
        projects[str(directory)] = {"hasTrustDialogAccepted": True, "allowedTools": []}
    path.write_text(json.dumps(kept))


class Session:
    """`claude` with `words`, until `close` or the end of the test.

    `questions` are the permission questions that were on the screen. A question that a test does not `allow` stays.
    """

    def __init__(self, program: Path, words: tuple[str, ...], env: dict[str, str], cwd: Path) -> None:
        self.model = ScriptedModel()
        self.cwd = cwd
        self.questions: list[str] = []
        self._asked = ""
        self.terminal = Terminal([str(program), *words], {**env, "ANTHROPIC_BASE_URL": self.model.url}, cwd)

    def close(self) -> None:
        self.terminal.close()
        self.model.close()

    @property
    def report(self) -> str:
        """For a test that fails: what was on the screen, and what the model was shown last."""
        return f"screen:\n{self.terminal.screen}\n\nlast shown to the model:\n{self.model.shown[-4000:]}\n"

    def until(self, condition: Callable[[], Any], what: str, timeout: float = DEADLINE_S) -> Any:
        """Waits for a true value of `condition()` and returns it; fails the test with the screen."""
        end_s = time.monotonic() + timeout
        while not (value := condition()):
            self._notice_question()
            if time.monotonic() > end_s:
                pytest.fail(f"not within {timeout:g} s: {what}\n{self.report}")
            time.sleep(POLL_S)
        self._notice_question()
        return value

    def _notice_question(self) -> None:
        found = QUESTION.search(screen := self.terminal.screen)
        asked = screen[: found.end()] if found else ""
        if asked and not self._asked:
            self.questions.append(asked)
        self._asked = asked

    def until_ready(self) -> None:
        """Waits for the prompt of the client."""
        self.until(lambda: "❯" in self.terminal.screen, "the client takes a prompt")

    def type(self, text: str, *calls: Call) -> None:
        """Types a prompt or a command of the client's. The model makes `calls`, one after the other."""
        self.until(lambda: "esc to interrupt" not in self.terminal.screen, "the client is idle")
        self.model.plan(*calls)
        self.terminal.write(text)
        self.until(lambda: text[-30:] in self.terminal.screen, f"{text!r} is typed")
        time.sleep(ENTER_PAUSE_S)
        self.terminal.write("\r")

    def run(self, command: str, pattern: str = "") -> str:
        """Lets the model run a shell command; returns its result, which must match `pattern`."""
        before = self.model.shown.count("<result>")
        self.type("go on", bash(command))
        self.until(lambda: self.model.shown.count("<result>") > before, f"{command!r} has run")
        result = self.model.shown.rpartition("<result>")[2].partition("</result>")[0]
        assert re.search(pattern, result), f"{command!r}: {result}\n{self.report}"
        return result

    def shown(self, pattern: str, timeout: float = DEADLINE_S) -> re.Match[str]:
        """Waits until the model's conversation has a match of `pattern`."""
        return self.until(lambda: re.search(pattern, self.model.shown), f"the model is shown {pattern!r}", timeout)

    def asked(self) -> None:
        """Waits for a permission question."""
        self.until(lambda: QUESTION.search(self.terminal.screen), "the client asks")

    def allow(self) -> None:
        """Waits for a permission question and answers yes, once."""
        self.asked()
        while QUESTION.search(self.terminal.screen):
            self.terminal.write("1")
            # A key that comes while the question is being drawn is lost.
            end_s = time.monotonic() + KEY_TIMEOUT_S
            while QUESTION.search(self.terminal.screen) and time.monotonic() < end_s:
                time.sleep(POLL_S)

    def messages(self) -> list[tuple[str, str]]:
        """Id and text of each message in the conversation, in order, as often as it is shown."""
        return MESSAGE.findall(self.model.shown)

    @property
    def zmqbus(self) -> str:
        """The command as the skill in the conversation spells it."""
        return f'python3 "{self.shown(ZMQBUS.pattern)[1]}"'
