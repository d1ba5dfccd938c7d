"""Errors of the argument parser."""

from __future__ import annotations

import pytest

from zmqbus.cli.parser import Parser


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parser = Parser("send", "Send a text.")
    parser.add_argument("--to", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text")
    what.add_argument("--file")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[0]


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--to", "a", "--txt", "x"], "unrecognized arguments: --txt"),
            (["--too=a", "--txt=x"], "unrecognized arguments: --too --txt"),
            (["--to", "a", "--\x1b[31mtxt", "x"], "unrecognized arguments: --txt"),
            (["--to", "a", "--text", "x", "--txt", "y"], "unrecognized arguments: --txt y"),
            (["--to", "a"], "one of the arguments --text --file is required"),
            (["--to=a", "--", "--txt"], "one of the arguments --text --file is required"),
            (["--to", "a", "--text"], "argument --text: expected one argument"),
        ],
        ids=str,
    )
    def test_misspelt_flag_is_named(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        """The error does not name the option that is missing because of it."""
        assert said(capsys, *arguments) == f"error: usage: {message}"
