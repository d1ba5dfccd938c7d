"""States of sessions and connections, and the check that the tests put on their transitions."""

from __future__ import annotations

import pytest

from tests.transitions import IllegalTransition
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.sessions import (
    CONNECTION_TRANSITIONS,
    SESSION_TRANSITIONS,
    STATE_OF_ROLE,
    Connection,
    ConnectionState,
    Session,
    SessionState,
)
from zmqbus.testing.store import MemoryStore
from zmqbus.wire.verbs import Role


@pytest.fixture
def session() -> Session:
    return Session("id", "digest", Mailbox("id", MemoryStore()))


def test_tables_are_complete():
    assert set(STATE_OF_ROLE) == set(Role)
    assert set(CONNECTION_TRANSITIONS) == set(ConnectionState)
    assert set(SESSION_TRANSITIONS) == set(SessionState)


def test_a_persistent_session_leaves_and_an_ephemeral_one_is_discarded(session):
    session.leave()
    assert session.state is SessionState.LEFT and not session.is_reachable
    session.connect(Connection(b"r", 1, "lease", 0.0))
    session.part(5.0)
    assert (session.is_reachable, session.away_since_s, session.conn) == (True, 5.0, None)
    session.persistent = False
    session.leave()
    assert session.state.name == "DISCARDED"


def test_heirs_are_followed_to_the_last(session):
    second, third = (Session(name, "digest", Mailbox(name, MemoryStore())) for name in ("2", "3"))
    session.successor, second.successor = second, third
    assert session.heir is third and third.heir is third


@pytest.mark.parametrize(
    "path", [(SessionState.TAKEN_OVER, SessionState.LIVE), (SessionState.LIVE, SessionState.FORGOTTEN)]
)
def test_an_illegal_transition_of_a_session_raises_in_tests(session, path):
    session.state = path[0]
    with pytest.raises(IllegalTransition):
        session.state = path[1]


def test_a_connection_registers_once_and_is_closed_for_good():
    connection = Connection(b"r", 1, "lease", 0.0)
    connection.state = ConnectionState.MEMBER
    with pytest.raises(IllegalTransition):
        connection.state = ConnectionState.GUEST
    connection.state = ConnectionState.CLOSED
    with pytest.raises(IllegalTransition):
        connection.state = ConnectionState.MEMBER
