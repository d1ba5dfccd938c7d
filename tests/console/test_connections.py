"""Who may keep a connection to the page's server, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zmqbus.console.connections import MAX_PROVEN, MAX_WARNINGS, ConnectionTable

OWN, OTHER = 1000, 1001


class FakePeers:
    def __init__(self) -> None:
        self.now: int | None = OWN

    def uid(self, *_: Any) -> int | None:
        return self.now

    def is_other_user(self, uid: int | None) -> bool:
        return uid is not None and uid != OWN

    def is_own_user(self, uid: int | None) -> bool:
        return uid == OWN


class FakeConnection:
    """Its transport, too."""

    def __init__(self) -> None:
        self.transport = self
        self.same_user = False
        self.ended = asyncio.Event()
        self.family = 2

    def get_extra_info(self, _: str) -> FakeConnection:
        return self

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 2

    getsockname = getpeername

    def abort(self) -> None:
        self.ended.set()


class Door:
    def __init__(self, **options: Any) -> None:
        self.peers = FakePeers()
        self.table = ConnectionTable(self.peers, **options)  # type: ignore[arg-type]

    def come(self, uid: int | None = OWN) -> FakeConnection:
        self.peers.now = uid
        one = FakeConnection()
        self.table.add(one, asyncio.get_running_loop())  # type: ignore[arg-type]
        return one

    def prove(self, one: FakeConnection) -> None:
        self.table.prove(one)  # type: ignore[arg-type]


def test_another_users_end_as_they_come(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        door = Door()
        others = [door.come(OTHER + number % 10) for number in range(1_500)]
        assert all(one.ended.is_set() for one in others) and len(door.table) == 0
        mine = door.come()
        assert mine.same_user and not mine.ended.is_set() and len(door.table) == 1
        assert not door.come(None).same_user, "nobody knows whose"

    asyncio.run(main())
    printed = capfd.readouterr().err.splitlines()
    assert len(printed) == MAX_WARNINGS and f"uid {OTHER}" in printed[0], "each is told of once, and not without end"


def test_of_those_that_prove_nothing_the_oldest_make_room_and_those_that_do_stay() -> None:
    async def main() -> None:
        door = Door(max_unproven=4)
        mine = door.come()
        door.prove(mine)
        strangers = [door.come(None) for _ in range(10)]
        assert [one.ended.is_set() for one in strangers] == [True] * 6 + [False] * 4
        assert len(door.table) == 5 and not mine.ended.is_set()
        # One that comes among them has time to prove itself.
        another = door.come()
        door.prove(another)
        for _ in range(10):
            door.come(None)
        assert not another.ended.is_set()
        door.prove(strangers[0])  # ended already: it does not come back
        assert len(door.table) == 6

    asyncio.run(main())


def test_what_proves_nothing_ends_in_time() -> None:
    async def main() -> None:
        door = Door(unproven_s=0.01)
        mine, left, stranger = door.come(), door.come(), door.come(None)
        door.prove(mine)
        door.table.remove(left)  # type: ignore[arg-type]
        await asyncio.wait_for(stranger.ended.wait(), 30)
        assert not mine.ended.is_set() and not left.ended.is_set()

    asyncio.run(main())


def test_even_of_the_users_own_there_are_so_many() -> None:
    async def main() -> None:
        door = Door()
        mine = [door.come() for _ in range(1)]
        door.prove(mine[0])
        for _ in range(MAX_PROVEN):
            mine.append(door.come())
            door.prove(mine[-1])
        assert len(door.table) == MAX_PROVEN
        assert mine[0].ended.is_set() and not mine[1].ended.is_set()

    asyncio.run(main())
