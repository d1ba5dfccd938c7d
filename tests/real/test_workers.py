"""Pools of worker processes that are killed, stopped, and lose their broker: every item is answered once.

The workers are scripts as users write them, each a process of its own. They note each request in a file of the test, so
that requests done twice differ from requests answered twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import zmqbus
from zmqbus import errors
from zmqbus.client.oneshot import observer
from zmqbus.settings import load
from zmqbus.wire import verbs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
#: Far longer than any of this takes, s.
PATIENCE_S = 90.0
POLL_S = 0.01

#: The script of a worker; the handlers note each request.
WORKER = """
import hashlib, os, sys, time
import zmqbus

def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{os.getpid()} {text}\\n")

def sha(message):
    time.sleep(0.003)  # some work
    with open(message.body, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    note(message.body)
    return digest

def dies(message):
    note(message.body)
    os._exit(1)

def holds(message):
    import ctypes
    note(message.body)
    ctypes.PyDLL(None).sleep(int(message.body.split()[1]))  # which keeps the interpreter to itself
    return os.getpid()

def forks(message):
    import signal
    child = os.fork()
    if not child:
        sys.stderr.close()
        time.sleep(90)
        os._exit(0)
    note(child)
    os.kill(os.getpid(), signal.SIGKILL)

def exits(message):
    note(message.body)
    if message.body == "exit":
        sys.exit(3)
    return os.getpid()

def waits(message):
    note(message.body)
    while True:
        time.sleep(0.01)

def sleeps(message):
    note(message.body)
    time.sleep(1)
    return os.getpid()

async def hangs(message):
    import asyncio
    note(message.body)
    if message.body == "hang":
        await asyncio.Event().wait()
    return message.body

with zmqbus.connect(group=sys.argv[1]) as bus:
    bus.serve(globals()[sys.argv[2]], concurrency=int(sys.argv[3]))
    exec(sys.argv[4])
"""


class Pool:
    """The worker processes of a test."""

    def __init__(self, directory: Path) -> None:
        self.notes = directory / "notes"
        self.workers: list[subprocess.Popen[str]] = []

    def start(
        self, handler: str, count: int = 1, *, group: str = "g", concurrency: int = 1, after: str = ""
    ) -> list[Any]:
        env = {**os.environ, "NOTES": str(self.notes)}
        arguments = [sys.executable, "-c", WORKER, group, handler, str(concurrency), after]
        started = [
            subprocess.Popen(
                arguments, cwd=ROOT, env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
            )
            for _ in range(count)
        ]
        self.workers += started
        return started

    def noted(self) -> list[tuple[int, str]]:
        """Returns (pid, request) for each request noted so far."""
        if not self.notes.exists():
            return []
        lines = [line for line in self.notes.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(int(pid), text) for pid, text in (line.rstrip("\n").split(" ", 1) for line in lines)]

    def close(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.communicate()


@pytest.fixture(autouse=True)
def _port(data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))


@pytest.fixture
def pool(data_dir: Path, tmp_path: Path) -> Iterator[Pool]:
    pool = Pool(tmp_path)
    yield pool
    pool.close()


@pytest.fixture
def bus(pool: Pool) -> Iterator[zmqbus.Bus]:
    with zmqbus.connect("orchestrator") as bus:
        yield bus


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, str]:
    """Paths of files, with their hashes."""
    found = {}
    for number in range(400):
        path = tmp_path / f"d{number % 20}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d\n" % number * 100)
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def until(condition: Callable[[], Any]) -> Any:
    end_s, pause_s = time.monotonic() + PATIENCE_S, POLL_S
    while not (value := condition()):
        assert time.monotonic() < end_s
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.2)  # the condition may be a LIST, of which the broker allows ten a second
    return value


def figures() -> dict[str, Any]:
    with observer(load({})) as bus:
        health = bus.request(verbs.Status)
    assert isinstance(health, verbs.Health)
    return dict(health.figures)


def broker(data_dir: Path) -> psutil.Process:
    [pid_file] = data_dir.glob("server.*.pid")
    return psutil.Process(int(pid_file.read_text()))


# --- a tree of files


@pytest.mark.parametrize("how", ["quiet", "kill and broker", "new worker"])
def test_file_tree_is_hashed_while_workers_and_broker_die(bus, pool, tree, data_dir, how):
    workers = pool.start("sha", 3, concurrency=2)
    until(lambda: figures()["workers"] == 3)  # otherwise the first may have done all before the last is there
    items = [*tree]
    answers = []
    for number, answer in enumerate(bus.map("@g", items, timeout=PATIENCE_S)):
        answers.append(answer.body)
        if number == 60 and "kill" in how:
            workers[0].kill()
        if number == 120 and "broker" in how:
            broker(data_dir).kill()
        if number == 60 and how == "new worker":
            workers[1].terminate()
            pool.start("sha")
    assert answers == [tree[item] for item in items]  # each once, in order
    done = Counter(path for _, path in pool.noted())
    assert done.keys() == tree.keys()
    if how == "quiet":
        assert set(done.values()) == {1}
        assert {pid for pid, _ in pool.noted()} == {worker.pid for worker in workers}
    until(lambda: figures()["requests_in_hand"] == figures()["requests_waiting"] == 0)


def test_requests_wait_for_new_workers_when_all_were_killed(bus, pool, tree):
    workers = pool.start("sha", 2)
    items = [*tree][:100]
    replies = [bus.request("@g", item, timeout=PATIENCE_S) for item in items]
    until(lambda: len(pool.noted()) > 10)
    for worker in workers:
        worker.kill()
    pool.start("sha")
    assert [reply.result().body for reply in replies] == [tree[item] for item in items]


def test_stopped_worker_keeps_its_requests_and_gets_no_more(bus, pool, tree):
    """SIGSTOP: the connection stands, and is silent."""
    stopped, *_ = pool.start("sha", 2)
    until(lambda: figures()["workers"] == 2)
    items = [*tree][:200]
    stopped.send_signal(signal.SIGSTOP)
    replies = [bus.request("@g", item, timeout=PATIENCE_S) for item in items[:2]]
    until(lambda: figures()["requests_in_hand"] == 1 and len(pool.noted()) == 1)
    until(lambda: [row.state for row in bus.sessions() if row.name == f"g-{stopped.pid}"] == ["busy"])
    answers = [answer.body for answer in bus.map("@g", items[2:], timeout=PATIENCE_S)]
    assert answers == [tree[item] for item in items[2:]]
    assert sum(not reply.done() for reply in replies) == 1
    stopped.send_signal(signal.SIGCONT)
    assert [reply.result().body for reply in replies] == [tree[item] for item in items[:2]]
    assert set(Counter(path for _, path in pool.noted()).values()) == {1}
    assert figures()["requests_redispatched"] == 0


#: Longer, s, than the silence after which a session is busy (12 s) and the time to reconnect (5 s) together.
HELD_S = 18

BUSY_CALLER = """
import ctypes, sys, zmqbus
with zmqbus.connect() as bus:
    reply = bus.request("@g", f"hold 8 for {sys.argv[1]}")
    print("asked", flush=True)
    sys.stdin.readline()
    ctypes.PyDLL(None).sleep(int(sys.argv[1]))
    print(reply.result(60).body, flush=True)
"""


@pytest.mark.parametrize("how", ["quiet", "broker"])
def test_busy_processes_are_not_taken_for_dead(bus, pool, data_dir, how):
    """Workers and a caller with held interpreters, a stopped worker, and in one case a new broker. There is always a
    free worker to which the requests could wrongly be given."""
    pool.start("holds", 4)
    until(lambda: figures()["workers"] == 4)
    held = bus.request("@g", f"hold {HELD_S}", timeout=PATIENCE_S)
    pid = until(lambda: pool.noted())[0][0]
    still = bus.request("@g", "hold 1", timeout=PATIENCE_S)
    until(lambda: len(pool.noted()) == 2)
    stopped = next(worker for worker in pool.workers if worker.pid == pool.noted()[1][0])
    stopped.send_signal(signal.SIGSTOP)
    caller = subprocess.Popen(
        [sys.executable, "-c", BUSY_CALLER, str(HELD_S)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert caller.stdin is not None and caller.stdout is not None
        assert caller.stdout.readline() == "asked\n"
        until(lambda: len(pool.noted()) == 3)
        caller.stdin.write("go on\n")
        caller.stdin.flush()
        if how == "broker":
            broker(data_dir).kill()
        assert held.result().body == pid
        assert not still.done()
        stopped.send_signal(signal.SIGCONT)
        assert still.result().body == stopped.pid
        assert int(caller.stdout.readline()) == pool.noted()[2][0]
    finally:
        caller.kill()
        caller.communicate()
    assert len(pool.noted()) == 3  # each once
    assert figures()["requests_redispatched"] == 0


def test_broker_that_is_stopped_for_a_while(bus, pool, tree, data_dir):
    pool.start("sha", 2)
    items = [*tree][:100]
    answers = []
    for number, answer in enumerate(bus.map("@g", items, timeout=PATIENCE_S)):
        answers.append(answer.body)
        if number == 20:
            process = broker(data_dir)
            process.suspend()
            threading.Timer(1.0, process.resume).start()
    assert answers == [tree[item] for item in items]


# --- handlers that end


def test_handler_that_exits_fails_only_its_own_request(bus, pool):
    workers = pool.start("exits", 2)
    until(lambda: figures()["workers"] == 2)
    for _ in range(6):
        with pytest.raises(errors.RemoteError) as caught:
            bus.ask("@g", "exit", timeout=PATIENCE_S)
        assert (caught.value.kind, caught.value.text) == ("SystemExit", "3")
    assert [text for _, text in pool.noted()].count("exit") == 6
    replies = [bus.request("@g", number, timeout=PATIENCE_S) for number in range(50)]
    assert {reply.result().body for reply in replies} <= {worker.pid for worker in workers}
    assert [worker.poll() for worker in workers] == [None, None]


def test_request_that_kills_its_workers_is_poisoned_after_three(bus, pool):
    pool.start("dies", 5)
    until(lambda: figures()["workers"] == 5)
    with pytest.raises(errors.Poisoned):
        bus.ask("@g", "poison", timeout=PATIENCE_S)
    assert len(pool.noted()) == 3
    # The answer may come before the process can be reaped: the kernel closes its connections first.
    until(lambda: sum(worker.poll() is not None for worker in pool.workers) == 3)
    until(lambda: figures()["workers"] == 2)


def test_death_of_a_worker_whose_child_holds_its_sockets(bus, pool):
    """Only its pid shows that it has ended: the kernel keeps a connection that another process holds."""
    [worker] = pool.start("forks")
    reply = bus.request("@g", "x", timeout=PATIENCE_S)
    child = int(until(lambda: pool.noted())[0][1])
    try:
        assert worker.wait(PATIENCE_S) == -signal.SIGKILL
        [other] = pool.start("holds")
        assert psutil.pid_exists(child) and not reply.done()
        until(lambda: figures()["requests_redispatched"] == 1)
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)
    with pytest.raises(errors.RemoteError):  # the other worker gets it, and its handler fails
        reply.result()
    assert {pid for pid, text in pool.noted() if text == "x"} == {other.pid}


def test_handler_that_hangs_delays_only_its_own_request(bus, pool):
    pool.start("hangs", concurrency=3)
    hanging = bus.request("@g", "hang", timeout=3.0)
    assert [answer.body for answer in bus.map("@g", range(50), timeout=PATIENCE_S)] == list(range(50))
    with pytest.raises(errors.Timeout):
        hanging.result()


def test_interrupted_worker_leaves_in_order(bus, pool):
    """Ctrl-C while nothing is in hand."""
    [worker] = pool.start("exits")
    first = bus.ask("@g", 1, timeout=PATIENCE_S)
    worker.send_signal(signal.SIGINT)
    assert (worker.wait(PATIENCE_S), worker.stderr.read()) == (0, "")
    assert first.body == worker.pid
    until(lambda: figures()["workers"] == 0)
    until(lambda: [row.name for row in bus.sessions(away=True)] == ["orchestrator"])


@pytest.mark.parametrize(("handler", "concurrency"), [("waits", 1), ("hangs", 3)])
def test_requests_of_an_interrupted_worker_go_to_another(bus, pool, handler, concurrency):
    """Ctrl-C in the middle of a request is not a death, however often it happens."""
    reply = bus.request("@g", "hang", timeout=PATIENCE_S)
    for number in range(4):
        [worker] = pool.start(handler, concurrency=concurrency)
        until(lambda: len(pool.noted()) == number + 1)  # noqa: B023
        worker.send_signal(signal.SIGINT)
        assert (worker.wait(PATIENCE_S), worker.stderr.read()) == (0, "")
        assert not reply.done()
    [last] = pool.start("exits")
    assert reply.result().body == last.pid


def test_handlers_in_threads_finish_when_their_worker_is_interrupted(bus, pool):
    [worker] = pool.start("sleeps", concurrency=2)
    replies = [bus.request("@g", number, timeout=PATIENCE_S) for number in range(4)]
    until(lambda: len(pool.noted()) == 2)
    worker.send_signal(signal.SIGINT)
    assert {reply.result().body for reply in replies[:2]} == {worker.pid}
    assert (worker.wait(PATIENCE_S), worker.stderr.read()) == (0, "")
    [other] = pool.start("sleeps", concurrency=2)
    assert {reply.result().body for reply in replies[2:]} == {other.pid}
    assert sorted(text for _, text in pool.noted()) == ["0", "1", "2", "3"]


def test_interrupted_worker_that_lives_on_has_returned_its_requests(bus, pool):
    """Its bus stays open, so the request would otherwise stay with the living process."""
    [worker] = pool.start("waits", after="input()")
    reply = bus.request("@g", "hang", timeout=PATIENCE_S)
    until(pool.noted)
    worker.send_signal(signal.SIGINT)
    [other] = pool.start("exits")
    assert reply.result().body == other.pid
    assert worker.poll() is None
    worker.communicate("\n", PATIENCE_S)
    assert worker.returncode == 0


# --- callers that end

CALLER = """
import sys, zmqbus
with zmqbus.connect() as bus:
    replies = [bus.request("@nobody", n) for n in range(100)]
    print("asked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_requests_of_a_dead_caller_are_withdrawn(pool, bus, signum):
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "asked\n"
        until(lambda: figures()["requests_waiting"] == 100)
        caller.send_signal(signum)
        caller.wait(PATIENCE_S)
        until(lambda: figures()["requests_waiting"] == 0)
    finally:
        caller.kill()
        caller.communicate()


KEEPER = """
import sys, zmqbus
with zmqbus.connect("keeper", ack="manual") as bus:
    for message in bus.messages():
        print(message.text, flush=True)
        if message.text == "done":
            message.ack()
"""


def test_unacknowledged_mail_of_a_killed_program_goes_to_its_successor(bus, pool):
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", KEEPER], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")

    first = start()
    try:
        until(lambda: [row for row in bus.sessions() if row.name == "keeper"])
        done = bus.send("keeper", "done", wait=False)
        owed = bus.send("keeper", "owed", wait=False)
        assert first.stdout is not None
        assert [first.stdout.readline() for _ in range(2)] == ["done\n", "owed\n"]
        assert done.result(PATIENCE_S).to == "keeper"
        first.kill()
        first.wait(PATIENCE_S)
        assert owed.result(PATIENCE_S).state == "queued"
        bus.send("keeper", "meanwhile", wait=False)
    finally:
        first.kill()
        first.communicate()
    second = start()
    try:
        assert second.stdout is not None
        assert [second.stdout.readline() for _ in range(2)] == ["owed\n", "meanwhile\n"]
    finally:
        second.kill()
        second.communicate()


# --- multiprocessing

#: A file, since the children of "spawn" read it again.
PROGRAM = """
import multiprocessing, os, sys
import zmqbus

def work(ready):
    with zmqbus.connect(group="g") as bus:
        ready.release()
        bus.serve(lambda message: [message.body, os.getpid()])

def ask(number):
    with zmqbus.connect() as bus:
        return bus.ask("@g", number, timeout=90).body[0]

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    ready = context.Semaphore(0)
    with zmqbus.connect("orchestrator") as bus:
        workers = [context.Process(target=work, args=(ready,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            ready.acquire()
        answers = [answer.body for answer in bus.map("@g", range(100), timeout=90)]
        assert [number for number, _ in answers] == list(range(100))
        assert {pid for _, pid in answers} <= {worker.pid for worker in workers}
        with context.Pool(2) as callers:
            assert callers.map(ask, range(10)) == list(range(10))
        for worker in workers:
            worker.terminate()
            worker.join()
        assert "orchestrator" in [row.name for row in bus.sessions()]
    print("end")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_and_callers_of_multiprocessing(bus, tmp_path, monkeypatch, method):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace('"orchestrator"', '"main"'))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, str(program), method], capture_output=True, encoding="utf-8", timeout=PATIENCE_S, cwd=tmp_path
    )
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)
