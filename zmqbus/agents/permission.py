"""Which shell commands of an agent may run without asking its user: one bus command that only talks, and nothing else.

Theory of operation
===================

Claude Code asks its user before a command runs, and first asks the plugin's PermissionRequest hook, which can answer in
the user's place. A wrong yes lets an agent run any program, and the text of a message, which comes from others, is part
of the command. So nothing here looks for what is dangerous. A small grammar describes what is known to be harmless, and
whatever does not match it completely is left to the user:

    command   = program arguments [" <<'" WORD "'" newline body newline WORD [newline]]
    program   = ["python3 "] path            a script of this plugin's own bin/, spelled as the plugin spells it
    arguments = options and operands of a command that talks, as `COMMANDS` lists them
    each word = safe characters, or '…', or "…"; blanks between words; one line

**One meaning in each shell.** The client runs commands with bash or zsh. Every accepted character means itself in both,
and in sh: a plain word has none that a shell expands, and quotes enclose the whole of a word; there is no backslash in
them, and no `$`, backquote or `!` in double ones. A here-document whose word is quoted is text up to the first line
that is its word. That line has to be the last one, and the text may not mention the word: then it cannot end earlier,
not even for a client that removes blanks or controls. Controls (CR, NUL, form feed, …) are refused everywhere.

**The program is this plugin's.** `zmqbus` alone is not: the plugin's bin/ comes after the user's own entries in PATH,
so the name may mean another program. `python3` is the one that runs the hooks and the listener, too.

**Only talking.** `--text-file PATH` would send any file of the user to another agent without anybody being asked, so
only standard input (`-`) is read. `--file` sends a path and not its content: whether it is read is up to the receiver's
own permissions. `forget`, `install-deps`, `broker` and whatever comes later are not in the table.

This module decides and does nothing: no file, no environment. Standard library only: the hook is waited for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

#: As much as a shell takes as one argument on Linux (MAX_ARG_STRLEN), in bytes of UTF-8.
MAX_COMMAND_BYTES = 128 * 1024
#: Fields of the tool's input that say nothing about what runs where. `dangerouslyDisableSandbox` is not one of them.
FIELDS = frozenset(("command", "description", "timeout", "run_in_background", "timeout_ms", "persistent"))

#: Script of bin/ -> its subcommand; "": the first argument is the subcommand.
SCRIPTS = {"zmqbus": "", "client.py": "connect", "send.py": "send", "list.py": "list"}

# Kinds of options: with a value, without, with an optional value, and one whose value has to be `-`.
_VALUE, _SWITCH, _MAY_HAVE_VALUE, _STDIN = "value", "switch", "may have a value", "standard input"
_CONTENT = {"--text": _VALUE, "--text-file": _STDIN, "--file": _VALUE}
_BROADCAST = {
    **_CONTENT,
    **{"--all": _SWITCH, "--project": _SWITCH, "--topic": _VALUE, "--reply-to": _VALUE, "--as": _VALUE},
    **{"--json": _SWITCH, "--port": _VALUE},
}
#: Subcommand -> its options, and the most operands that it takes. A test compares them with the commands' --help.
COMMANDS: dict[str, tuple[dict[str, str], int]] = {
    "send": ({**_BROADCAST, "--to": _VALUE, "--group": _VALUE, "--wait": _MAY_HAVE_VALUE, "--raw": _SWITCH}, 0),
    "broadcast": (_BROADCAST, 0),
    "list": ({"--all": _SWITCH, "--project": _SWITCH, "--self": _SWITCH, "--json": _SWITCH, "--port": _VALUE}, 0),
    "status": ({"--wait": _VALUE, "--json": _SWITCH, "--port": _VALUE}, 1),
    "inbox": ({"--peek": _SWITCH, "--msg": _VALUE, "--json": _SWITCH, "--raw": _SWITCH}, 0),
    "log": (
        {
            **dict.fromkeys(("--from", "--to", "--since", "--grep", "--search", "--limit"), _VALUE),
            **dict.fromkeys(("--follow", "-f", "--json"), _SWITCH),
        },
        0,
    ),
    "wait": ({"--until": _VALUE, "--msg": _VALUE, "--timeout": _VALUE, "--json": _SWITCH, "--port": _VALUE}, 1),
    "rename": ({}, 1),
    "disconnect": ({}, 0),
    # Not a message, but what the others need: a monitor that has ended at its time limit is started again unasked.
    "connect": (
        {
            **dict.fromkeys(("--name", "--label", "--topic", "--group", "--port", "--idle-shutdown-minutes"), _VALUE),
            **dict.fromkeys(("--away", "--from-plugin", "--verbose"), _SWITCH),
        },
        1,
    ),
}
_HELP = ("--help", "-h")

#: A word without quotes. `=` only after the name of an option: zsh expands `=ls`, and `set -k` makes `A=b` a variable.
# guards: permission [=> _PLAIN = r"(?:--[a-z-]+=)?[A-Za-z0-9_@%+:,./~-]+"]
# guards: permission [=> _PLAIN = r"[A-Za-z0-9_@%+:,./=-]+"]
_PLAIN = r"(?:--[a-z-]+=)?[A-Za-z0-9_@%+:,./-]+"
#: What stands in quotes.
_SINGLE = r"[^'\\]*"  # guards: permission [=> _SINGLE = r"[^']*"]
_DOUBLE = r'[^"$`\\!]*'  # guards: permission [=> _DOUBLE = r'[^"`\\!]*']
#: A word and the blanks after it: quotes enclose the whole of a word.
# guards: permission [r"(?: +|\Z)" => r" *"]
_WORD = re.compile(rf"""({_PLAIN}|'{_SINGLE}'|"{_DOUBLE}")""" r"(?: +|\Z)", re.ASCII)
#: The first line of a command with a here-document whose word is quoted.
# guards: permission [=> _HERE = re.compile(r"(.*) <<'?([A-Za-z_][A-Za-z0-9_]*)'? *", re.ASCII)]
_HERE = re.compile(r"(.*) <<'([A-Za-z_][A-Za-z0-9_]*)' *", re.ASCII)


class _Asks(Exception):
    """The user has to be asked, for this reason."""


def why_asked(tool_input: object, directories: Collection[str]) -> str | None:
    """Why the user has to be asked about this use of the Bash tool; None: it may run without asking.

    `tool_input` is what the client says about the use. `directories` are the absolute paths of the plugin's own bin/,
    each as the agent may spell it. Never raises.
    """
    try:
        words = _words(_first_line(_command(tool_input)))
        subcommand, arguments = _called(words, directories)
        _check_arguments(subcommand, arguments)
    except _Asks as reason:
        return str(reason)
    return None


def _command(tool_input: object) -> str:
    """The command: text of a size that a shell takes, without controls."""
    if not isinstance(tool_input, dict) or not isinstance(command := tool_input.get("command"), str):
        raise _Asks("there is no command")
    if not tool_input.keys() <= FIELDS:  # guards: permission
        raise _Asks("the use has fields that are unknown here")
    # A lone surrogate (Cs) has no bytes, and nobody knows what a client makes of it.
    # guards: permission
    # guards: permission [("Cc", "Cs") => ("Cs",)]
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in command if char not in "\t\n"):
        raise _Asks("there are control characters")
    if len(command.encode()) > MAX_COMMAND_BYTES:  # guards: permission
        raise _Asks("it is too long")
    return command


def _first_line(command: str) -> str:
    """The line that is the command, once its here-document is known to be text to its end."""
    line, more, rest = command.partition("\n")
    here = _HERE.fullmatch(line)
    if here is None:
        if more:  # guards: permission
            raise _Asks("there is a second line")
        return line
    line, end = here.groups()
    # Who reads blanks or invisible characters in another way must not find an earlier end.
    if rest.count(end) != 1:  # guards: permission
        raise _Asks("the word of the here-document is mentioned before its end, or has no end")
    if not f"\n{rest}".removesuffix("\n").endswith(f"\n{end}"):  # guards: permission
        raise _Asks("the here-document does not end with the command")
    return line


def _words(line: str) -> list[str]:
    """The words of a command line, as each shell reads them."""
    words: list[str] = []
    at = 0
    while at < len(line):
        found = _WORD.match(line, at)
        if found is None:
            raise _Asks("a shell would make more of it than words")
        words.append(found[1][1:-1] if found[1][0] in "'\"" else found[1])
        at = found.end()
    if not all(map(str.isprintable, words)):  # guards: permission
        raise _Asks("there are characters that cannot be seen")
    return words


def _called(words: list[str], directories: Collection[str]) -> tuple[str, list[str]]:
    """The subcommand, and its arguments."""
    if words[:1] == ["python3"]:
        words = words[1:]
    directory, _, script = "".join(words[:1]).rpartition("/")
    # guards: permission
    # guards: permission [not directory.startswith("/") or =>]
    if not directory.startswith("/") or directory not in directories:
        raise _Asks("the program is none of this plugin's")
    if script not in SCRIPTS:  # guards: permission
        raise _Asks("this script may do more than talk")
    if SCRIPTS[script]:
        return SCRIPTS[script], words[1:]
    return "".join(words[1:2]), words[2:]


def _check_arguments(subcommand: str, arguments: list[str]) -> None:
    """Raises `_Asks` unless these are known arguments of a subcommand that only talks."""
    if subcommand not in COMMANDS:  # guards: permission
        raise _Asks("this command may do more than talk")
    options, operands = COMMANDS[subcommand]
    waiting = arguments[::-1]
    while waiting:
        word = waiting.pop()
        if not word.startswith("-"):
            operands -= 1
            continue
        name, equals, value = word.partition("=")
        kind = _SWITCH if name in _HELP else options.get(name)
        takes = kind in (_VALUE, _STDIN) or (kind == _MAY_HAVE_VALUE and waiting and not waiting[-1].startswith("-"))
        if not equals and takes:
            value = waiting.pop() if waiting else ""
            if value.startswith("-") and value != "-":  # guards: permission
                raise _Asks(f"{name} has a value that looks like an option")
        if kind is None or (equals and kind == _SWITCH):  # guards: permission
            raise _Asks("it has an option that is unknown here")
        if kind == _STDIN and value != "-":  # guards: permission
            raise _Asks(f"{name} reads a file")
    if operands < 0:  # guards: permission
        raise _Asks("it has more operands than it takes")
