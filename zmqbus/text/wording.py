"""The name of a command in messages: `/inter-session connect` for agents, `zmqbus connect` for people at a shell.

The way this process was started decides: the scripts in bin/ belong to the skill, `zmqbus` to the shell, unless an
agent uses that. Valid for python 3.6.
"""

import os

#: Claude Code sets these for the shells, hooks and monitors of a session.
AGENT_VARIABLES = ("CLAUDECODE", "CLAUDE_CODE_SESSION_ID", "CLAUDE_PID")

_script = False


def set_script(is_script: bool) -> None:
    """Called by `bootstrap`: whether this process is a script of the skill."""
    global _script
    _script = is_script


def for_agent() -> bool:
    """Whether an agent reads what this process prints."""
    return _script or any(os.environ.get(name) for name in AGENT_VARIABLES)


def command(words: str) -> str:
    """The name of a command (`connect`, `install-deps`) for the reader of this process's output."""
    return ("/inter-session " if for_agent() else "zmqbus ") + words
