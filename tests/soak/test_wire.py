"""The faulty connection of a soak run: it forwards everything, and reports each fault that it makes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

#: Longer than anything here takes.
DEADLINE_S = 90.0

#: Connects through a wire of its own to the port given, sends what it reads, prints what it gets, and says when it was
#: cut off. In a process of its own: a wire lives as long as its process.
CLIENT = """
import signal, socket, sys
from tests.soak.wire import Wire
wire = Wire(int(sys.argv[2]), mean_s=float(sys.argv[3]), note=lambda text: print("trouble:", text, flush=True))
wire.install()
host, port = wire.endpoint(int(sys.argv[1])).removeprefix("tcp://").split(":")
end = socket.create_connection((host, int(port)), timeout=90)
print("connected", flush=True)
try:
    for line in sys.stdin.buffer:
        end.sendall(line)
        print(end.makefile("rb").readline().decode().strip(), flush=True)
    cut = not end.recv(1)
except ConnectionError:
    cut = True
print("cut off" if cut else "not cut off", flush=True)
"""


@pytest.fixture
def echo():
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(DEADLINE_S)

    def serve() -> None:
        try:
            end, _ = listener.accept()
            with end:
                while part := end.recv(65_536):
                    end.sendall(part)
        except OSError:
            pass

    server = threading.Thread(target=serve)
    server.start()
    yield listener.getsockname()[1]
    listener.close()
    server.join(DEADLINE_S)
    assert not server.is_alive()


@pytest.fixture
def client():
    processes: list[subprocess.Popen[str]] = []

    def start(port: int, *, seed: int = 1, mean_s: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(port), str(seed), str(mean_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent)},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(DEADLINE_S)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def say(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{line}\n")
    return process.stdout.readline().strip()


def test_wire_forwards_everything_until_it_is_cut(echo, client):
    process = client(echo, mean_s=1e9)
    assert process.stdout.readline() == "connected\n"
    long = "x" * 1_000_000
    assert [say(process, line) for line in ("hello", long, "bye")] == ["hello", long, "bye"]
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "trouble: reset upon request\n"
    process.stdin.close()
    assert process.stdout.readline() == "cut off\n"


def test_wire_is_cut_or_reset_by_itself(echo, client):
    process = client(echo, seed=3, mean_s=0.05)
    process.stdout.readline()
    chance = random.Random(1)
    while True:
        sent = "y" * chance.randint(1, 2000)
        try:
            heard = say(process, sent)
        except BrokenPipeError:
            heard = process.stdout.readline().strip()
        while heard.startswith("trouble: "):
            heard = process.stdout.readline().strip()
        if heard != sent:
            break
    assert heard in ("", "cut off")
