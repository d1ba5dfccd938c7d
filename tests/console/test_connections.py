"""Limits of connections to the page's server."""

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
    """A connection that is its own transport."""

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


class FakeServer:
    def __init__(self, **options: Any) -> None:
        self.peers = FakePeers()
        self.table = ConnectionTable(self.peers, **options)  # type: ignore[arg-type]

    def connect(self, uid: int | None = OWN) -> FakeConnection:
        self.peers.now = uid
        one = FakeConnection()
        self.table.add(one, asyncio.get_running_loop())  # type: ignore[arg-type]
        return one

    def prove(self, one: FakeConnection) -> None:
        self.table.prove(one)  # type: ignore[arg-type]


def test_connection_of_another_user_is_closed(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        server = FakeServer()
        others = [server.connect(OTHER + number % 10) for number in range(1_500)]
        assert all(one.ended.is_set() for one in others) and len(server.table) == 0
        mine = server.connect()
        assert mine.same_user and not mine.ended.is_set() and len(server.table) == 1
        assert not server.connect(None).same_user, "of an unknown user"

    asyncio.run(main())
    printed = capfd.readouterr().err.splitlines()
    assert len(printed) == MAX_WARNINGS and f"uid {OTHER}" in printed[0], "a limited number of users, each once"


def test_oldest_unproven_connection_is_closed_and_proven_ones_stay() -> None:
    async def main() -> None:
        server = FakeServer(max_unproven=4)
        mine = server.connect()
        server.prove(mine)
        unproven = [server.connect(None) for _ in range(10)]
        assert [one.ended.is_set() for one in unproven] == [True] * 6 + [False] * 4
        assert len(server.table) == 5 and not mine.ended.is_set()
        # A new connection of the user has time to prove itself.
        another = server.connect()
        server.prove(another)
        for _ in range(10):
            server.connect(None)
        assert not another.ended.is_set()
        server.prove(unproven[0])  # closed already, so it is not added again
        assert len(server.table) == 6

    asyncio.run(main())


def test_unproven_connection_is_closed_in_time() -> None:
    async def main() -> None:
        server = FakeServer(unproven_s=0.01)
        mine, left, unproven = server.connect(), server.connect(), server.connect(None)
        server.prove(mine)
        server.table.remove(left)  # type: ignore[arg-type]
        await asyncio.wait_for(unproven.ended.wait(), 30)
        assert not mine.ended.is_set() and not left.ended.is_set()

    asyncio.run(main())


def test_proven_connections_are_limited() -> None:
    async def main() -> None:
        server = FakeServer()
        mine = [server.connect() for _ in range(1)]
        server.prove(mine[0])
        for _ in range(MAX_PROVEN):
            mine.append(server.connect())
            server.prove(mine[-1])
        assert len(server.table) == MAX_PROVEN
        assert mine[0].ended.is_set() and not mine[1].ended.is_set()

    asyncio.run(main())
