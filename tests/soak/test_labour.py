"""The account of requests in a soak run: it finds each kind of fault, and none in a history without one."""

from __future__ import annotations

import threading
import time

import pytest

from tests.soak.history import Blow
from tests.soak.labour import EXCUSED_S, NOTED_S, Step, hold_interpreter, read_steps, settle

REQUESTER = 50


class Story:
    """Builds a history, one second a step."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.steps: list[Step] = []
        self.blows: list[Blow] = []

    def asks(self, label: str = "q:1", hold_s: float = 0) -> Story:
        return self._step("ask", label, REQUESTER, f"{hold_s:g}")

    def begins(self, label: str = "q:1", pid: int = 1) -> Story:
        return self._step("begin", label, pid)

    def hears(self, label: str = "q:1", answer: str = "done q:1", kind: str = "answer") -> Story:
        return self._step(kind, label, REQUESTER, answer)

    def hit(self, what: str, whom: str, pid: int) -> Story:
        self.now_s += 1.0
        self.blows.append(Blow(self.now_s, what, whom, pid))
        return self

    def passes(self, seconds: float) -> Story:
        self.now_s += seconds
        return self

    def _step(self, kind: str, label: str, pid: int, detail: str = "") -> Story:
        self.now_s += 1.0
        self.steps.append(Step(self.now_s, kind, label, pid, detail))
        return self

    def faults(self) -> list[str]:
        return [fault.kind for fault in settle(self.steps, self.blows).faults]


def test_answered_request_is_no_fault():
    story = Story().asks(hold_s=13).begins().hears()
    account = settle(story.steps, story.blows)
    assert account.faults == []
    assert (account.asked, account.answered, account.begun, account.again, account.held) == (1, 1, 1, 0, 1)


def test_second_worker_may_begin_after_the_death_of_the_first():
    story = Story().asks().begins(pid=1).hit("kill", "w0", 1).begins(pid=2).hears()
    assert story.faults() == []
    assert settle(story.steps, story.blows).again == 1


@pytest.mark.parametrize("what", ["stop", "hold", "nothing"])
def test_second_worker_may_not_begin_while_the_first_lives(what):
    assert Story().asks().begins(pid=1).hit(what, "w0", 1).begins(pid=2).hears().faults() == ["run twice"]


def test_death_after_the_second_start_excuses_nothing():
    story = Story().asks().begins(pid=1).begins(pid=2).passes(2 * NOTED_S).hit("kill", "w0", 1).hears()
    assert story.faults() == ["run twice"]


def test_worker_may_not_begin_a_request_twice():
    assert Story().asks().begins(pid=1).begins(pid=1).hears().faults() == ["run twice"]


def test_unanswered_request_is_a_fault_while_its_requester_lives():
    assert Story().asks().begins().faults() == ["unanswered"]
    assert Story().asks().begins().hit("kill", "q0", REQUESTER).faults() == []


def test_answer_to_another_request_is_a_fault():
    assert Story().asks().begins().hears(answer="done q:2").faults() == ["invented"]


def test_error_is_a_fault_unless_the_broker_was_stopped():
    def unavailable(story: Story) -> list[str]:
        return story.hears(answer="broker_unavailable none", kind="error").faults()

    assert unavailable(Story().asks()) == ["failed"]
    assert unavailable(Story().hit("stop", "broker", 9).asks()) == []
    assert unavailable(Story().hit("stop", "broker", 9).passes(EXCUSED_S).asks()) == ["failed"]


@pytest.mark.parametrize(("deaths", "faults"), [(3, []), (2, ["failed"])])
def test_request_is_poison_only_if_three_workers_died_with_it(deaths, faults):
    story = Story().asks()
    for pid in range(1, 4):
        story.begins(pid=pid).hit("kill" if pid <= deaths else "stop", "w0", pid)
    kinds = story.hears(answer="poisoned 3 workers", kind="error").faults()
    assert [kind for kind in kinds if kind != "run twice"] == faults


def test_notes_are_sorted_by_time_without_torn_lines(tmp_path):
    (tmp_path / "w0.1.labour").write_text("begin 2.0 q:1 7\nfinish 3.0 q:1 7\nbegin 4")
    (tmp_path / "q0.labour").write_text("ask 1.0 q:1 50 0\nanswer 3.5 q:1 50 done q:1\n")
    steps = read_steps(tmp_path)
    assert [step.kind for step in steps] == ["ask", "begin", "finish", "answer"]
    assert steps[-1].detail == "done q:1"


def test_no_other_thread_runs_while_the_interpreter_is_held():
    going, started, gaps_s = threading.Event(), threading.Event(), []

    def tick() -> None:
        last_s = time.monotonic()
        while not going.is_set():
            now_s = time.monotonic()
            gaps_s.append(now_s - last_s)
            last_s = now_s
            started.set()

    thread = threading.Thread(target=tick)
    thread.start()
    started.wait()
    hold_interpreter(0.3)
    going.set()
    thread.join()
    assert max(gaps_s) >= 0.29
