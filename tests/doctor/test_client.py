"""Detection of the client and its version, and warnings about old versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zmqbus.doctor.client import client, version_of
from zmqbus.doctor.report import Finding
from zmqbus.process import Place, Process

#: A pid without a process, so /proc has nothing about it.
NO_PROCESS = 2**31 - 2


class Table:
    """A process table with one process."""

    def __init__(self, *cmdline: str) -> None:
        self._cmdline = list(cmdline)

    def place(self) -> Place:
        return Place()

    def exists(self, pid: int) -> bool:
        return False

    def look(self, pid: int) -> None:
        return None

    def cmdline(self, pid: int) -> list[str]:
        return self._cmdline

    def uid(self, pid: int) -> None:
        return None


def found(*cmdline: str) -> list[Finding]:
    return list(client([Process(NO_PROCESS, "1")], Table(*cmdline)))


def package(tmp_path: Path, content: str) -> str:
    directory = tmp_path / "node_modules" / "@anthropic-ai" / "claude-code"
    directory.mkdir(parents=True)
    (directory / "package.json").write_text(content)
    (directory / "cli.js").write_text("")
    return str(directory / "cli.js")


def test_shell_is_not_a_client() -> None:
    assert found("bash") == [] and found() == []


@pytest.mark.parametrize(
    ("version", "level", "says"),
    [
        ("2.1.104", "warning", "has no monitors"),
        ("2.0.900", "warning", "2.1.105 is the first"),
        ("2.1.105", "warning", "does not start the plugin's own monitor"),
        ("2.1.128", "warning", "2.1.129 is the first"),
        ("2.1.129", "ok", "Claude Code 2.1.129"),
        ("3.0.0", "ok", "Claude Code 3.0.0"),
    ],
)
def test_required_version(version: str, level: str, says: str) -> None:
    (finding,) = found(f"/home/x/.local/share/claude/versions/{version}", "--resume")
    assert (finding.check, finding.level) == ("client", level) and says in finding.says
    assert finding.mend == ("claude update" if level == "warning" else None)


def test_version_of_an_npm_package(tmp_path: Path) -> None:
    script = package(tmp_path, json.dumps({"version": "2.1.332"}))
    (finding,) = found("node", script)
    assert finding.says == "Claude Code 2.1.332"
    (tmp_path / "claude").symlink_to(script)
    assert version_of(NO_PROCESS, ["node", str(tmp_path / "claude")]) == (2, 1, 332)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": "next"}', '{"version": null}'])
def test_unknown_version(content: str, tmp_path: Path) -> None:
    (finding,) = found("node", package(tmp_path, content))
    assert finding.level == "ok" and "version unknown" in finding.says
