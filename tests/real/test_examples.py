"""The examples run as they are, and print what they promise."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.real.conftest import Bus, ListenerProcess, wait_until

ROOT = Path(__file__).parents[2]
#: The demo promises to end within 30 s; a crowded machine may take longer.
PATIENCE_S = 90.0

pytestmark = pytest.mark.slow


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
    )


def outsider_env(home: Path) -> dict[str, str]:
    """The environment of a user who has never used the bus."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("INTER_SESSION_", "CLAUDE"))}
    return {**kept, "HOME": str(home)}


def test_demo_shows_everything_and_leaves_nothing(tmp_path: Path) -> None:
    marker = f"demo-{tmp_path.name}-{os.getpid()}"
    done = run(sys.executable, "examples/demo.py", env={**outsider_env(tmp_path), "ZMQBUS_TEST_MARKER": marker})
    assert done.returncode == 0, done
    for shown in (
        "delivered msg=",
        "broadcast msg=",
        "answer: yes, CI is green   <- what `--wait` printed",
        "gives the whole text: yes",
        " to=#deploys] status: v2.3 is on staging",
        "queued msg=",
        "please update the changelog",
        "all 7 processes have ended",
    ):
        assert shown in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == [], "it has written to the user's home"
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ZMQBUS_TEST_MARKER") == marker and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
        except psutil.Error:
            continue
    assert left == []


def test_two_sessions_talk(tmp_path: Path, free_port: int) -> None:
    env = {**outsider_env(tmp_path), "INTER_SESSION_PORT": str(free_port)}
    done = run("bash", "examples/two_sessions.sh", sys.executable, env=env)
    assert done.returncode == 0, done
    assert 'from="bob" "reviewer"] status: I start with the lexer now' in done.stdout
    assert "answer: yes, two remarks in review.md" in done.stdout


def example(bus: Bus, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, f"examples/{name}", *args, env=bus.env())


def test_announcement_reaches_everybody(bus: Bus) -> None:
    auth = bus.listener("auth", topics=["deploys"])
    done = example(bus, "announce.py", "freeze at 17:00")
    assert (done.returncode, done.stderr) == (0, "")
    counts = re.match(r"announced to (\d) sessions; (\d) will get it later \(msg=", done.stdout)
    assert counts is not None and int(counts[1]) + int(counts[2]) == 1, done  # on a crowded machine, later
    assert auth.wait_message("freeze at 17:00")["to"] == "all"
    assert example(bus, "announce.py", "--topic", "deploys", "v2.3 is out").returncode == 0
    assert auth.wait_message("v2.3 is out")["to"] == "#deploys"
    refused = example(bus, "announce.py", "--topic", "no such topic", "x")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: invalid_name: ")


def test_fan_out_gathers_up_to_a_deadline(bus: Bus) -> None:
    done = example(bus, "fan_out.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r" (auth|pay)-\d+ +done: please run the tests of your part: all green\n", done.stdout)) == 2
    assert re.search(r"docs-\d+ +\(no answer in time\)\n2 of 3 answered; without: docs-\d+\n$", done.stdout)
    assert bus.list("--all") == []


def test_fan_out_to_own_sessions(bus: Bus) -> None:
    auth = bus.listener("auth")
    with start(bus, "fan_out.py", "--to", "auth,nobody", "--timeout", "60", "please run the tests") as asking:
        question = auth.wait_message("please run the tests")
        answer(bus, auth, question, "done: 212 passed")
        said, _ = asking.communicate(timeout=PATIENCE_S)
    assert asking.returncode == 4
    assert re.search(r"s  auth +done: 212 passed\n", said)
    assert re.search(r"s  nobody +\(unknown_peer: ", said)
    assert said.endswith("1 of 2 answered; without: nobody\n")


@pytest.mark.parametrize("flags", [(), ("--kill",)])
def test_worker_pool_hashes_every_file(bus: Bus, tmp_path: Path, flags: tuple[str, ...]) -> None:
    whole = hashlib.sha256()
    for number in range(400):
        path = tmp_path / f"{number:03}"
        path.write_bytes(os.urandom(10_000))
        whole.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n".encode())
    done = example(bus, "worker_pool.py", *flags, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"400 of 400 files hashed; hash of all hashes: {whole.hexdigest()[:16]}\n" in done.stdout
    counts = [int(count) for count in re.findall(r"^  hashers-\d+ +(\d+) files$", done.stdout, re.MULTILINE)]
    assert sum(counts) == 400
    assert len(counts) == 2
    assert ("killed worker " in done.stdout) == bool(flags)
    assert bus.list() == []


def test_worker_pool_with_own_workers(bus: Bus) -> None:
    with start(bus, "worker_pool.py", "--worker") as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().endswith(" is ready\n")
        done = example(bus, "worker_pool.py", "--workers", "0", "examples")
        assert done.returncode == 0, done
        assert "files hashed" in done.stdout
        missing = example(bus, "worker_pool.py", "--workers", "0", "no such directory")
        assert "0 of 0 files hashed" in missing.stdout
        os.killpg(worker.pid, signal.SIGINT)
        assert worker.wait(PATIENCE_S) == 0
    assert bus.list("--all") == []


def test_review_goes_in_rounds(bus: Bus) -> None:
    done = example(bus, "review_loop.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "slug('Hello World') is 'Hello-World', and should be 'hello-world'" in done.stdout
    assert done.stdout.endswith("approved: all cases are right\n--- approved in round 3\n")
    assert bus.list("--all") == []
    assert example(bus, "review_loop.py", "--rounds", "2").returncode == 1


def test_review_by_own_sessions(bus: Bus) -> None:
    web, auth = bus.listener("web"), bus.listener("auth")
    with start(bus, "review_loop.py", "--implementer", "web", "--reviewer", "auth", "add a rate limit") as driving:
        answer(bus, web, web.wait_message("answer with what you did: add a rate limit"), "done: ten a minute")
        answer(bus, auth, auth.wait_message("please review this"), "answer: Approved, thank you")
        said, _ = driving.communicate(timeout=PATIENCE_S)
    assert driving.returncode == 0, said
    assert said.endswith("--- approved in round 1\n")


def test_gate_opens_for_a_yes_alone(bus: Bus) -> None:
    done = example(bus, "ci_gate.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(": answer: yes, 212 tests passed, and nobody has objected\nthe gate is open\n")
    assert bus.list("--all") == []
    release = bus.listener("release")
    for text, status in (("answer: yes", 0), ("answer: no, yesterday's bug is open", 1), ("Yes!", 0), ("yesterday", 1)):
        seen = len(release.lines)
        with start(bus, "ci_gate.py", "--ask", "release") as job:
            answer(bus, release, release.wait_message("may build 1234", after=seen), text)
            assert job.wait(PATIENCE_S) == status
    late = example(bus, "ci_gate.py", "--ask", "release", "--timeout", "0.5")
    assert late.returncode == 4
    assert "release has not answered within 0.5 s; the gate stays closed" in late.stdout
    nobody = example(bus, "ci_gate.py", "--ask", "nobody")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("error: unknown_peer: ")


@pytest.mark.parametrize(
    "command",
    [
        ("fan_out.py", "--timeout", "30"),
        ("worker_pool.py", "/usr"),
        ("review_loop.py", "--implementer", "sleeper", "--reviewer", "sleeper"),
        ("ci_gate.py", "--ask", "sleeper"),
    ],
    ids=lambda command: command[0],
)
def test_ends_quietly_when_interrupted(bus: Bus, command: tuple[str, ...]) -> None:
    bus.listener("sleeper")
    with start(bus, *command) as process:
        assert process.stdout is not None
        for _ in range(2 if command[0] == "worker_pool.py" else 1):  # each worker says when it is there
            assert process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert errors == ""
    wait_until(lambda: set(bus.states()) == {"sleeper"}, "the sessions of the example are gone")


@contextlib.contextmanager
def start(bus: Bus, name: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Runs an example in a process group of its own, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, f"examples/{name}", *args],
        env=bus.env(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def answer(bus: Bus, session: ListenerProcess, question: dict[str, str | None], text: str) -> None:
    """Answers a question as an agent does."""
    asker, msg_id = question["name"], question["id"]
    assert asker is not None and msg_id is not None
    done = bus.send("--to", asker, "--reply-to", msg_id, "--text", text, owner=session)
    assert done.returncode == 0, done
