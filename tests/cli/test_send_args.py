"""Arguments of `send`: the fast path reads a plain call as argparse does, and leaves everything else to it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from zmqbus.cli import send, send_args

WORDS = [
    *("--to", "--group", "--all", "--project", "--topic", "--text", "--text-file", "--file", "--reply-to", "--wait"),
    *("--as", "--json", "--port", "--self", "--help", "-h", "--", "-", "-1", "--text=x", "--t", "--al", "a", "a b"),
    *("", "- a b", "--to a", "-x y", "9473", "@f", "--as=b", "'", "\n", "é"),
]
TEXT = ["--text", "t"]


def read_by_argparse(argv: list[str]) -> dict[str, Any] | None:
    try:
        return dict(vars(send_args.parse_any(argv, broadcast=False)))
    except SystemExit:
        return None


@settings(max_examples=600, deadline=None)
@example(["--to", "a", "--text", "hello"])
@example(["--as", "b", "--to", "a,b", "--text", "", "--json", "--reply-to", "x", "--port", "1"])
@example(["--all", "--file", "/x"])
@example(["--to", "a", "--all", *TEXT])
@example(["--to", "a", *TEXT, "--file", "f"])
@example(["--to", "a"])
@example(["--to", "a", "--text", "-"])
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=8))
def test_a_plain_call_means_what_argparse_reads(argv: list[str]) -> None:
    found = send_args.parse_plain(argv)
    if found is not None:
        assert vars(found) == read_by_argparse(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--to", "a", *TEXT],
        ["--as", "b", "--all", *TEXT],
        ["--topic", "t", "--text-file", "f", "--json"],
        ["--group", "g", "--file", "/f", "--reply-to", "abc", "--port", "1"],
    ],
)
def test_usual_calls_are_plain(argv: list[str]) -> None:
    assert vars(send_args.parse_plain(argv)) == read_by_argparse(argv)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        TEXT,
        ["--to", "a"],
        ["--to", *TEXT],
        ["--to", "-", *TEXT],
        ["--to", "--all", *TEXT],
        ["--to", "a", "--to", "b", *TEXT],
        ["--all", "--all", *TEXT],
        ["--to", "a", "--all", *TEXT],
        ["--to=a", *TEXT],
        ["a", *TEXT],
        ["--help", *TEXT],
    ],
)
def test_other_calls_are_left_to_argparse(argv: list[str]) -> None:
    assert send_args.parse_plain(argv) is None


@pytest.mark.parametrize("argv", [["--to", "a"], ["--to", "a", *TEXT, "--all"], TEXT, ["x"]])
def test_mistakes_are_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        send.main(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: usage: ")


def test_plain_calls_do_not_import_argparse() -> None:
    program = (
        "import sys; from zmqbus.cli import send; from zmqbus.cli.send_args import parse_plain;"
        "assert parse_plain(['--to', 'a', '--text', 't']);"
        "print({'argparse', 'gettext', 'locale', 'logging', 'psutil', 'asyncio', 'hashlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr
