"""A place of its own, and nothing left of it."""

from __future__ import annotations

import os
import socket
import sys

import psutil
import pytest

from benchmarks import stage


def test_nothing_of_whoever_works_here_gets_in(monkeypatch, tmp_path):
    for name in ("INTER_SESSION_NAME", "CLAUDE_CODE", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LANG", "C.UTF-8")
    found = stage.environment(str(tmp_path))
    assert not {"INTER_SESSION_NAME", "CLAUDE_CODE", "PYTHONDONTWRITEBYTECODE"} & set(found)
    assert found["LANG"] == "C.UTF-8"
    assert found["HOME"] == str(tmp_path) and found["INTER_SESSION_DATA_DIR"].startswith(str(tmp_path))


def test_a_stage_is_gone_at_the_end_and_its_broker_too():
    with stage.stage() as environ:
        pid = stage.start_broker(environ)
        process = psutil.Process(pid)
        assert stage.broker_pid(environ) == pid
    assert not os.path.exists(environ["HOME"])
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_free_port_can_be_bound():
    port = stage.free_port()
    assert stage.PORTS[0] <= port <= stage.PORTS[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_a_process_is_ended_by_its_pid(tmp_path):
    environ = stage.environment(str(tmp_path))
    errors = str(tmp_path / "errors")
    process = stage.start([sys.executable, "-c", "input()"], environ, errors=errors, pipes=True)
    stage.end(process)
    assert process.returncode is not None


def test_one_that_does_not_obey_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "END_S", 0.05)
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    environ = stage.environment(str(tmp_path))
    process = stage.start([sys.executable, "-c", program], environ, errors=str(tmp_path / "errors"), pipes=True)
    assert process.stdout is not None
    process.stdout.readline()
    stage.end(process)
    assert process.returncode == -9


def test_what_it_complains_about_is_kept(tmp_path):
    errors = tmp_path / "errors"
    process = stage.start(
        [sys.executable, "-c", "raise SystemExit('no')"], stage.environment(str(tmp_path)), errors=str(errors)
    )
    process.wait(90)
    assert "no" in errors.read_text()


def test_files_are_flushed_and_those_that_go_meanwhile_do_not_matter(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("x")
    os.symlink("nowhere", tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    stage.flush(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc")
def test_the_limit_of_files_is_raised(monkeypatch):
    told: list[object] = []
    monkeypatch.setattr("benchmarks.stage.resource.getrlimit", lambda which: (10, 5_000))
    monkeypatch.setattr("benchmarks.stage.resource.setrlimit", lambda which, limits: told.append(limits))
    stage.raise_file_limit()
    assert told == [(5_000, 5_000)]


def test_servers_are_found_where_debian_has_them(monkeypatch, tmp_path):
    (tmp_path / "some-server").write_text("#!/bin/sh\n")
    (tmp_path / "some-server").chmod(0o755)
    monkeypatch.setattr(stage, "_MORE_PLACES", (str(tmp_path),))
    assert stage.program("some-server") == str(tmp_path / "some-server")
    assert stage.program("no-such-server") is None
