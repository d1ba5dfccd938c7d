"""How a command of this package is called where a message is shown.

An agent's listener, hooks and scripts tell of the skill's commands (`/inter-session connect`); a person at a shell is
told what can be typed there (`zmqbus connect`). Which it is, is told by how this process was started: the scripts in
bin/ belong to the skill, `zmqbus` to the shell, also to the one that an agent uses. Readable for python 3.6.
"""

import os

#: Claude Code sets these for the shells, hooks and monitors of a session.
AGENT_VARIABLES = ("CLAUDECODE", "CLAUDE_CODE_SESSION_ID", "CLAUDE_PID")

_script = False


def set_script(is_script: bool) -> None:
    """For `bootstrap`: whether this process is one of the skill's scripts."""
    global _script
    _script = is_script


def for_agent() -> bool:
    """Whether an agent reads what this process prints."""
    return _script or any(os.environ.get(name) for name in AGENT_VARIABLES)


def command(words: str) -> str:
    """A command of the skill, as it is given where this process prints: `connect`, `install-deps`."""
    return ("/inter-session " if for_agent() else "zmqbus ") + words
