"""A short soak run: processes are killed, stopped and disconnected at random, and every message is accounted for.

`make soak` runs for ten minutes or more. A run that fails prints its seed and the story of each fault.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.soak.run import run, verdict
from tests.soak.schedule import Numbers, Setup, schedule

#: How often each thing is done in the run.
NUMBERS = Numbers(
    broker_kills=5,
    listener_kills=5,
    sender_kills=3,
    inbox_kills=2,
    command_kills=2,
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
    visits=5,
    seclusions=1,
)


@pytest.fixture
def base():
    # A short path, for the processes' sockets and files.
    with tempfile.TemporaryDirectory(prefix="zb-soak-") as path:
        yield Path(path).resolve()


def make_setup(base: Path, port: int = 1, **changes) -> Setup:
    return Setup(base=base, port=port, seed=1, duration_s=20.0, messages=1800, numbers=NUMBERS)._replace(**changes)


@pytest.mark.slow
def test_nothing_is_lost_duplicated_or_reordered(base, free_port):
    setup = make_setup(base, free_port)
    chaos, history, account = run(setup)
    story = verdict(setup, chaos, history, account)
    assert not account.faults and not chaos.failures, story
    # The run could have found something.
    assert account.sent > setup.messages / 2, story
    assert account.delivered and account.queued and account.tallies and account.spilled, story
    assert account.blows["kill broker"] >= 3, story
    assert account.blows["kill listener"] >= 3, story
    assert account.blows["kill sender"] >= 2, story
    assert account.blows["die listener"] >= 3, story
    labour = chaos.labour()
    assert labour.answered > 50 and labour.held, story
    assert len(chaos.rss_bytes) >= 3, "each killed broker was followed by another"


def test_schedule_follows_from_the_seed(base):
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


def test_ten_minutes_have_at_least_a_hundred_kills():
    numbers = Numbers()
    assert numbers.broker_kills + numbers.listener_kills + numbers.sender_kills >= 100
    assert numbers.scaled(600) == numbers
    assert numbers.scaled(1200).broker_kills == 2 * numbers.broker_kills
    assert min(numbers.scaled(1)) == 1
    assert numbers._replace(cuts=0).scaled(1).cuts == 0
