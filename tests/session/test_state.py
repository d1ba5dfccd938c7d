"""The state file of a session."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.session.session_files import (
    OWNER,
    find_session,
    path_of,
    state_of,
)
from zmqbus.errors import Unauthorized
from zmqbus.process import Place
from zmqbus.session.lock import ListenerLock
from zmqbus.session.state import (
    SessionState,
    load_state,
)


def put_state(data: str, content: bytes) -> None:
    ListenerLock.acquire(data, OWNER).release()
    path = path_of(data, "4711.session")
    path.touch(0o600)
    path.write_bytes(content)


GOOD = state_of(OWNER)._asdict()


BAD_VALUES: tuple[object, ...] = ([], True, 1.5, {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


class TestStateFile:
    def test_round_trip(self, data: str) -> None:
        assert load_state(data, "4711") is None
        odd = state_of(OWNER, label='ü "x" \\ 😀', cwd=os.fsdecode(b"/tmp/not utf-8 \xff"))
        with ListenerLock.acquire(data, OWNER) as lock:
            lock.write_state(odd)
            assert load_state(data, "4711") == odd
        assert load_state(data, "4711") is None

    def test_has_the_keys_of_the_contract(self, data: str) -> None:
        with ListenerLock.acquire(data, OWNER) as lock:
            lock.write_state(state_of(OWNER))
            record = json.loads(path_of(data, "4711.session").read_text())
        assert {"session_id", "name", "label", "listener_pid", "host", "port", "created_at"} <= set(record)

    def test_keys_of_a_newer_release_are_ignored(self, data: str) -> None:
        put_state(data, json.dumps(GOOD | {"colour": "blue"}).encode())
        assert load_state(data, "4711") == state_of(OWNER)

    def test_file_that_others_can_read_is_refused(self, data: str) -> None:
        put_state(data, json.dumps(GOOD).encode())
        path_of(data, "4711.session").chmod(0o644)
        with pytest.raises(Unauthorized):
            load_state(data, "4711")
        with pytest.raises(Unauthorized):
            find_session(data, OWNER)
        assert path_of(data, "4711.session").exists()


class TestDamage:
    """A damaged state file counts as absent."""

    @pytest.mark.parametrize(
        "change",
        [
            *({field: value} for field in SessionState._fields for value in BAD_VALUES),
            *({field: None} for field in SessionState._fields if field != "label"),
            {"session_id": ""},
            {"token": ""},
            {"port": 0},
            {"port": 65536},
            {"port": "9473"},
            {"listener_pid": 0},
            {"listener_pid": -1},
            {"listener_pid": 2**31},
            {"owner_pid": 4712},
        ],
    )
    def test_invalid_field(self, data: str, change: dict[str, object]) -> None:
        put_state(data, json.dumps(GOOD | change).encode())
        assert load_state(data, "4711") is None
        assert find_session(data, OWNER) == (None, True)
        assert not path_of(data, "4711.session").exists()

    @pytest.mark.parametrize(
        "field", [field for field in SessionState._fields if field not in ("label", *Place._fields)]
    )
    def test_missing_field(self, data: str, field: str) -> None:
        put_state(data, json.dumps({key: value for key, value in GOOD.items() if key != field}).encode())
        assert load_state(data, "4711") is None

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b'"x"',
            b"\xff\xfe",
            b"[" * 60_000,
            b"\0" * 100,
            b" " * 70_000 + json.dumps(GOOD).encode(),
        ],
        ids=["empty", "torn", "null", "list", "string", "not utf-8", "deep", "zeros", "too long"],
    )
    def test_garbage(self, data: str, content: bytes) -> None:
        put_state(data, content)
        assert load_state(data, "4711") is None

    def test_every_prefix(self, data: str) -> None:
        whole = json.dumps(GOOD).encode()
        put_state(data, whole)
        assert load_state(data, "4711") == state_of(OWNER)
        for length in range(len(whole)):
            path_of(data, "4711.session").write_bytes(whole[:length])
            assert load_state(data, "4711") is None

    @given(changes=st.dictionaries(st.sampled_from(SessionState._fields), json_values))
    def test_any_json_is_a_valid_state_or_none(
        self, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
    ) -> None:
        data = str(tmp_path_factory.mktemp("state") / "data")
        put_state(data, json.dumps(GOOD | changes).encode())
        found = load_state(data, "4711")
        if found is not None:
            assert found._asdict() == GOOD | changes
            assert found.token and found.owner_pid == OWNER.pid
