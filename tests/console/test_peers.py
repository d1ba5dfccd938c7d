"""Lookup of the users behind connections."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from tests.console.other_user import NOBODY, start_as_nobody
from zmqbus.console import peers as peers_module
from zmqbus.console.peers import Peers

PATIENCE_S = 30.0


@pytest.fixture
def peers() -> Iterator[Peers]:
    with Peers() as found:
        if not found.works():
            pytest.skip("the kernel does not tell the users of connections")
        yield found


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_own_user(peers: Peers, family: socket.AddressFamily, address: str) -> None:
    try:
        listening = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    with listening, socket.create_connection(listening.getsockname()[:2], PATIENCE_S) as there:
        here, peer = listening.accept()
        with here:
            uid = peers.uid(family, peer, here.getsockname())
            assert uid == os.getuid() and peers.is_own_user(uid) and not peers.is_other_user(uid)
            # A connection that does not exist has no user; later lookups work.
            assert peers.uid(family, (peer[0], 1), here.getsockname()) is None
            # A closed socket has no user, although the kernel says root.
            there.close()
            assert peers.uid(family, peer, here.getsockname()) is None
            assert peers.works()


def test_other_user(peers: Peers) -> None:
    code = 'c = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60); sys.stdin.read()'
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = start_as_nobody(code, str(listening.getsockname()[1]))
        assert process.stdin is not None and process.stdout is not None
        listening.settimeout(PATIENCE_S)
        here, peer = listening.accept()
        with here:
            uid = peers.uid(socket.AF_INET, peer, here.getsockname())
            assert uid == NOBODY and peers.is_other_user(uid) and not peers.is_own_user(uid)
        process.stdin.close()
        process.wait(PATIENCE_S)
        process.stdout.close()


def test_user_is_unknown_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "elsewhere")
    with Peers() as peers:
        assert not peers.works()
        uid = peers.uid(socket.AF_INET, ("127.0.0.1", 1), ("127.0.0.1", 2))
        assert uid is None and not peers.is_own_user(uid) and not peers.is_other_user(uid)


def test_overflow_uid_is_unknown(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives the overflow uid for every user without a uid in this user namespace."""
    monkeypatch.setattr(peers_module, "overflow_uid", os.getuid)
    with (
        Peers() as here,
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), PATIENCE_S) as there,
    ):
        addresses = there.getsockname(), listening.getsockname()
        assert here.is_own_user(here.uid(socket.AF_INET, *addresses)), "except for a process that runs as that uid"
    with Peers(own_uid=os.getuid() + 1) as here, socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname(), PATIENCE_S) as there:
            uid = here.uid(socket.AF_INET, there.getsockname(), listening.getsockname())
        assert uid is None and not here.is_other_user(uid)


def test_root_and_unknown_users(peers: Peers) -> None:
    assert not peers.is_other_user(0)
    assert not peers.is_own_user(None)
