"""One data directory in several PID and network namespaces (`unshare`), as with containers and sandboxes.

They prove that no process is taken for dead that may live, and that a shell in another network reports it. The logic
alone, with tables of processes, is tested in tests/test_process.py and tests/session/test_state.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real.conftest import COMMAND_TIMEOUT_S, ROOT, Bus, wait_until

CONTAINER = ("unshare", "-rpf", "--mount-proc", "--kill-child")
SANDBOX = ("unshare", "-rn")
CLOSED_CONTAINER = ("unshare", "-rpfn", "--mount-proc", "--kill-child")


def _why_not() -> str:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "needs namespaces and the command unshare"
    for command in (CONTAINER, SANDBOX):
        done = subprocess.run([*command, "true"], capture_output=True, text=True)
        if done.returncode:
            return f"this system does not allow {' '.join(command)}: {done.stderr.strip()}"
    return ""


WHY_NOT = _why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")]


def inside(
    bus: Bus,
    space: tuple[str, ...],
    *command: str,
    input: str = "",
    env: dict[str, str] | None = None,
    up: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs `bin/<command>` in new namespaces; `up`: with the loopback device up."""
    script = 'exec "$@"'
    if up:
        script = f"ip link set lo up; {script}"
    if "p" in space[1]:
        script = f'{script[:-9]}"$@"; exit $?'  # a shell above it, as in a container
    words = [*space, "sh", "-c", script, "sh", sys.executable, str(ROOT / "bin" / command[0]), *command[1:]]
    return subprocess.run(
        words,
        input=input,
        capture_output=True,
        text=True,
        env=bus.env(None, env),
        cwd=bus.cwd,
        timeout=COMMAND_TIMEOUT_S,
    )


def start_hook(bus: Bus, space: tuple[str, ...], **env: str) -> str:
    """Runs the SessionStart hook inside; returns its output."""
    event = json.dumps({"hook_event_name": "SessionStart", "cwd": str(bus.cwd), "source": "startup"})
    done = inside(bus, space, "hook.py", input=event, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {row["check"]: row for row in json.loads(done.stdout)["checks"]}


def clients(bus: Bus) -> dict[str, bytes]:
    files = [path for path in (bus.data_dir / "clients").iterdir() if path.is_file()]  # a FIFO would block
    return {path.name: path.read_bytes() for path in files if path.name != "reap.lock"}


# --- PID namespaces


def test_container_leaves_sessions_of_the_host_alone(bus: Bus) -> None:
    live, away = bus.listener("live"), bus.listener("away")
    assert away.stop() == 0
    killed = bus.listener("killed")
    killed.stop(signal.SIGKILL)
    before = clients(bus)
    start_hook(bus, CONTAINER)
    assert before.items() <= clients(bus).items()
    done = inside(bus, CONTAINER, "zmqbus", "doctor", "--json")
    assert findings(done)["stale"]["level"] == "ok"
    again = bus.listener(owner=away)
    assert again.session_id == json.loads(before[f"{away.owner.pid}.lock"])["session_id"]
    assert live.status is None


def test_mail_of_a_session_that_is_away_is_not_stranded_by_a_container(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert auth.stop() == 0
    bus.deliver("auth", "while nobody listens")
    start_hook(bus, CONTAINER)
    inside(bus, CONTAINER, "list.py")
    again = bus.listener(owner=auth)
    again.wait_message("while nobody listens")


def test_container_with_the_host_network_uses_the_broker_of_the_host(bus: Bus) -> None:
    auth = bus.listener("auth")
    done = inside(bus, CONTAINER, "send.py", "--as", "inner", "--to", "auth", "--text", "from inside")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("delivered "), done
    assert auth.wait_message("from inside")["name"] == "inner"
    broker = bus.broker_pid()
    assert auth.stop() == 0  # otherwise it would start another one at once
    done = inside(bus, CONTAINER, "zmqbus", "broker", "--stop")
    assert done.stdout == f"broker (pid {broker}) stopped\n", done


def serve_inside(bus: Bus, *, stop: bool = False) -> subprocess.Popen[bytes]:
    """A broker in a container that shares the data directory and the network."""
    process = subprocess.Popen(
        [*CONTAINER, sys.executable, str(ROOT / "bin" / "zmqbus"), "broker", "--foreground"],
        env=bus.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=bus.cwd,
    )
    wait_until(lambda: bus.broker_pid() is not None, "it serves")
    return process


def test_broker_in_a_container_gives_no_mail_away(bus: Bus) -> None:
    """A listener of the host has ended, its owner lives: another session takes the name, but not the mail."""
    process = serve_inside(bus)
    try:
        assert bus.broker_pid() == 1, "its pid, in its own namespace"
        assert bus.zmqbus("broker").stdout == f"broker serves port {bus.port} (pid 1)\n", "a second one is not started"
        auth = bus.listener("auth")
        assert auth.stop() == 0
        bus.deliver("auth", "for the first window")
        other = bus.listener("auth")
        bus.deliver(other.session_id, "for the second")
        other.wait_message("for the second")
        assert not any("for the first window" in line for line in other.lines)
        assert other.stop() == 0
        again = bus.listener(owner=auth)
        again.wait_message("for the first window")
        assert again.stop() == 0
        done = bus.zmqbus("doctor", "--json")
        assert findings(done)["broker"]["level"] == findings(done)["stale"]["level"] == "ok"
        stopped = bus.zmqbus("broker", "--stop")
        assert stopped.stdout == "broker (pid 1) stopped\n", stopped
        assert process.wait(COMMAND_TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_doctor_advises_no_kill_of_a_foreign_pid(bus: Bus) -> None:
    """A hanging broker is pid 1 in its container, which is init outside."""
    process = serve_inside(bus)
    try:
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(child, signal.SIGSTOP)
        row = findings(bus.zmqbus("doctor", "--json"))["broker"]
        assert row["level"] == "fault" and row["mend"] is None and "another PID namespace (pid 1 there)" in row["says"]
        os.kill(child, signal.SIGCONT)
    finally:
        process.kill()
        process.wait()


def test_same_pid_in_two_containers(bus: Bus) -> None:
    """Both owners are pid 1: the second takes neither session nor token nor mail of the first."""
    name = {"INTER_SESSION_PPID_OVERRIDE": "1"}
    bus.zmqbus("broker")
    first = subprocess.Popen(
        [
            *(*CONTAINER, "sh", "-c", '"$@"; read line', "sh"),
            *(sys.executable, str(ROOT / "bin" / "client.py"), "--name", "first", "--away"),
        ],
        env=bus.env(None, name),
        cwd=bus.cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None and "joined as 'first'" in first.stdout.readline()
        bus.deliver("first", "for the first one")
        before = clients(bus)
        assert "1.lock" in before
        inbox = inside(bus, CONTAINER, "zmqbus", "inbox", env=name)
        assert inbox.returncode == 1 and "not_connected" in inbox.stderr
        joined = inside(bus, CONTAINER, "client.py", "--name", "second", "--away", env=name)
        assert "joined as 'second'" in joined.stdout, joined
        after = clients(bus)
        assert before.items() <= after.items()
        tagged = [json.loads(after[file]) for file in after if file.startswith("1-") and file.endswith(".lock")]
        assert [record["name"] for record in tagged] == ["second"]
        assert bus.states() == {"first": "away", "second": "away"}
    finally:
        first.kill()
        first.communicate()


def test_proc_of_another_namespace_proves_no_death(bus: Bus) -> None:
    """`unshare -pf` without its own /proc, which shows the pids of the outside."""
    auth = bus.listener("auth")
    assert auth.stop() == 0
    before = clients(bus)
    start_hook(bus, ("unshare", "-rpf", "--kill-child"))
    assert before.items() <= clients(bus).items()


def test_no_process_is_taken_for_dead_without_proc(bus: Bus) -> None:
    auth = bus.listener("auth")
    assert auth.stop() == 0
    before = clients(bus)
    code = (
        "import sys; from zmqbus.session.leftovers import reap, leftovers; "
        "print(reap(sys.argv[1]), leftovers(sys.argv[1]))"
    )
    script = 'mount -t tmpfs none /proc && exec "$@"'
    done = subprocess.run(
        ["unshare", "-rmpf", "sh", "-c", script, "sh", sys.executable, "-c", code, str(bus.data_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert (done.stdout, done.returncode) == ("[] []\n", 0), done
    assert before == clients(bus)


# --- network namespaces


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("space", [SANDBOX, CLOSED_CONTAINER])
def test_shell_in_another_network_says_so(bus: Bus, space: tuple[str, ...], up: bool) -> None:
    auth = bus.listener("auth")
    broker = bus.broker_pid()
    for command in (
        ("send.py", "--as", "x", "--to", "auth", "--text", "x"),
        ("list.py",),
        ("zmqbus", "broker", "--stop"),
        ("zmqbus", "broker", "--status"),
        ("zmqbus", "stats"),
    ):
        done = inside(bus, space, *command, up=up)
        assert done.returncode == 1 and done.stdout == "", done
        assert done.stderr.startswith("error: broker_unavailable: "), done
        assert f"(pid {broker} there) runs in another network" in done.stderr and "sandbox" in done.stderr
        assert "kill" not in done.stderr and "broker --stop" not in done.stderr
    joined = inside(bus, space, "client.py", "--name", "inner", up=up)
    assert joined.returncode == 1 and "another network" in joined.stdout
    row = findings(inside(bus, space, "zmqbus", "doctor", "--json", up=up))["broker"]
    assert row["level"] == "fault" and "another network" in row["says"] and row["mend"] is None
    assert bus.broker_pid() == broker and auth.status is None
    bus.deliver("auth", "the broker is well")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("space", [SANDBOX, CLOSED_CONTAINER])
def test_no_broker_is_started_in_the_network_of_a_sandbox(bus: Bus, space: tuple[str, ...], before: bool) -> None:
    if before:
        assert bus.zmqbus("broker").returncode == 0
        assert bus.zmqbus("broker", "--stop").returncode == 0
    for command in (
        ("send.py", "--as", "x", "--to", "auth", "--text", "x"),
        ("zmqbus", "broker"),
        ("zmqbus", "broker", "--foreground"),
    ):
        done = inside(bus, space, *command, up=True)
        assert done.returncode == 1 and "no broker is started here" in done.stderr, done
        assert "INTER_SESSION_LOOPBACK_ONLY=1" in done.stderr
    assert bus.broker_pid() is None
    bus.listener("auth").stop()


def test_broker_in_a_sandbox_network_is_reported(bus: Bus) -> None:
    """It is started by a setting. Outside, its place is reported, and no advice to kill it is given."""
    process = subprocess.Popen(
        [
            *(*SANDBOX, "sh", "-c", 'ip link set lo up; exec "$@"', "sh"),
            *(sys.executable, str(ROOT / "bin" / "zmqbus"), "broker", "--foreground"),
        ],
        env=bus.env(None, {"INTER_SESSION_LOOPBACK_ONLY": "1"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=bus.cwd,
    )
    try:
        wait_until(lambda: bus.broker_pid() is not None, "it serves")
        done = bus.send("--as", "x", "--to", "auth", "--text", "x")
        assert done.returncode == 1 and "another network" in done.stderr
        row = findings(bus.zmqbus("doctor", "--json"))["broker"]
        assert row["level"] == "fault" and row["mend"] is None
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(COMMAND_TIMEOUT_S)
    assert bus.listener("auth").stop() == 0


def test_all_sessions_in_one_sandbox_network(bus: Bus) -> None:
    """A container with all sessions: one broker, started once by the setting."""
    script = (
        'ip link set lo up; set -e; "$1" "$2/zmqbus" broker; unset INTER_SESSION_LOOPBACK_ONLY; '
        '"$1" "$2/zmqbus" broker --stop; "$1" "$2/client.py" --name auth --away; '
        '"$1" "$2/send.py" --as x --to auth --text hello; "$1" "$2/zmqbus" inbox; "$1" "$2/zmqbus" broker --stop'
    )
    done = subprocess.run(
        [*CLOSED_CONTAINER, "sh", "-c", script, "sh", sys.executable, str(ROOT / "bin")],
        env=bus.env(None, {"INTER_SESSION_LOOPBACK_ONLY": "1", "INTER_SESSION_PPID_OVERRIDE": "1"}),
        cwd=bus.cwd,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0 and "queued msg=" in done.stdout and "hello" in done.stdout, done


# --- user namespaces


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_files_of_a_user_without_an_id_here(bus: Bus) -> None:
    bus.data_dir.mkdir(mode=0o700, exist_ok=True)
    os.chown(bus.data_dir, 12345, -1)
    try:
        done = inside(bus, SANDBOX, "list.py")
        assert done.returncode == 1 and "has no id in this user namespace" in done.stderr and "chown" not in done.stderr
        row = findings(inside(bus, SANDBOX, "zmqbus", "doctor", "--json"))["directory"]
        assert row["level"] == "fault" and "without an id in this user namespace" in row["says"] and row["mend"] is None
    finally:
        os.chown(bus.data_dir, os.geteuid(), -1)


# --- orphans


#: The SessionStart hook, with a longer time limit than in a session.
HOOK = "import sys; from zmqbus.cli import hook; sys.argv[:] = sys.argv[1:]; hook.BUDGET_S = 60.0; hook.main([])"


def test_session_that_a_hook_joins_belongs_to_the_agent_and_not_to_init(bus: Bus) -> None:
    """CLAUDE_PID is missing, and the hook ends before its child looks for an owner."""
    event = bus.cwd / "event.json"
    event.write_text(json.dumps({"hook_event_name": "SessionStart", "cwd": str(bus.cwd), "source": "startup"}))
    script = 'exec -a claude sh -c \'echo $$; "$0" -c "$1" "$2" < "$3" > "$3.out"; read line\' "$0" "$@"'
    agent = subprocess.Popen(
        ["bash", "-c", script, sys.executable, HOOK, str(ROOT / "bin" / "hook.py"), str(event)],
        env=bus.env(None, {"INTER_SESSION_NAME": "auth", "CLAUDE_PID": "", "INTER_SESSION_PPID_OVERRIDE": ""}),
        cwd=bus.cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert agent.stdout is not None
        lock = bus.data_dir / "clients" / f"{int(agent.stdout.readline())}.lock"
        wait_until(lambda: lock.exists() and b'"auth"' in lock.read_bytes(), "the agent's session has joined")
        assert [path.name for path in lock.parent.glob("*.lock") if path.name != "reap.lock"] == [lock.name]
        bus.wait_state("auth", "away")
    finally:
        agent.kill()
        agent.communicate()
