"""Which parts of the plugin are in force in a session, as the doctor says it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.doctor.test_client import Table
from zmqbus.doctor import hooks as doctor
from zmqbus.doctor.hooks import hooks
from zmqbus.doctor.report import Finding
from zmqbus.process import Process
from zmqbus.session.last_seen import note_seen
from zmqbus.session.owner_files import files_of
from zmqbus.session.plugin_options import APPROVE
from zmqbus.settings import load

OWNER = Process(2147483646, "12345")


class Session:
    """A session of Claude Code, its user settings and its data directory."""

    def __init__(self, root: Path) -> None:
        self.environ = {"HOME": str(root / "home"), "INTER_SESSION_DATA_DIR": str(root / "data")}
        (root / "home" / ".claude").mkdir(parents=True)
        (root / "data" / "clients").mkdir(parents=True, mode=0o700)
        (root / "data").chmod(0o700)
        self._settings = root / "home" / ".claude" / "settings.json"

    def set(self, **settings: object) -> None:
        self._settings.write_text(json.dumps(settings))

    def write(self, data: bytes) -> None:
        self._settings.write_bytes(data)

    def ran(self, *events: str) -> None:
        for event in events:
            note_seen(files_of(self.environ["INTER_SESSION_DATA_DIR"], OWNER), event)

    def examine(self, program: str = "/usr/bin/claude") -> list[Finding]:
        found = load(environ=self.environ, warn=lambda _: None)
        return list(hooks(found, [OWNER], self.environ, Table(program)))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


PLUGIN = {"inter-session@zmqbus": True}


def test_shell_without_claude_code_has_no_hooks(session: Session) -> None:
    assert session.examine("/bin/bash") == []


def test_last_run_of_each_hook_is_shown(session: Session) -> None:
    session.ran("SessionStart", "Stop", "PermissionRequest")
    found, approvals = session.examine()
    assert (found.check, found.level) == ("hooks", "ok")
    assert "SessionStart 0s ago" in found.says and "Stop 0s ago" in found.says and "Permission" not in found.says
    assert (approvals.check, approvals.level) == ("approvals", "ok")
    assert approvals.says.startswith("on: ") and "PermissionRequest 0s ago" in approvals.says


def test_installed_plugin_without_a_hook_is_reported(session: Session) -> None:
    """A hook that silently does nothing."""
    session.set(enabledPlugins=PLUGIN)
    found, approvals = session.examine()
    assert found.level == "warning" and "/reload-plugins" in found.says
    assert approvals.says.startswith("on: ") and "not asked yet" in approvals.says


@pytest.mark.parametrize("switch", doctor.SWITCHES)
@pytest.mark.parametrize("by_administrator", [False, True])
def test_hooks_that_are_switched_off_are_reported(
    session: Session, switch: str, by_administrator: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    managed = tmp_path / "managed.json"
    monkeypatch.setattr(doctor, "MANAGED", str(managed))
    session.set(**{"enabledPlugins": PLUGIN, switch: not by_administrator})
    if by_administrator:
        managed.write_text(json.dumps({switch: True}))
    found, approvals = session.examine()
    assert found.level == "warning" and switch in found.says
    assert approvals.says.startswith("none has been given")


@pytest.mark.parametrize("settings", [{}, {"enabledPlugins": {"inter-session@zmqbus": False, "other@x": True}}])
def test_stand_alone_skill_has_no_hooks(session: Session, settings: dict[str, object]) -> None:
    session.set(**settings)
    found, approvals = session.examine()
    assert (found.level, approvals.level) == ("ok", "ok")
    assert "stand-alone skill" in found.says


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"enabledPlugins": 7}', b"[" * 100_000])
def test_damaged_settings_of_the_client(session: Session, data: bytes) -> None:
    session.write(data)
    assert [row.level for row in session.examine()] == ["ok", "ok"]


def test_approval_that_is_switched_off(session: Session) -> None:
    session.environ[APPROVE] = "false"
    session.ran("PermissionRequest")
    assert session.examine()[1].says.startswith("off, by the plugin's option approve_bus_commands")


def test_file_open_to_others_is_left_to_its_own_check(session: Session) -> None:
    session.ran("Stop")
    path = files_of(session.environ["INTER_SESSION_DATA_DIR"], OWNER).path(".seen")
    os.chmod(path, 0o644)
    assert session.examine() == []
