"""The chaos run, bounded: processes killed, stopped and cut at random instants, and not a message goes astray.

`make soak` plays for ten minutes or more. A run that fails tells its seed and the history of what went wrong.
"""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path

import pytest

from tests.soak.chaos import Chaos
from tests.soak.run import run, verdict
from tests.soak.schedule import Numbers, Setup, schedule

#: Each of these, at least, is done in a run of half a minute.
NUMBERS = Numbers(
    broker_kills=5,
    listener_kills=6,
    sender_kills=4,
    inbox_kills=2,
    command_kills=3,
    expiries=2,
    closings=2,
    broker_stops=2,
    long_broker_stops=0,
    listener_stops=3,
    sender_stops=2,
    cuts=4,
    owner_deaths=5,
    worker_kills=2,
    worker_stops=1,
    requester_stops=0,
    holds=1,
    visits=8,
    seclusions=1,
)


@pytest.fixture
def base():
    # Short, so that the processes' paths are; and gone when the test ends.
    with tempfile.TemporaryDirectory(prefix="zb-soak-") as path:
        yield Path(path).resolve()


def make_setup(base: Path, port: int = 1, **changes) -> Setup:
    return Setup(base=base, port=port, seed=1, duration_s=30.0, messages=2500, numbers=NUMBERS)._replace(**changes)


@pytest.mark.slow
def test_nothing_is_lost_doubled_or_out_of_order(base, free_port):
    setup = make_setup(base, free_port)
    chaos, history, account = run(setup)
    story = verdict(setup, chaos, history, account)
    assert not account.faults and not chaos.failures, story
    # It was a run that could have found something.
    assert account.sent > setup.messages / 2, story
    assert account.delivered and account.queued and account.tallies and account.spilled, story
    assert account.blows["kill broker"] >= 3, story
    assert account.blows["kill listener"] >= 3, story
    assert account.blows["kill sender"] >= 2, story
    assert account.blows["die listener"] >= 3, story
    labour = chaos.labour()
    assert labour.answered > 50 and labour.held, story
    assert len(chaos.rss_bytes) >= 3, "brokers that were killed were followed by others"


@pytest.mark.slow
def test_ctrl_c_ends_it_with_the_account_so_far(base, free_port):
    quiet = Numbers(*(0 for _ in Numbers._fields))
    setup = make_setup(base, free_port, numbers=quiet, duration_s=3600.0, receivers=3, senders=1, messages=3600 * 20)
    said: list[str] = []

    def interrupt_after_the_first_report(text: str) -> None:
        said.append(text)
        if "shown" in text:
            threading.Timer(2.0, signal.raise_signal, (signal.SIGINT,)).start()

    chaos, history, account = run(setup._replace(tell=interrupt_after_the_first_report))
    assert any(text.startswith("interrupted") for text in said)
    assert not account.faults and not chaos.failures, verdict(setup, chaos, history, account)
    assert account.sent
    assert account.shown >= account.owed


def test_the_schedule_follows_from_the_seed(base):
    setup = make_setup(base)
    deeds = schedule(setup)
    assert deeds == schedule(setup) == sorted(deeds)
    assert deeds != schedule(setup._replace(seed=2))
    assert len(deeds) == sum(NUMBERS)
    assert all(0 <= deed.at_s <= setup.duration_s for deed in deeds)
    kills = [deed.whom for deed in deeds if deed.what == "kill"]
    assert kills.count("broker") == NUMBERS.broker_kills
    assert kills.count("command") == NUMBERS.command_kills
    assert {deed.whom for deed in deeds if deed.what == "die"} <= {"r2", "r3", "r4", "r5"}
    assert {deed.whom for deed in deeds if deed.what == "cut"} <= {"r2", "r5", "s1", "s3"}


def test_ten_minutes_are_a_hundred_kills_and_more():
    numbers = Numbers()
    assert numbers.broker_kills + numbers.listener_kills + numbers.sender_kills >= 100
    assert numbers.scaled(600) == numbers
    assert numbers.scaled(1200).broker_kills == 2 * numbers.broker_kills
    assert min(numbers.scaled(1)) == 1
    assert numbers._replace(cuts=0).scaled(1).cuts == 0


def test_what_a_run_tells_of_itself(base):
    with Chaos(make_setup(base)) as chaos:
        assert repr(chaos) == f"<Chaos on port 1: <Stage {base}: 0 blows, 0 shown>>"
    assert chaos.failures == []
