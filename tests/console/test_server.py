"""`zmqbus console` as a process: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import http.client
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.console.conftest import PATIENCE_S, ConsoleProcess
from tests.real.conftest import ROOT, Bus

pytestmark = pytest.mark.slow

LINK = re.compile(r"http://127\.0\.0\.1:(\d+)/\?token=[A-Za-z0-9_-]{70,}")


def test_it_prints_a_link_and_ends_with_ctrl_c(bus: Bus, start_console: Callable[..., ConsoleProcess]) -> None:
    console = start_console()
    assert LINK.fullmatch(console.link)
    assert console.raw("GET", console.link.removeprefix(f"http://127.0.0.1:{console.port}"))[0] == 303
    assert console.stop(signal.SIGINT) == (0, "")
    assert "one use" in console.printed[-1] and "--link" in console.printed[-1]
    assert bus.broker_pid() is None, "looking starts no broker"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_though_a_page_is_open(start_console: Callable[..., ConsoleProcess], signum: int) -> None:
    console = start_console()
    status, headers, _ = console.raw("GET", console.link.partition(str(console.port))[2])
    cookie = headers["set-cookie"].partition(";")[0]
    origin = f"http://127.0.0.1:{console.port}"
    own = {"Cookie": cookie, "Origin": origin, "Content-Type": "application/json"}
    key = re.search(rb'"key":"([^"]+)"', console.raw("POST", "/api/hello", b"{}", own)[2])
    assert status == 303 and key is not None
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=PATIENCE_S)
    connection.request("GET", "/api/events", headers={"Cookie": cookie, "X-Zmqbus-Key": key[1].decode()})
    response = connection.getresponse()
    assert response.status == 200 and response.getheader("content-type", "").startswith("text/event-stream")
    assert response.readline() == b"event: hello\n"
    rest: list[bytes] = []
    reading = threading.Thread(target=lambda: rest.append(response.read()))
    reading.start()
    assert console.stop(signum) == (0, "")
    reading.join(PATIENCE_S)
    assert b"event: bye\n" in rest[0]
    connection.close()


def test_links_from_other_terminals(bus: Bus, start_console: Callable[..., ConsoleProcess]) -> None:
    none = bus.zmqbus("console", "--link")
    assert none.returncode == 1 and "zmqbus console" in none.stderr and none.stdout == ""
    console = start_console()
    first, second = console.new_link(), console.new_link()
    assert first != second
    for link in (first, second):
        path = link.partition(str(console.port))[2]
        assert console.raw("GET", path)[0] == 303
        assert console.raw("GET", path)[0] == 401
    assert console.stop() == (0, "")
    assert bus.zmqbus("console", "--link").returncode == 1


def test_a_second_one_on_the_port(
    bus: Bus, start_console: Callable[..., ConsoleProcess], new_port: Callable[[], int]
) -> None:
    port = new_port()
    first = start_console("--port", str(port))
    second = bus.zmqbus("console", "--port", str(port))
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.startswith("error: port_held: ") and f"--link --port {port}" in second.stderr
    assert first.raw("GET", "/")[0] == 401, "the first is not disturbed"


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "1e3", "²", ""])
def test_ports_that_are_none(bus: Bus, port: str) -> None:
    done = bus.zmqbus("console", f"--port={port}")
    assert done.returncode == 2 and "--port" in done.stderr and "Traceback" not in done.stderr


def test_enter_prints_another_link(bus: Bus) -> None:
    """On a terminal, as the leader of its own session there, which gives Ctrl-C its meaning."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os, fcntl, termios, sys; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
         f"os.execv(sys.executable, [sys.executable, {str(ROOT / 'bin' / 'zmqbus')!r}, 'console'])"],
        stdin=terminal, stdout=terminal, stderr=terminal, env=bus.env(bus.stranger), cwd=bus.cwd,
    )  # fmt: skip
    os.close(terminal)
    screen = ""

    def until(count: int) -> None:
        nonlocal screen
        end_s = time.monotonic() + PATIENCE_S
        while len(LINK.findall(screen)) < count or "ends the console" not in screen:
            assert time.monotonic() < end_s, screen
            screen += os.read(controller, 4096).decode()

    try:
        until(1)
        os.write(controller, b"\n")
        until(2)
        os.write(controller, b"\x03")
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    links = {match[0] for match in LINK.finditer(screen)}
    assert len(links) == 2 and "Traceback" not in screen
    os.close(controller)


def test_open_leads_there_without_telling_the_link_to_the_list_of_processes(
    bus: Bus, start_console: Callable[..., ConsoleProcess], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}.new && mv {seen}.new {seen}\n')
    browser.chmod(0o700)
    console = start_console("--open", env={"BROWSER": f"{browser} %s"})
    end_s = time.monotonic() + PATIENCE_S
    while not seen.exists():
        assert time.monotonic() < end_s, "the browser was not started"
        time.sleep(0.02)
    url = seen.read_text().strip()
    assert url.startswith("file:///") and "token" not in url
    path = Path(url.removeprefix("file://"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert LINK.search(path.read_text())
    assert console.stop() == (0, "")
    assert not path.exists(), "it goes with the console"


def test_no_browser_to_open(start_console: Callable[..., ConsoleProcess]) -> None:
    console = start_console("--open", env={"BROWSER": "/nonexistent/browser %s", "PATH": "/nonexistent"})
    end_s = time.monotonic() + PATIENCE_S
    while not any("No browser" in line for line in console.printed):
        assert time.monotonic() < end_s, console.printed
        time.sleep(0.02)


def test_without_the_packages_it_says_what_to_install(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'starlette'\", name='starlette')"
    )
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from zmqbus.cli.console import main; sys.exit(main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=bus.env(bus.stranger), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: missing: ") and "Traceback" not in done.stderr
    assert f"{sys.executable} -m pip install 'starlette>=0.40,<2' 'uvicorn>=0.30,<1'" in done.stderr


def test_the_data_directory_of_somebody_else(bus: Bus, data_dir: Path) -> None:
    data_dir.chmod(0o755)
    done = bus.zmqbus("console")
    data_dir.chmod(0o700)
    assert done.returncode == 1 and done.stderr.startswith("error: unauthorized: ") and "chmod" in done.stderr


def test_what_it_needs_is_what_the_extra_says() -> None:
    from zmqbus.cli.console import NEEDS

    extra = re.search(r"^console = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra is not None and tuple(re.findall(r'"([^"]+)"', extra[1])) == NEEDS
