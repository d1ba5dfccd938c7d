"""What is read without argparse is what argparse reads; all else is left to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zmqbus.cli import send
from zmqbus.cli.fast_args import plain

ROOT = Path(__file__).resolve().parent.parent.parent
VALUES, SWITCHES = {"--to": "to", "--as": "sender"}, {"--all": "all"}

WORDS = [
    *("--to", "--group", "--all", "--project", "--topic", "--text", "--text-file", "--file", "--reply-to", "--wait"),
    *("--as", "--json", "--port", "--self", "--help", "-h", "--", "-", "-1", "--text=x", "--t", "--al", "a", "a b"),
    *("", "- a b", "--to a", "-x y", "9473", "@f", "--as=b", "'", "\n", "é"),
]
arguments = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=8)


def read(parse: Any, *given: Any) -> dict[str, Any] | None:
    try:
        return dict(vars(parse(*given)))
    except SystemExit:
        return None


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ([], {}),
        (["--to", "auth"], {"to": "auth"}),
        (["--all", "--to", ""], {"all": True, "to": ""}),
        (["--as", "b", "--to", "a b"], {"to": "a b", "sender": "b"}),
        (["--to"], None),
        (["--to", "-"], None),
        (["--to", "--all"], None),
        (["--to", "a", "--to", "b"], None),
        (["--all", "--all"], None),
        (["--to=a"], None),
        (["a"], None),
        (["--help"], None),
    ],
)
def test_whole_words_and_their_values(argv, found):
    assert plain(argv, VALUES, SWITCHES) == found


@settings(max_examples=600, deadline=None)
@example(["--to", "a", "--text", "hello"])
@example(["--as", "b", "--to", "a,b", "--text", "", "--json", "--reply-to", "x", "--port", "1"])
@example(["--all", "--file", "/x"])
@example(["--to", "a", "--all", "--text", "t"])
@example(["--to", "a", "--text", "t", "--file", "f"])
@example(["--to", "a"])
@example(["--to", "a", "--text", "-"])
@given(arguments)
def test_send_means_the_same(argv):
    found = send._plain(argv)
    if found is not None:
        assert vars(found) == read(send._parse, argv, False)


@pytest.mark.parametrize(
    "argv",
    [
        ["--to", "a", "--text", "t"],
        ["--as", "b", "--all", "--text", "t"],
        ["--topic", "t", "--text-file", "f", "--json"],
        ["--group", "g", "--file", "/f", "--reply-to", "abc", "--port", "1"],
    ],
)
def test_the_usual_calls_of_send_are_plain(argv):
    assert vars(send._plain(argv)) == read(send._parse, argv, False)


def test_argparse_is_not_imported_for_them():
    program = (
        "import sys; from zmqbus.cli import send;"
        "assert send._plain(['--to', 'a', '--text', 't']);"
        "print({'argparse', 'gettext', 'locale', 'logging', 'psutil', 'asyncio', 'hashlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("argv", [["--to", "a"], ["--to", "a", "--text", "t", "--all"], ["--text", "t"], ["x"]])
def test_mistakes_are_told_as_ever(argv, capsys):
    assert send._plain(argv) is None
    with pytest.raises(SystemExit) as ended:
        send.main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: usage: ")
