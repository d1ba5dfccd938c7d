"""The lock file of a running console."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from zmqbus.console.lockfile import ConsoleAlreadyRuns, ConsoleLock, running_consoles
from zmqbus.errors import Unauthorized


def test_console_is_found_while_it_runs(data_dir: Path) -> None:
    assert running_consoles(str(data_dir)) == []
    with ConsoleLock(str(data_dir), 4711) as lock, ConsoleLock(str(data_dir), 812):
        found = running_consoles(str(data_dir))
        assert [one.port for one in found] == [812, 4711]
        assert (found[1].name, found[1].secret) == (lock.name, lock.secret)
        assert [one.port for one in running_consoles(str(data_dir), 812)] == [812]
        assert running_consoles(str(data_dir), 813) == []
    assert running_consoles(str(data_dir)) == []


def test_each_run_has_its_own_private_secret_and_host_name(data_dir: Path) -> None:
    with ConsoleLock(str(data_dir), 4711) as first:
        assert stat.S_IMODE((data_dir / "console.4711").stat().st_mode) == 0o600
        assert first.secret.hex() in (data_dir / "console.4711").read_text()
    assert first.secret.hex() not in (data_dir / "console.4711").read_text(), "the end of the console removes it"
    with ConsoleLock(str(data_dir), 4711) as second:
        assert second.secret != first.secret
        assert second.name != first.name, "browsers have stored nothing for a fresh host name"
        assert second.name.endswith(".localhost")


def test_second_console_on_a_port_is_refused(data_dir: Path) -> None:
    with ConsoleLock(str(data_dir), 4711):
        with pytest.raises(ConsoleAlreadyRuns, match="zmqbus console --link --port 4711"):
            ConsoleLock(str(data_dir), 4711)
        assert [one.port for one in running_consoles(str(data_dir))] == [4711], "the first is not disturbed"


def test_file_of_a_killed_console_is_overwritten(data_dir: Path) -> None:
    left = data_dir / "console.4711"
    left.touch(0o600)
    left.write_text('{"port": 4711, "pid": 1, "secret": "' + "00" * 600 + '"}')
    assert running_consoles(str(data_dir)) == []
    with ConsoleLock(str(data_dir), 4711) as lock:
        assert running_consoles(str(data_dir))[0].secret == lock.secret


def test_file_open_to_others_is_refused(data_dir: Path) -> None:
    (data_dir / "console.4711").touch(0o644)
    os.chmod(data_dir / "console.4711", 0o644)
    with pytest.raises(Unauthorized):
        ConsoleLock(str(data_dir), 4711)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"secret": 3}', '{"secret": "xyz"}', '{"secret": "00", "name": "evil.example"}']
)
def test_damaged_file_is_ignored(data_dir: Path, content: str) -> None:
    with ConsoleLock(str(data_dir), 4711):
        (data_dir / "console.4711").write_text(content)
        assert running_consoles(str(data_dir)) == []


def test_missing_data_directory(tmp_path: Path) -> None:
    assert running_consoles(str(tmp_path / "none")) == []
