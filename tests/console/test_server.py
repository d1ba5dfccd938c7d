"""`zmqbus console` as a process: its output, its refusals and its end."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.console.conftest import PATIENCE_S, ConsoleProcess, PageClient, entering, token_of
from tests.console.other_user import as_nobody
from tests.real.conftest import ROOT, Bus, wait_until
from zmqbus.console.auth import Links, Visitors, decode, split
from zmqbus.console.guard import ENTER
from zmqbus.console.link_issuer import LinkIssuer
from zmqbus.console.lockfile import ConsoleLock
from zmqbus.console.peers import Peers
from zmqbus.doctor.installation import install_command
from zmqbus.settings import Settings, load

pytestmark = pytest.mark.slow

LINK = re.compile(r"http://z[0-9a-f]{16}\.localhost:(\d+)/#link=[A-Za-z0-9_.-]{78}")


def test_prints_a_link_and_ends_with_ctrl_c(bus: Bus, start_console: Callable[..., ConsoleProcess]) -> None:
    console = start_console()
    assert LINK.fullmatch(console.link)
    assert console.enter(console.link)("GET", "/api/messages")[0] == 200
    assert console.stop(signal.SIGINT) == (0, "")
    assert "one use" in console.printed[-1] and "--link" in console.printed[-1]
    assert bus.broker_pid() is None, "the console starts no broker"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ends_while_a_page_is_open(start_console: Callable[..., ConsoleProcess], signum: int) -> None:
    console = start_console()
    connection, response = console.enter().stream()
    assert response.getheader("content-type", "").startswith("text/event-stream")
    rest: list[bytes] = []
    reading = threading.Thread(target=lambda: rest.append(response.read()))
    reading.start()
    assert console.stop(signum) == (0, "")
    reading.join(PATIENCE_S)
    assert b"event: closing\n" in rest[0]
    connection.close()


def test_continues_under_nohup(start_console: Callable[..., ConsoleProcess]) -> None:
    console = start_console(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    console.process.send_signal(signal.SIGHUP)
    assert console.enter()("GET", "/api/messages")[0] == 200
    assert console.stop() == (0, "")


def test_link_from_another_terminal(bus: Bus, start_console: Callable[..., ConsoleProcess]) -> None:
    none = bus.zmqbus("console", "--link")
    assert none.returncode == 1 and "zmqbus console" in none.stderr and none.stdout == ""
    console = start_console()
    first, second = console.new_link(), console.new_link()
    assert first != second
    for link in (first, second):
        console.enter(link)
        status, _, body = PageClient(console, None)("POST", ENTER, entering(token_of(link))[0])
        assert status == 401 and b"link_used" in body
    assert console.stop() == (0, "")
    assert bus.zmqbus("console", "--link").returncode == 1


def test_second_console_on_the_port(
    bus: Bus, start_console: Callable[..., ConsoleProcess], new_port: Callable[[], int]
) -> None:
    port = new_port()
    first = start_console("--port", str(port))
    second = bus.zmqbus("console", "--port", str(port))
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.startswith("error: port_held: ") and f"--link --port {port}" in second.stderr
    assert first.raw("GET", "/")[0] == 200, "the first is not disturbed"


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "1e3", "²", ""])
def test_invalid_port(bus: Bus, port: str) -> None:
    done = bus.zmqbus("console", f"--port={port}")
    assert done.returncode == 2 and "--port" in done.stderr and "Traceback" not in done.stderr


def test_enter_prints_another_link(bus: Bus) -> None:
    """On a terminal, as the session leader, so that Ctrl-C sends SIGINT."""
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


def test_numeric_link(start_console: Callable[..., ConsoleProcess], bus: Bus) -> None:
    console = start_console()
    link = console.new_link("--numeric")
    assert link.startswith(f"http://127.0.0.1:{console.port}/#link=")
    console.enter(link)
    done = bus.zmqbus("console", "--numeric")
    assert done.returncode == 2 and "--link" in done.stderr


def test_port_is_bound_on_both_loopback_addresses(
    bus: Bus, start_console: Callable[..., ConsoleProcess], new_port: Callable[[], int]
) -> None:
    """Names below localhost resolve to either; on a free one another user could listen for the page's requests."""
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with other:
        taken = other.getsockname()[1]
        done = bus.zmqbus("console", "--port", str(taken))
        assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("error: port_held: ")
    console = start_console()
    with pytest.raises(OSError), socket.create_server(("::1", console.port), family=socket.AF_INET6):
        pass
    with socket.create_connection(("::1", console.port), PATIENCE_S) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {console.authority}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"


def fake_browser(tmp_path: Path, then: str = "") -> tuple[Path, Path]:
    """Returns a program that records its argument, and the file that it records it in."""
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}.new && mv {seen}.new {seen}\n{then}\n')
    browser.chmod(0o700)
    return browser, seen


def wait_url(seen: Path) -> str:
    wait_until(seen.exists, "the browser is started", PATIENCE_S)
    return seen.read_text().strip()


def test_open_uses_a_link_for_this_user_only(
    start_console: Callable[..., ConsoleProcess], tmp_path: Path, data_dir: Path
) -> None:
    with Peers() as peers:
        if not peers.works():
            pytest.skip("the kernel does not tell the users of connections")
    browser, seen = fake_browser(tmp_path)
    console = start_console("--open", env={"BROWSER": f"{browser} %s"})
    url = wait_url(seen)
    assert LINK.fullmatch(url), "a link and no file, which sandboxed browsers could not read"
    assert not list(data_dir.glob("*.html"))
    parts = split(token_of(url))
    assert parts is not None and (decode(parts[0], 25) or b"")[-1] == 1
    if os.geteuid() == 0:
        body = json.dumps(entering(token_of(url))[0]).encode()
        head = f"POST {ENTER} HTTP/1.1\r\nHost: {console.authority}\r\nOrigin: http://{console.authority}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = as_nobody(ASK, str(console.port), (head.encode() + body).hex())
        assert answer.stdout.strip() == "", "another user who reads it from the list of processes gets no access"
    console.enter(url)
    status, errors = console.stop()
    assert status == 0 and ("another user" in errors) == (os.geteuid() == 0)


ASK = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60)
try:
    connection.sendall(bytes.fromhex(sys.argv[2]))
    print(connection.recv(4096).decode())
except OSError:
    pass
"""


def test_open_by_a_private_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `peers` does not work, a file that only the user can read redirects to the link."""
    monkeypatch.setattr(Peers, "works", lambda self: False)
    opened: list[str] = []

    def open_in(url: str) -> subprocess.Popen[bytes]:
        opened.append(url)
        path = Path(url.removeprefix("file://"))
        assert path.stat().st_mode & 0o777 == 0o600
        found = LINK.search(path.read_text())
        assert found is not None
        opened.append(found[0])
        return subprocess.Popen(["true"])

    with ConsoleLock(settings.data_dir, 4711) as lock, Peers() as peers:
        issuer = LinkIssuer(settings.data_dir, f"{lock.name}:4711", lock.secret, peers)
        asyncio.run(issuer.in_browser(open_in))
        links, body = Links(lock.secret), entering(token_of(opened[1]))[0]
        assert links.redeem(Visitors(), body["link"], body["nonce"], body["proof"]).verdict == "good"
    assert opened[0].startswith("file:///") and "link=" not in opened[0]
    assert "cannot read the file" in capsys.readouterr().out


def test_browser_in_the_foreground_does_not_block_the_end(
    start_console: Callable[..., ConsoleProcess], tmp_path: Path
) -> None:
    """The console ends without waiting for the browser or ending it."""
    end = tmp_path / "end"
    browser, seen = fake_browser(tmp_path, f"until [ -e {end} ]; do sleep 0.1; done; touch {end}ed")
    console = start_console("--open", env={"BROWSER": f"{browser} %s"})
    try:
        console.enter(wait_url(seen))
        assert console.stop() == (0, "")
        assert not Path(f"{end}ed").exists()
    finally:
        end.touch()
        wait_until(Path(f"{end}ed").exists, "the browser has ended", PATIENCE_S)


def test_output_of_the_browser_is_hidden(start_console: Callable[..., ConsoleProcess], tmp_path: Path) -> None:
    browser, seen = fake_browser(tmp_path, "echo noise; echo noise >&2")
    console = start_console("--open", env={"BROWSER": f"{browser} %s"})
    wait_url(seen)
    assert console.stop() == (0, "")
    assert not any("noise" in line for line in console.printed)


def test_missing_browser_is_reported(start_console: Callable[..., ConsoleProcess]) -> None:
    console = start_console("--open", env={"BROWSER": "/nonexistent/browser %s", "PATH": "/nonexistent"})
    wait_until(lambda: any("No browser" in line for line in console.printed), "the console reports it", PATIENCE_S)


def test_missing_packages_are_named(bus: Bus, tmp_path: Path) -> None:
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
    assert f"run: {install_command(load(), 'console')}" in done.stderr


def test_data_directory_open_to_others(bus: Bus, data_dir: Path) -> None:
    data_dir.chmod(0o755)
    done = bus.zmqbus("console")
    data_dir.chmod(0o700)
    assert done.returncode == 1 and done.stderr.startswith("error: unauthorized: ") and "chmod" in done.stderr
