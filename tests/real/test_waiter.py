"""The waiter: it wakes the idle agent of a session without a monitor, once for each message, and not too often."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.real.conftest import COMMAND_TIMEOUT_S, Bus, Owner, wait_until
from tests.real.test_hook import call, ids, join, told
from zmqbus.agents import waiter as waiter_module
from zmqbus.process import process_of
from zmqbus.session.last_seen import last_seen
from zmqbus.session.owner_files import files_of
from zmqbus.session.wake import WAKE_PAUSE_S, WakeFile

pytestmark = pytest.mark.slow

Start = Callable[..., "subprocess.Popen[bytes]"]
#: As Claude Code sets it for a session with a terminal, where Stop leaves mail to the waiter.
TERMINAL = {"CLAUDE_CODE_ENTRYPOINT": "cli"}


@pytest.fixture
def start(bus: Bus) -> Iterator[Start]:
    """Starts a waiter as the hooks do. With `ready`, returns when the broker has its PREVIEW, or it has ended."""
    found: list[subprocess.Popen[bytes]] = []

    def begin(
        owner: Owner, ready: bool = True, env: dict[str, str] | None = None, **event: str
    ) -> subprocess.Popen[bytes]:
        process = bus.popen(
            "hook.py",
            "wait",
            owner=owner,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        found.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps({"cwd": str(bus.cwd), "hook_event_name": "Stop", **event}).encode())
        process.stdin.close()
        process.stdin = None
        if ready:
            wait_until(lambda: process.poll() is not None or is_connected(process.pid, bus.port), "it waits")
        return process

    yield begin
    for process in found:
        process.kill()
        process.communicate()


def is_connected(pid: int, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(one.raddr and one.raddr.port == port for one in psutil.Process(pid).net_connections("tcp"))
    return False


def woken(process: subprocess.Popen[bytes]) -> str:
    """What a waiter shows when it wakes its agent."""
    out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert (process.returncode, out) == (2, b""), (process.returncode, err)
    return err.decode()


def ended(process: subprocess.Popen[bytes]) -> int:
    """The status of a waiter that has shown nothing."""
    out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert (out, err) == (b"", b"")
    return process.returncode


def unread(bus: Bus, name: str = "auth") -> int:
    (row,) = [row for row in bus.list("--all") if row["name"] == name]
    waiting: int = row["waiting"]
    return waiting


def no_pause(bus: Bus, owner: Owner) -> None:
    """Lets the next waiter of this session begin at once, as if the last wake was long ago."""
    with WakeFile(files_of(str(bus.data_dir), process_of(owner.pid))) as wake:
        wake._write(woke=time.time() - 2 * WAKE_PAUSE_S)


class TestWake:
    def test_message_wakes_the_agent_and_is_queued_for_its_sender(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        sent = bus.send("--as", "bob", "--to", "auth", "--text", "run the tests", owner=bus.stranger)
        assert sent.stdout.startswith("queued msg=") and "to=auth" in sent.stdout
        text = woken(process)
        assert len(ids(text)) == 1 and "run the tests" in text and text.startswith("Messages from other sessions")
        assert "waiter" in last_seen(str(bus.data_dir), process_of(owner.pid))

    @pytest.mark.parametrize("kind", ["UserPromptSubmit", "Stop"])
    def test_next_hook_confirms_what_was_shown(self, bus: Bus, start: Start, kind: str) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        bus.deliver("auth", "one")
        woken(process)
        assert unread(bus) == 1, "the agent may have died"
        no_pause(bus, owner)
        assert call(bus, kind, owner, TERMINAL, stop_hook_active=True) is None, "it is not shown again"
        assert unread(bus) == 0

    def test_next_waiter_confirms_what_was_shown_where_no_hook_does(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        bus.deliver("auth", "one")
        woken(process)
        no_pause(bus, owner)
        process = start(owner)
        second = bus.deliver("auth", "two")
        assert ids(woken(process)) == [second]
        assert unread(bus) == 1

    @pytest.mark.parametrize("source", ["startup", "resume", "clear", "compact"])
    def test_start_of_a_session_does_not_prove_that_it_was_seen(self, bus: Bus, start: Start, source: str) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        first = bus.deliver("auth", "one")
        woken(process)
        no_pause(bus, owner)
        process = start(owner, hook_event_name="SessionStart", source=source)
        if source == "compact":
            first = bus.deliver("auth", "two")
        assert ids(woken(process)) == [first]

    def test_listener_does_not_show_it_again(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        bus.deliver("auth", "one")
        woken(process)
        listener = bus.listener(owner=owner)
        bus.deliver("auth", "two")
        listener.wait_message("two")
        assert not [line for line in listener.lines if line.endswith("one")]

    def test_inbox_does_not_show_it_again(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        bus.deliver("auth", "one")
        woken(process)
        assert bus.zmqbus("inbox", owner=owner).stdout == "no unread messages\n"

    def test_message_that_a_prompt_has_shown_wakes_nobody(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        first = bus.deliver("auth", "one")
        assert ids(told(call(bus, "UserPromptSubmit", owner, TERMINAL), "UserPromptSubmit")) == [first]
        process = start(owner)
        second = bus.deliver("auth", "two")
        assert ids(woken(process)) == [second]

    def test_stop_leaves_mail_to_the_waiter_in_a_terminal(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        sent = bus.deliver("auth", "one")
        assert call(bus, "Stop", owner, TERMINAL, stop_hook_active=False) is None
        assert ids(woken(start(owner, ready=False))) == [sent]


class TestDeath:
    def test_agent_that_dies_after_the_wake_is_shown_it_again_once(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        sent = bus.deliver("auth", "one")
        assert ids(woken(process)) == [sent]
        owner.kill()
        heir = join(bus, "auth")
        text = woken(start(heir))
        assert ids(text) == [sent] and "queued=" in text
        no_pause(bus, heir)
        assert call(bus, "Stop", heir, TERMINAL, stop_hook_active=False) is None
        assert unread(bus) == 0

    def test_end_of_the_owner_ends_it(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner, env={"INTER_SESSION_OWNER_CHECK_INTERVAL_S": "0.2"})
        owner.kill()
        assert ended(process) == 0

    def test_end_of_its_reader_ends_it(self, bus: Bus, start: Start) -> None:
        process = start(join(bus, "auth"))
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(COMMAND_TIMEOUT_S) == 0

    def test_death_of_the_broker_is_survived(self, bus: Bus, start: Start) -> None:
        process = start(join(bus, "auth"))
        bus.signal_broker(signal.SIGKILL)
        sent = bus.deliver("auth", "one")
        assert ids(woken(process)) == [sent]


class TestOneAtMost:
    def test_newest_takes_the_place_of_the_one_before(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        first = start(owner)
        second = start(owner)
        assert ended(first) == -signal.SIGTERM
        sent = bus.deliver("auth", "one")
        assert ids(woken(second)) == [sent]

    def test_of_several_that_race_one_stays(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        racing = [start(owner, ready=False) for _ in range(4)]
        wait_until(lambda: sum(each.poll() is None for each in racing) == 1, "one stays")
        (left,) = [each for each in racing if each.poll() is None]
        sent = bus.deliver("auth", "one")
        assert ids(woken(left)) == [sent]

    def test_two_wakes_are_five_seconds_apart_and_a_flood_is_counted(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        sent = [
            receipt.msg_id for receipt in bus.burst("auth", [f"text {number} " + "x" * 100 for number in range(3000)])
        ]
        began_s = time.monotonic()
        first = woken(start(owner, ready=False))
        assert call(bus, "Stop", owner, TERMINAL, stop_hook_active=True) is None
        second = woken(start(owner, ready=False))
        assert time.monotonic() - began_s >= WAKE_PAUSE_S
        for text in (first, second):
            assert len(text) <= 10_000 and text.endswith("read them with: zmqbus inbox\n")
        shown = ids(first) + ids(second)
        assert shown == sent[: len(shown)] and len(shown) > 50


class TestNothingToWaitFor:
    def test_session_that_is_not_on_the_bus(self, bus: Bus, start: Start) -> None:
        assert ended(start(bus.owner())) == 0
        assert not list(bus.data_dir.glob("server.*"))

    def test_session_with_a_listener(self, bus: Bus, start: Start) -> None:
        assert ended(start(bus.listener("auth").owner)) == 0

    def test_listener_that_starts_ends_it(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        bus.listener(owner=owner)
        assert ended(process) == 0

    def test_disconnect_ends_it(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        assert bus.zmqbus("disconnect", owner=owner).stdout == "disconnected\n"
        assert ended(process) == 0
        assert ended(start(owner)) == 0, "nor does another begin"

    def test_run_without_terminal_is_not_waited_for(self, bus: Bus, start: Start) -> None:
        """The client would not end for 30 s."""
        assert ended(start(join(bus, "auth"), env={"CLAUDE_CODE_ENTRYPOINT": "sdk-cli"})) == 0

    def test_named_session_may_still_be_joining(self, bus: Bus, start: Start) -> None:
        owner = bus.owner()
        process = start(owner, ready=False, env={"INTER_SESSION_NAME": "auth"})
        assert bus.run("client.py", "--away", "--name", "auth", owner=owner).returncode == 0
        sent = bus.deliver("auth", "one")
        assert ids(woken(process)) == [sent]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_directory_that_cannot_be_written(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        clients = Path(bus.data_dir, "clients")
        clients.chmod(0o500)
        try:
            assert ended(start(owner)) == 0
        finally:
            clients.chmod(0o700)

    def test_file_that_others_may_write_is_not_used(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        wake = bus.data_dir / "clients" / f"{owner.pid}.wake"
        wake.touch()
        wake.chmod(0o666)
        assert ended(start(owner)) == 0
        sent = bus.deliver("auth", "one")
        assert ids(told(call(bus, "UserPromptSubmit", owner, TERMINAL), "UserPromptSubmit")) == [sent]


def test_pauses_are_bounded_where_the_clock_was_set_back(bus: Bus, start: Start) -> None:
    owner = join(bus, "auth")
    with WakeFile(files_of(str(bus.data_dir), process_of(owner.pid))) as wake:
        wake._write(woke=time.time() + 10**6)
    sent = bus.deliver("auth", "one")
    assert ids(woken(start(owner))) == [sent]
    assert waiter_module.WAKE == 2


class TestState:
    def state(self, bus: Bus) -> str:
        (row,) = bus.list("--all")
        agent: str = row["agent"]
        return agent

    def test_waiter_tells_what_the_agent_does(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        call(bus, "Stop", owner, TERMINAL, stop_hook_active=False)
        process = start(owner)
        wait_until(lambda: self.state(bus) == "idle", "it is told what was stored before")
        call(bus, "UserPromptSubmit", owner, TERMINAL, prompt="x")
        wait_until(lambda: self.state(bus) == "working", "the FIFO wakes the waiter")
        call(bus, "Stop", owner, TERMINAL, stop_hook_active=False)
        wait_until(lambda: self.state(bus) == "idle", "the turn has ended")
        bus.deliver("auth", "one")
        woken(process)
        wait_until(lambda: self.state(bus) == "working", "a wake begins a turn")

    def test_next_broker_is_told_again(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        call(bus, "Stop", owner, TERMINAL, stop_hook_active=False)
        start(owner)
        wait_until(lambda: self.state(bus) == "idle", "it is told")
        bus.signal_broker(signal.SIGKILL)
        wait_until(lambda: bus.zmqbus("broker", "--status").returncode == 0, "the waiter has started another")
        wait_until(lambda: self.state(bus) == "idle", "it is told again")

    def test_state_is_told_during_the_pause_after_a_wake(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        process = start(owner)
        bus.deliver("auth", "one")
        woken(process)
        call(bus, "Stop", owner, TERMINAL, stop_hook_active=False)
        began_s = time.monotonic()
        start(owner)
        wait_until(lambda: self.state(bus) == "idle", "it is told")
        assert time.monotonic() - began_s < WAKE_PAUSE_S

    def test_request_for_a_permission_blocks_until_the_tool_has_run(self, bus: Bus, start: Start) -> None:
        owner = join(bus, "auth")
        start(owner)
        for tool, command in [("Bash", "make test"), ("Write", "")]:
            call(bus, "UserPromptSubmit", owner, TERMINAL, prompt="x")
            event = {"hook_event_name": "PermissionRequest", "tool_name": tool, "tool_input": {"command": command}}
            done = bus.run("approve.py", owner=owner, input=json.dumps(event))
            assert (done.returncode, done.stdout) == (0, "")
            wait_until(lambda: self.state(bus) == "blocked", "the user is asked")
            (row,) = bus.list("--all")
            assert row["agent_detail"] == f"permission for {tool}"
            call(bus, "PostToolUse", owner, TERMINAL, tool_name=tool)
            wait_until(lambda: self.state(bus) == "working", "the tool has run")
