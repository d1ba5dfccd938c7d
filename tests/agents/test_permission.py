"""Commands that run without asking: exactly one bus command that only talks, as real shells read it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from zmqbus.agents.permission import COMMANDS, MAX_COMMAND_BYTES, SCRIPTS, why_asked
from zmqbus.cli import main

TIMEOUT_S = 90.0
BIN = "/home/u/.claude/plugins/cache/m/inter-session/0.1.0/skills/inter-session/bin"
BLANKS = "/home/the user/plugin/bin"
DIRECTORIES = (BIN, BLANKS)
ZMQBUS = f'python3 "{BIN}/zmqbus"'
HERE = f"{ZMQBUS} send --to auth --text-file - <<'ZMQBUS_END'"


def asks(command: object, **fields: object) -> str | None:
    return why_asked({"command": command, **fields}, DIRECTORIES)


ALLOWED = (
    f"{ZMQBUS} send --to auth --text 'run the tests'",
    f'{ZMQBUS} send --to auth --text "it\'s done; 100 % > 99 % & more | less"',
    f"{ZMQBUS} send --to auth,web --text 'Grüße! $HOME `x` \"y\" ; rm -rf /' --reply-to k3x9q2m4 --json",
    f"{ZMQBUS} send --to auth --wait --text ready",
    f"{ZMQBUS} send --to auth --wait 30 --text ready",
    f"{ZMQBUS} send --to=auth --text-file=-",
    f"{ZMQBUS} send --to auth --text ''",
    f"{ZMQBUS} send --as nightly --to auth --file /tmp/result.txt",
    f'{HERE}\nquestion: it\'s "a" or `b`\n\n$(rm -rf /)\n\ttab \\ end\nZMQBUS_END',
    f"{HERE}\nanswer: yes\nZMQBUS_END\n",
    f"{HERE}  \nZMQBUS_END",
    f"{HERE}\nthe word is ZMQBUS END\nZMQBUS_END",
    f"{ZMQBUS} broadcast --text-file - <<'E'\nmain is frozen\nE",
    f"{ZMQBUS} list",
    f"{ZMQBUS} list --all --json",
    f"{ZMQBUS} status",
    f"{ZMQBUS} status auth",
    f"{ZMQBUS} inbox --msg k3x9q2m4",
    f"{ZMQBUS} log --since 2h --grep 'a.*b' --follow",
    f"{ZMQBUS} wait auth --until idle --timeout 60",
    f"{ZMQBUS} rename auth-2",
    f"{ZMQBUS} disconnect ",
    f"{ZMQBUS} connect --away --name auth",
    f"{ZMQBUS} send --help",
    f'python3 "{BIN}/client.py" --name auth --label "what I do"',
    f"python3 '{BLANKS}/send.py' --all --text hello",
    f"python3 {BIN}/list.py --self",
    f"{BIN}/zmqbus   list",
)

REFUSED = {
    "operators": (
        *(f"{ZMQBUS} list{mark}" for mark in (";", "&", " ;ls", " && ls", " || ls", " | sh", "|sh", " |& sh", " & ls")),
        *(f"{mark}{ZMQBUS} list" for mark in ("! ", "( ", "{ ", "time ", "exec ", "eval ", "if ", "coproc ", "& ")),
        f"({ZMQBUS} list)",
        f"{HERE}; ls\nx\nZMQBUS_END",
        f"{HERE} | sh\nx\nZMQBUS_END",
    ),
    "redirections": (
        *(f"{ZMQBUS} list{mark}" for mark in (" > f", ">f", " 2>&1", " < f", " >> f", " <<< x", " &> f", " <> f")),
        f"{ZMQBUS} send --to a --text-file - <<X\n$(id)\nX",
        f"{ZMQBUS} send --to a --text-file - <<'X' > f\nx\nX",
        f"{ZMQBUS} send --to a --text-file - <<'X' <<'Y'\nx\nX\ny\nY",
        f"{ZMQBUS} send --to a --text-file - <<-'X'\nx\n\tX",
        f"{ZMQBUS} send --to a --text-file -  2<<'X'\nx\nX",
        f"{ZMQBUS} send --to a --text-file - <<'X Y'\nx\nX Y",
        f"{ZMQBUS} send --to a --text-file - <<''\nx\n\n",
    ),
    "substitutions": (
        *(
            f"{ZMQBUS} send --to a --text {text}"
            for text in ("$HOME", "$(id)", "`id`", "$'x'", "<(id)", "${x}", "$((1))")
        ),
        *(
            f'{ZMQBUS} send --to a --text "{text}"'
            for text in ("$HOME", "$(id)", "`id`", "!!", "\\$x", "a\\", '\\" ; ls "')
        ),
        f"{ZMQBUS} send --to a --text 'a\\' ; ls '",
        f"{ZMQBUS} send --to a --text 'a\\b'",
    ),
    "expansions": tuple(
        f"{ZMQBUS} send --to a --text {text}"
        for text in (
            "*",
            "a?",
            "[ab]",
            "{a,b}",
            "~",
            "~/x",
            "=ls",
            "--text==ls",
            "A=b",
            "^a^b",
            "#x",
            "!x",
            "\\x",
            "(x)",
        )
    ),
    "words side by side": (
        f"{ZMQBUS} send --to a --text 'it'\\''s'",
        f"{ZMQBUS} send --to a --text 'a'b",
        f"{ZMQBUS}list",
    ),
    "second lines": (
        f"{ZMQBUS} list\nls",
        f"{ZMQBUS} list\n",
        f"\n{ZMQBUS} list",
        f"{ZMQBUS} send --to a --text 'a\nb'",
        f"{ZMQBUS} send --to a \\\n--text b",
        f"{HERE}\nx\nZMQBUS_END\nls",
        f"{HERE}\nx\nZMQBUS_END\n\n",
        f"{HERE}\nx\nZMQBUS_END\nls\nZMQBUS_END",
        f"{HERE}\nZMQBUS_END \nls\nZMQBUS_END",
        f"{HERE}\n\tZMQBUS_END\nls\nZMQBUS_END",
        f"{HERE}\nx\nxZMQBUS_END",
        f"{HERE}\nx\n ZMQBUS_END",
        f"{HERE}\nx",
        HERE,
        f"{ZMQBUS} send --to a --text ' <<'X'\nls\nX",
        f"{ZMQBUS} list # <<'X'\nls\nX",
    ),
    "other programs": (
        "zmqbus list",
        "python3 zmqbus list",
        "bin/zmqbus list",
        "python3 bin/zmqbus list",
        "",
        " ",
        "python3",
        f"python3 -c '{BIN}/zmqbus' list",
        f"python3 -I {BIN}/zmqbus list",
        f"python {BIN}/zmqbus list",
        f"/usr/bin/python3 {BIN}/zmqbus list",
        f"python3 python3 {BIN}/zmqbus list",
        f"sh {BIN}/zmqbus list",
        f"sudo {ZMQBUS} list",
        f"env {ZMQBUS} list",
        f"python3 {BIN}/../bin/zmqbus list",
        f"python3 {BIN}//zmqbus list",
        f"python3 {BIN}/x/zmqbus list",
        "python3 /home/u/zmqbus list",
        f"python3 {BIN}/install_deps.py --yes",
        f"python3 {BIN}/auto_start.py --on",
        f"python3 {BIN}/hook.py",
        f"python3 {BIN}/send --to a --text b",
        f" {ZMQBUS} list",
    ),
    "other commands": (
        ZMQBUS,
        *(
            f"{ZMQBUS} {word}"
            for word in ("install-deps --yes", "spawn web", "kill web", "link new", "forget web --yes")
        ),
        *(
            f"{ZMQBUS} {word}"
            for word in ("broker --stop", "console", "auto-start --on", "rm web", "type web x", "LIST")
        ),
        f"{ZMQBUS} --port 1 list",
        f"python3 {BIN}/list.py list",
    ),
    "environments": (f"A=b {ZMQBUS} list", f"PYTHONPATH=/tmp {ZMQBUS} list", f"PATH=/tmp:/bin {BIN}/zmqbus list"),
    "files that nobody has consented to send": (
        f"{ZMQBUS} send --to a --text-file /etc/shadow",
        f"{ZMQBUS} send --to a --text-file=/etc/shadow",
        f"{ZMQBUS} send --to a '--text-file=/home/u/my keys'",
        f"{ZMQBUS} send --to a --text-file",
        f"{ZMQBUS} broadcast --text-file k",
    ),
    "unknown arguments": (
        *(
            f"{ZMQBUS} send --to a --text b {word}"
            for word in ("--new", "--", "-x", "-", "extra", "--json=x", "--text-f -")
        ),
        f"{ZMQBUS} send --to --text-file --text b",
        f"{ZMQBUS} rename a b",
        f"{ZMQBUS} list --jso",
    ),
    "controls and unseen characters": (
        *(
            f"{ZMQBUS} send --to a --text 'a{char}b'"
            for char in ("\0", "\r", "\f", "\v", "\x1b", "\x85", "\t", "\ud800")
        ),
        *(f"{ZMQBUS} send --to a --text 'a{char}b'" for char in ("\u202e", "\u2028", "\u200b", "\ufeff", "\u00a0")),
        *(f"{ZMQBUS}{blank}list" for blank in ("\t", "\u00a0", "\u2003", "\f", "\r")),
        f"{ZMQBUS} send --to \uff41uth --text b",
        f"{HERE}\nx\nZMQBUS_END\r\nls\nZMQBUS_END",
        f"{HERE}\nx\r\nZMQBUS_END",
        f"{HERE}\nx\0\nZMQBUS_END",
        f"{HERE}\nx\udc80\nZMQBUS_END",
    ),
    "length": (
        f"{ZMQBUS} send --to a --text '{'x' * MAX_COMMAND_BYTES}'",
        f"{ZMQBUS} send --to a --text '{'ü' * (MAX_COMMAND_BYTES // 2)}'",
        f"{ZMQBUS} send --to a {'--json ' * MAX_COMMAND_BYTES}",
    ),
}
# --- strategies

#: What a shell makes something of, outside of quotes.
SPECIAL = (
    *(";", "&", "|", "&&", "||", ">", "<", ">>", "<<<", "$", "$(x)", "`", "`x`", "${x}", "*", "?", "[a]", "{a,b}", "~"),
    *("!", "#", "\\", "(", ")", "\n", "\nls", "\r", "\t", "\0", "^", "=", "'", '"', "<<'X'", "<(x)", "\u00a0", "2>&1"),
)
PLAIN = st.from_regex(r"[A-Za-z0-9_@%+:,./][A-Za-z0-9_@%+:,./-]{0,11}", fullmatch=True).filter(str.isascii)
SEEN = st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S"), include_characters=" ")
SINGLE = st.text(SEEN, max_size=20).map(lambda text: "'" + re.sub(r"['\\]", "", text) + "'")
DOUBLE = st.text(SEEN, max_size=20).map(lambda text: '"' + re.sub(r'["\\$`!]', "", text) + '"')
VALUE = st.one_of(PLAIN, SINGLE, DOUBLE).filter(lambda word: not word.lstrip("'\"").startswith("-"))
PROGRAM = st.sampled_from(
    [[f"{BIN}/zmqbus"], ["python3", f"{BIN}/zmqbus"], ["python3", f'"{BLANKS}/zmqbus"'], [f"'{BLANKS}/zmqbus'"]]
)
BODY = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), include_characters="\n\t"), max_size=60
).filter(lambda text: "ZMQBUS_END" not in text)


@st.composite
def valid_words(draw: st.DrawFn) -> list[str]:
    """The words of a command that may run, as they are typed."""
    words = [*draw(PROGRAM)]
    subcommand = draw(st.sampled_from(sorted(COMMANDS)))
    words.append(subcommand)
    options, operands = COMMANDS[subcommand]
    for name in draw(st.lists(st.sampled_from(sorted(options)), max_size=4)) if options else ():
        words.append(name)
        if options[name] == "standard input":
            words.append("-")
        elif options[name] == "value" or (options[name] != "switch" and draw(st.booleans())):
            words.append(draw(VALUE))
        elif options[name] != "switch":
            words.append("--json")  # no value follows
    if words[-1] == subcommand:  # after an option, an operand could be its value
        words += draw(st.lists(VALUE, max_size=operands))
    return words


@st.composite
def valid_commands(draw: st.DrawFn) -> str:
    line = " ".join(draw(valid_words()))
    if draw(st.booleans()):
        body = draw(BODY)
        line += " <<'ZMQBUS_END'\n" + body + ("\n" if body else "") + "ZMQBUS_END" + draw(st.sampled_from(["", "\n"]))
    return line


@st.composite
def mangled_commands(draw: st.DrawFn) -> str:
    """A command that may run, with something put in, taken out or repeated anywhere."""
    command = draw(valid_commands())
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(command)))
        end = min(len(command), start + draw(st.integers(0, 6)))
        piece = draw(st.one_of(st.sampled_from(SPECIAL), st.just(command[start:end] * 2), st.text(max_size=3)))
        command = command[:start] + piece + command[end:]
    return command


class TestExamples:
    @pytest.mark.parametrize("command", ALLOWED)
    def test_bus_command_that_only_talks_runs_without_asking(self, command: str) -> None:
        assert asks(command) is None

    @pytest.mark.parametrize("kind", REFUSED)
    def test_user_is_asked_about_everything_else(self, kind: str) -> None:
        assert [command[:200] for command in REFUSED[kind] if asks(command) is None] == []

    @pytest.mark.parametrize("command", [None, 7, [], ["ls"], b"ls", {}])
    def test_command_that_is_no_text(self, command: object) -> None:
        assert asks(command) is not None

    @pytest.mark.parametrize("tool_input", [None, [], "ls", {}, {"commands": ALLOWED[0]}])
    def test_input_without_a_command(self, tool_input: object) -> None:
        assert why_asked(tool_input, DIRECTORIES) is not None

    def test_fields_of_the_tool(self) -> None:
        """A command that is to run outside of the sandbox, or in a way that is unknown here, asks."""
        assert asks(ALLOWED[0], description="d", timeout=1000, run_in_background=False) is None
        assert asks(ALLOWED[-1], description="d", timeout_ms=1_800_000, persistent=True) is None
        for field in ("dangerouslyDisableSandbox", "env", "shell"):
            assert asks(ALLOWED[0], **{field: True}) is not None

    def test_no_directory_of_the_plugin_is_known(self) -> None:
        assert all(why_asked({"command": command}, ()) for command in ALLOWED)

    def test_relative_directory_is_no_directory_of_the_plugin(self) -> None:
        assert why_asked({"command": "python3 plugin/bin/zmqbus list"}, ("plugin/bin",)) is not None
        assert why_asked({"command": "zmqbus list"}, ("",)) is not None

    def test_longest_command(self) -> None:
        head = f"{ZMQBUS} send --to a --text "
        assert asks(f"{head}'{'x' * (MAX_COMMAND_BYTES - len(head) - 2)}'") is None
        assert asks(f"{head}'{'x' * (MAX_COMMAND_BYTES - len(head) - 1)}'") is not None


class TestProperties:
    @given(valid_commands())
    def test_valid_command_runs(self, command: str) -> None:
        assert asks(command) is None

    @given(valid_words(), st.sampled_from(SPECIAL), st.data())
    def test_special_characters_between_words_ask(self, words: list[str], special: str, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(words)))
        assert asks(" ".join([*words[:at], special, *words[at:]])) is not None

    @given(valid_words(), st.sampled_from(SPECIAL), st.data())
    def test_special_characters_beside_a_word_ask(self, words: list[str], special: str, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(words) - 1))
        before, after = data.draw(st.sampled_from([(special, ""), ("", special)]))
        mangled = [*words[:at], before + words[at] + after, *words[at + 1 :]]
        # `--port` and `=` are no word of their own, and `--port= 1` is read by the command like `--port=`.
        if special == "=" and words[at].startswith("--"):
            return
        assert asks(" ".join(mangled)) is not None

    @given(valid_commands(), st.text(min_size=1, max_size=20))
    def test_second_line_asks(self, command: str, line: str) -> None:
        assert asks(f"{command.removesuffix(chr(10))}\n{line}") is not None

    @given(valid_words(), st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}=[a-z/:]{0,8}", fullmatch=True))
    def test_environment_asks(self, words: list[str], variable: str) -> None:
        assert asks(" ".join([variable, *words])) is not None

    @given(st.one_of(PLAIN, SINGLE, DOUBLE), valid_words())
    def test_other_program_asks(self, program: str, words: list[str]) -> None:
        assert asks(" ".join([program, *words])) is not None
        assert asks(" ".join([program, *words[words[0] == "python3" :][1:]])) is not None

    @given(st.one_of(PLAIN, SINGLE), st.sampled_from(sorted(main.COMMANDS)))
    def test_other_command_asks(self, word: str, known: str) -> None:
        for subcommand in {word.strip("'"), known} - COMMANDS.keys():
            assert asks(f"{ZMQBUS} {shlex.quote(subcommand)}") is not None

    @given(st.text())
    def test_any_text_has_an_answer(self, command: str) -> None:
        assert asks(command) is not None

    @given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
    def test_any_input_has_an_answer(self, tool_input: object) -> None:
        assert why_asked(tool_input, DIRECTORIES) is not None


# --- real shells

#: Writes what it was called with: its name, its arguments, its standard input.
STUB = """#!/bin/sh
{{ printf '%s\\0' {name} "$@"; printf '\\1'; {cat}; printf '\\2'; }} >>"$RECORD"
"""
SHELLS = [
    pytest.param([path, *words], id=name)
    for name, words in (("bash", ["--norc", "--noprofile", "-c"]), ("dash", ["-c"]), ("zsh", ["-f", "-c"]))
    if (path := shutil.which(os.environ.get(f"ZMQBUS_{name.upper()}") or name))
]


class Stubs:
    """Programs that record how a shell calls them, in place of python3 and the plugin's scripts."""

    def __init__(self, root: Path) -> None:
        self._record = root / "record"
        self._path = root / "path"
        self._cwd = root / "cwd"
        self.bin = root / "plugin" / "bin"
        for directory in (self._path, self._cwd, self.bin):
            directory.mkdir(parents=True)
        self._stub(self._path / "python3")
        for script in SCRIPTS:
            self._stub(self.bin / script)

    def _stub(self, path: Path) -> None:
        path.write_text(STUB.format(name=shlex.quote(path.name), cat=shutil.which("cat")))
        path.chmod(0o755)

    def calls(self, shell: list[str], command: str) -> list[tuple[list[str], str]]:
        """The arguments and the input of each call that this command makes. Nothing else may happen."""
        self._record.write_bytes(b"")
        # As the client does it: the command is one argument of eval, and reads nothing unless it says so.
        line = f"eval {shlex.quote(command)} </dev/null" if "<<'" not in command else f"eval {shlex.quote(command)}"
        done = subprocess.run(
            [*shell, line],
            cwd=self._cwd,
            env={"PATH": str(self._path), "RECORD": str(self._record), "HOME": str(self._cwd), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), command
        assert os.listdir(self._cwd) == [], command
        calls = []
        for entry in self._record.read_bytes().decode(errors="replace").split("\2")[:-1]:
            arguments, _, text = entry.partition("\1")
            calls.append((arguments.split("\0")[:-1], text))
        return calls


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    return Stubs(tmp_path_factory.mktemp("stubs"))


def expected(command: str) -> tuple[list[str], str]:
    """The one call that an accepted command makes, read by another parser than the one under test."""
    line, _, rest = command.partition("\n")
    line, here, _ = line.rstrip().partition(" <<'")
    words = shlex.split(line)
    words[0] = words[0].rpartition("/")[2]
    text = rest.removesuffix("\n").rpartition("\n")
    return words, text[0] + text[1] if here else ""


def at(stubs: Stubs, command: str) -> str:
    """The command with the directory of the stubs in place of the plugin's."""
    for directory in DIRECTORIES:
        command = command.replace(directory, str(stubs.bin))
    return command


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
class TestShells:
    """What may run is exactly one call, as real shells read it."""

    @pytest.mark.parametrize("command", ALLOWED)
    def test_example_is_one_call(self, stubs: Stubs, shell: list[str], command: str) -> None:
        command = at(stubs, command)
        assert stubs.calls(shell, command) == [expected(command)]

    @given(command=st.one_of(valid_commands(), mangled_commands()))
    def test_accepted_command_is_one_call(self, stubs: Stubs, shell: list[str], command: str) -> None:
        command = at(stubs, command)
        if why_asked({"command": command}, (str(stubs.bin),)) is None:
            calls = stubs.calls(shell, command)
            if "dash" in shell[0] and not command.isascii():
                # dash loses a byte in a line that begins like the word and goes on with another than an ASCII one.
                calls = [(words, expected(command)[1]) for words, _ in calls]
            assert calls == [expected(command)]


class TestTable:
    """The table of arguments agrees with the commands."""

    def test_scripts_exist(self) -> None:
        assert all((ROOT / "bin" / script).is_file() for script in SCRIPTS)

    @pytest.mark.parametrize("subcommand", sorted(COMMANDS.keys() & main.COMMANDS.keys()))
    def test_options_of_a_command(self, subcommand: str) -> None:
        """An option that is new has to be judged here: does it do more than talk?"""
        done = subprocess.run(
            [sys.executable, ROOT / "bin" / "zmqbus", subcommand, "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
        )
        listed: dict[str, Any] = {}
        for line in re.findall(r"^  (-.*)$", done.stdout, re.MULTILINE):
            for option in line.split("  ")[0].split(", "):
                name, _, value = option.partition(" ")
                listed[name] = "may have a value" if value[:1] == "[" else "value" if value else "switch"
        options, _ = COMMANDS[subcommand]
        known = {name: "value" if kind == "standard input" else kind for name, kind in options.items()}
        for name in ("-h", "--help"):
            del listed[name]
        assert {name: kind for name, kind in listed.items() if len(name) > 2 or name in known} == known
