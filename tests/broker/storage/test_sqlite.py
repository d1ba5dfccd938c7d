"""The durable store: files, transactions, crashes, a full disk, bodies, and damaged rows.

`test_api` has the behaviour of all stores, `test_repair` damaged files.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.broker.storekit import Bench, awaited, refusal, session
from zmqbus.broker.storage import sqlite
from zmqbus.broker.storage.api import Entry, StoreError
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.errors import Unauthorized
from zmqbus.journal import verify
from zmqbus.testing.store import MemoryStore
from zmqbus.wire.verbs import SPILL_BYTES

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(bench) -> Iterator[SqliteStore]:
    store = bench.open()
    yield store
    store.close()


def filled(bench: Bench, count: int = 50, boxes: int = 3, **options) -> dict[str, list[tuple[int, Entry]]]:
    """Fills a database, closes it, and returns its content."""
    store = bench.open(**options)
    kept: dict[str, list[tuple[int, Entry]]] = {}
    for number in range(count):
        key = f"box{number % boxes}"
        box = kept.setdefault(key, [])
        box.append((len(box) + 1, bench.entry(b"text %d" % number)))
        store.put(key, *box[-1])
        store.save_session(session(key))
    store.commit()
    store.close()
    return kept


def contents(store: SqliteStore, kept: dict[str, list[tuple[int, Entry]]]) -> dict[str, list[tuple[int, Entry]]]:
    return {key: store.after(key, 0, 10_000) for key in kept}


# --- files


def test_files_are_private_whatever_the_umask(bench):
    before = os.umask(0)
    try:
        store = bench.open()
        store.put("box", 1, bench.entry())
        store.commit()
        found = bench.names("mailboxes")
        assert found == ["mailboxes.sqlite3", "mailboxes.sqlite3-wal"], "no other files"
        for name in found:
            assert stat.S_IMODE(os.stat(bench.directory / name).st_mode) == 0o600
        store.close()
        assert bench.names("mailboxes") == ["mailboxes.sqlite3"]
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["mailboxes.sqlite3", "mailboxes.sqlite3-wal", "mailboxes.sqlite3-journal"])
def test_links_and_files_that_others_can_read_are_refused(bench, tmp_path, name):
    bench.open().close()
    path = bench.directory / name
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o644)
    with pytest.raises(Unauthorized, match="chmod 600"):
        bench.open()
    path.unlink()
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    path.symlink_to(target)
    with pytest.raises(Unauthorized, match="symbolic link"):
        bench.open()
    assert target.read_bytes() == b"untouched"


def test_the_header_names_application_and_format(bench):
    bench.open().close()
    header = Path(bench.path).read_bytes()[:100]
    assert header[68:72] == b"zmqb" and int.from_bytes(header[60:64], "big") == 1


def test_the_file_is_locked(store, bench, monkeypatch):
    monkeypatch.setattr("zmqbus.broker.storage.file.LOCK_TIMEOUT_S", 0.05)
    with pytest.raises(StoreError, match="held by another program"):
        bench.open()
    assert bench.names("damaged") == []


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
def test_durability_sets_the_synchronous_mode(bench, durability, synchronous):
    store = bench.open(durability=durability)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()
    kept = filled(bench, durability=durability)
    store = bench.open(durability=durability)
    assert contents(store, kept) == kept
    store.close()


# --- transactions


def statements(store: SqliteStore) -> list[str]:
    seen: list[str] = []
    store._db.set_trace_callback(seen.append)
    return seen


def test_a_commit_without_changes_executes_nothing(store):
    seen = statements(store)
    store.commit()
    assert seen == []


def test_a_commit_is_one_transaction(store, bench):
    seen = statements(store)
    for number in range(1, 4):
        store.put("box", number, bench.entry())
    store.save_session(session())
    store.save_awaited(awaited("m"))
    store.save_refusal(refusal(1))
    assert seen == []
    store.commit()
    assert [text for text in seen if not text.startswith("INSERT")] == ["BEGIN IMMEDIATE", "COMMIT"]


def test_an_entry_removed_before_the_commit_is_never_written(store, bench):
    seen = statements(store)
    store.put("box", 1, bench.entry())
    store.remove("box", [1])
    store.commit()
    assert seen == [] and not store.pending


def test_a_mailbox_is_inserted_once(store, bench):
    store.put("box", 1, bench.entry())
    store.commit()
    seen = statements(store)
    store.put("box", 2, bench.entry())
    store.commit()
    assert not [text for text in seen if "mailboxes" in text]


def test_a_failed_transaction_is_rolled_back(bench, monkeypatch):
    store = bench.open()
    made = bench.entry()
    store.put("box", 1, made)
    store.save_session(session())
    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_rows", fails)
        for _ in range(2):
            with pytest.raises(StoreError, match="disk I/O error"):
                store.commit()
    assert not store._db.in_transaction and store.pending
    store.commit()
    store.close()
    store = bench.open()
    assert store.after("box", 0, 9) == [(1, made)] and store.recover(9).sessions == [session()]
    store.close()


def fails(*args) -> None:
    raise sqlite3.OperationalError("disk I/O error")


def test_a_repeated_refusal_counts_as_new(store):
    for number in (1, 2, 1):
        store.save_refusal(refusal(number))
    store.commit()
    assert store.recover(9).refusals == [refusal(2), refusal(1)]
    store.save_refusal(refusal(2))
    store.commit()
    assert store.recover(9).refusals == [refusal(1), refusal(2)]


def test_old_refusals_are_pruned(store, monkeypatch):
    monkeypatch.setattr(sqlite, "KEEP_REFUSALS", 100)
    monkeypatch.setattr(sqlite, "PRUNE_REFUSALS", 30)
    for number in range(1000):
        store.save_refusal(refusal(number))
        if number % 3 == 0:
            store.commit()
            (count,) = store._db.execute("SELECT count(*) FROM refusals").fetchone()
            assert min(number + 1, 100) <= count <= 100 + 30 + 3
    store.commit()
    assert store.recover(1000).refusals == [refusal(number) for number in range(900, 1000)]


def test_numbers_give_the_order_within_a_mailbox(store, bench):
    """Mail that was taken over may be older than the mail before it."""
    first, moved = bench.entry(accepted_s=50.0), bench.entry(accepted_s=10.0)
    store.put("box", 1, first)
    store.put("box", 2, moved)
    store.commit()
    assert [owed.msg_id for owed in store.recover(9).owed] == [first.msg_id, moved.msg_id]


def test_recovery_returns_the_newest_messages(bench):
    store = bench.open()
    made = [bench.entry() for _ in range(3000)]
    for number, one in enumerate(made):
        store.put(f"box{number % 7}", number + 1, one)
    store.commit()
    assert [owed.msg_id for owed in store.recover(10).owed] == [one.msg_id for one in made[-10:]]
    assert store.recover(0).owed == []
    store.close()


def test_empty_mailboxes_are_deleted(bench):
    kept = filled(bench, boxes=2)
    store = bench.open()
    store.remove("box0", [number for number, _ in kept["box0"]])
    store.commit()
    store.close()
    store = bench.open()
    assert store._db.execute("SELECT key FROM mailboxes").fetchall() == [("box1",)]
    made = bench.entry()
    store.put("box0", 1, made)
    store.commit()
    store.close()
    store = bench.open()
    assert store.after("box0", 0, 9) == [(1, made)] and store.after("box1", 0, 99) == kept["box1"]
    store.close()


# --- crashes

CHILD = """
import os, signal, sys
from pathlib import Path
from tests.broker.storekit import Bench, session
bench = Bench(Path(sys.argv[1]))
store = bench.open()
for number in range(1, 301):
    store.put("box", number, bench.entry(b"text %d" % number))
    if number == 200:
        store.remove("box", range(1, 11))
        store.save_session(session())
        store.commit()
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_child(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, env=env, capture_output=True, encoding="utf-8", timeout=90
    )


def test_commits_survive_sigkill(tmp_path):
    done = run_child(CHILD, str(tmp_path / "data"))
    assert done.returncode == -signal.SIGKILL and done.stdout == "ready\n", done.stderr
    bench = Bench(tmp_path / "data")
    assert bench.names("-wal"), "the commits are in the write-ahead log"
    store = bench.open()
    assert store.notices == []
    found = store.after("box", 0, 999)
    assert [(number, entry.body) for number, entry in found] == [(n, b"text %d" % n) for n in range(11, 201)]
    assert store.recover(999).sessions == [session()]
    store.close()
    bench.journal.close()


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.broker.storekit import Bench
from zmqbus.broker.storage.api import StoreError
bench = Bench(Path(sys.argv[1]))
made = [bench.entry(b"text %d" % number) for number in range(2000)]
made = [one._replace(header=one.header._replace(target="t" * 200)) for one in made]
store = bench.open()
store.put("box", 1, made[0])
store.commit()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
for number, entry in enumerate(made[1:], 2):
    store.put("box", number, entry)
for _ in range(3):
    try:
        store.commit()
    except StoreError as error:
        print(error)
    assert store.pending and store.total() == 2000
    assert len(store.after("box", 0, 5000)) == 2000
if sys.argv[2] == "goes on":
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    store.commit()
    assert not store.pending
store.close()
"""


@pytest.mark.parametrize(("then", "left"), [("goes on", 2000), ("ends", 1)])
def test_a_full_disk_loses_no_pending_change(tmp_path, then, left):
    done = run_child(FULL, str(tmp_path / "data"), then)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(
        "cannot write" in line and "mailboxes.sqlite3" in line and "make room on its disk" in line for line in lines
    )
    bench = Bench(tmp_path / "data")
    store = bench.open()
    assert store.notices == [] and len(store.after("box", 0, 5000)) == left
    store.close()
    bench.journal.close()


def test_damage_during_operation(bench):
    kept = filled(bench, 3000, boxes=1)["box0"]
    store = bench.open()
    store._db.execute("PRAGMA cache_size = 1")
    with open(bench.path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(bench.path) - 4096))
    found = store.after("box0", 0, 9999)
    assert found == kept[: len(found)]
    assert len(store.notices) == 1 and "restart the broker" in store.notices[0]
    assert store.after("box0", 0, 9999) == found and len(store.notices) == 1, "said once"
    assert store.stale(0.0) == [] and store.oldest_segment() == 0
    store.remove("box0", [1, 2500])
    store.put("box0", 9000, bench.entry())
    with pytest.raises(StoreError, match=r"is damaged .*restart the broker"):
        store.commit()
    assert store.pending
    store.close()


# --- bodies


def damage_record(bench: Bench, entry: Entry) -> None:
    """Changes a byte of an entry's record."""
    _, offset, length, _ = entry.pointer
    with open(bench.log, "r+b") as file:
        file.seek(offset + length - 3)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_an_unreadable_body_is_reported_and_the_others_returned(bench):
    kept = filled(bench, 10, boxes=1)["box0"]
    store = bench.open()
    damage_record(bench, kept[3][1])
    expected = [(n, e._replace(body=b"") if n == 4 else e) for n, e in kept]
    for _ in range(3):
        assert store.after("box0", 0, 99) == expected
    assert expected[3][1].spilled, "its receiver will report the missing text"
    (notice,) = store.notices
    assert kept[3][1].msg_id in notice and "for name-box0" in notice and "ask the sender" in notice
    store.close()


def test_a_pointer_to_another_record_yields_no_body(bench):
    first, second = bench.entry(b"mine"), bench.entry(b"your")
    store = bench.open()
    store.put("box", 1, first._replace(pointer=second.pointer))
    store.commit()
    store.close()
    store = bench.open()
    ((_, found),) = store.after("box", 0, 9)
    assert found.msg_id == first.msg_id and found.body == b"" and found.spilled
    assert "another record is in its place" in store.notices[0]
    store.close()


def test_the_cache_compares_message_ids(store, bench):
    made = bench.entry(b"mine")
    store.put("box", 1, made)
    store.put("box", 2, made._replace(msg_id="another", body=b"your"))
    store.commit()
    assert [(entry.msg_id, entry.body) for _, entry in store.after("box", 0, 9)] == [
        (made.msg_id, b"mine"),
        ("another", b""),
    ]


def test_an_unreadable_journal_is_reported(bench):
    kept = filled(bench, 3, boxes=1)["box0"]
    os.chmod(bench.log, 0o644)
    store = bench.open()
    assert store.recover(9).boxes
    assert [entry.body for _, entry in store.after("box0", 0, 9)] == [b"", b"", b""]
    assert all("chmod 600" in notice for notice in store.notices) and len(store.notices) == 2
    os.chmod(bench.log, 0o600)
    assert store.after("box0", 0, 9) == kept
    store.close()


def count_reads(store: SqliteStore, monkeypatch) -> list[int]:
    reads: list[int] = []
    read_many = store._reader.read_many

    def counted(pointers):
        reads.append(len(pointers))
        return read_many(pointers)

    monkeypatch.setattr(store._reader, "read_many", counted)
    return reads


def test_recent_entries_are_cached(store, bench, monkeypatch):
    monkeypatch.setattr(sqlite, "CACHE_BYTES", 10_000)
    reads = count_reads(store, monkeypatch)
    made = [bench.entry(b"%03d" % number * 100) for number in range(100)]
    for number, one in enumerate(made, 1):
        store.put("box", number, one)
    assert store.after("box", 0, 200) == list(enumerate(made, 1)) and reads == [], "uncommitted entries are in memory"
    store.commit()
    assert store.after("box", 80, 20) == list(enumerate(made[80:], 81)) and reads == []
    assert store.after("box", 0, 20) == list(enumerate(made[:20], 1)) and reads == [20]
    assert store.after("box", 0, 20) == list(enumerate(made[:20], 1)) and reads == [20], (
        "entries read before are cached"
    )
    assert store._cache_bytes == sum(entry.credit_bytes for entry in store._cache.values()) <= 10_000


def test_large_bodies_are_returned_a_few_at_a_time(bench, monkeypatch):
    monkeypatch.setattr(sqlite, "READ_BYTES", 100_000)
    store = bench.open()
    made = [(n, bench.entry(b"x" * size)) for n, size in enumerate([60_000, 60_000, 10, SPILL_BYTES + 1, 30_000, 9], 1)]
    for number, one in made:
        store.put("box", number, one)
    store.commit()
    store.close()
    store = bench.open()
    assert store.after("box", 0, 9) == made[:1]
    assert store.after("box", 1, 9) == made[1:]
    monkeypatch.setattr(sqlite, "READ_BYTES", 5)
    store._cache.clear()
    assert store.after("box", 0, 9) == made[:1], "at least one, whatever its size"
    store.close()


# --- recovery


def test_missing_records_are_reported(tmp_path):
    bench = Bench(tmp_path / "data", segment_bytes=4000)
    kept = filled(bench, 100, boxes=3)
    every = {entry.msg_id: entry for box in kept.values() for _, entry in box}
    gone = sorted(msg_id for msg_id, entry in every.items() if entry.pointer[0] == 2)
    assert 3 < len(gone) < 20
    for number, name in ((int(suffix), f"{bench.log}.{suffix}") for suffix in "123456789"):
        if os.path.exists(name) and f'"segment":{2},' in Path(name).read_text().splitlines()[0]:
            os.unlink(name)
            assert number
    store = bench.open()
    found = store.recover(1000)
    (notice,) = store.notices
    assert f"{len(gone)} unread messages" in notice and all(msg_id in notice for msg_id in gone)
    assert "for name-box0" in notice and "for name-box1" in notice
    assert sum(box.messages for box in found.boxes) == 100, "their receivers learn who has sent them"
    for key in kept:
        store.after(key, 0, 999)
    assert len(store.notices) == 1, "said once"
    store.close()
    bench.journal.close()


def test_recovery_finds_damaged_records(bench):
    kept = filled(bench, 10, boxes=1)["box0"]
    damage_record(bench, kept[6][1])
    store = bench.open()
    store.recover(9)
    assert len(store.notices) == 1 and kept[6][1].msg_id in store.notices[0] and "1 unread" in store.notices[0]
    store.close()


def test_many_missing_records_are_reported_briefly(bench):
    filled(bench, 500)
    os.truncate(bench.log, 100)
    store = bench.open()
    store.recover(9)
    (notice,) = store.notices
    assert "500 unread messages" in notice and "and 480 more" in notice and notice.count("message0") == verify.NAMED
    store.close()


def test_an_intact_journal_gives_no_notice(bench):
    store = bench.open()
    for number, size in enumerate((0, 1, 5000, SPILL_BYTES + 1, 300_000), 1):
        store.put("box", number, bench.entry(b"x" * size))
        store.put("other", number, bench.entry(b"y" * size))
    store.commit()
    store.close()
    store = bench.open()
    store.recover(9)
    assert store.notices == []
    store.close()


EDITS = {
    "a text for a number": "UPDATE owed SET size_bytes = 'many' WHERE seq = 2",
    "a blob for a text": "UPDATE owed SET from_name = x'6162' WHERE seq = 2",
    "text that is not UTF-8": "UPDATE owed SET target = CAST(x'ff' AS TEXT) WHERE seq = 2",
    "half a surrogate": "UPDATE owed SET from_label = CAST(x'eda080' AS TEXT) WHERE seq = 2",
    "an unknown scope": "UPDATE owed SET scope = 9 WHERE seq = 2",
    "an unknown format": "UPDATE owed SET fmt = -1 WHERE seq = 2",
    "a text for a key": "UPDATE owed SET seq = 'two' WHERE seq = 2",
    "a key that is not UTF-8": "UPDATE owed SET seq = CAST(x'ff' AS TEXT) WHERE seq = 2",
    "a fractional key": "UPDATE owed SET seq = 2.5 WHERE seq = 2",
    "a negative key": "UPDATE owed SET seq = -2 WHERE seq = 2",
    "a negative size": "UPDATE owed SET size_bytes = -1 WHERE seq = 2",
    "a mailbox without a key": "UPDATE owed SET mailbox = 99 WHERE seq = 2",
    "a mailbox that is text": "UPDATE owed SET mailbox = 'one' WHERE seq = 2",
}


@pytest.mark.parametrize("edit", EDITS)
def test_invalid_messages_are_dropped(bench, edit):
    kept = filled(bench, 5, boxes=1)["box0"]
    db = sqlite3.connect(bench.path)
    with db:
        assert db.execute(EDITS[edit]).rowcount == 1
    db.close()
    for notices in (1, 0):
        store = bench.open()
        assert len(store.notices) == notices
        assert not notices or "1 of owed" in store.notices[0]
        found = store.recover(99)
        assert store.after("box0", 0, 99) == [kept[0], *kept[2:]]
        assert store.total() == 4 and found.boxes[0].messages == 4 and len(found.owed) == 4
        store.close()
    assert bench.names("damaged") == []


def test_an_invalid_mailbox_is_dropped_with_its_mail(bench):
    kept = filled(bench, 6, boxes=2)
    db = sqlite3.connect(bench.path)
    with db:
        db.execute("UPDATE mailboxes SET key = CAST(x'ff' AS TEXT) WHERE key = 'box0'")
    db.close()
    store = bench.open()
    assert "1 of mailboxes, 3 of owed" in store.notices[0]
    assert contents(store, kept) == {"box0": [], "box1": kept["box1"]} and store.total() == 3
    store.close()


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE sessions SET topics = 'deploys' WHERE session_id = 'box0'",
        "UPDATE sessions SET topics = '{}' WHERE session_id = 'box0'",
        "UPDATE sessions SET member_of = '[1]' WHERE session_id = 'box0'",
        "UPDATE sessions SET member_of = replace(hex(zeroblob(200000)), '00', '[') WHERE session_id = 'box0'",
        "UPDATE sessions SET name = x'00' WHERE session_id = 'box0'",
        "UPDATE sessions SET since_ts = 'yesterday' WHERE session_id = 'box0'",
        "UPDATE sessions SET session_id = CAST(x'ff' AS TEXT) WHERE session_id = 'box0'",
    ],
)
def test_invalid_sessions_are_dropped(bench, edit):
    filled(bench, 6, boxes=2)
    db = sqlite3.connect(bench.path)
    with db:
        assert db.execute(edit).rowcount == 1
    db.close()
    store = bench.open()
    assert store.recover(9).sessions == [session("box1")] and "1 of sessions" in store.notices[0]
    assert store.total() == 6, "its mail is kept"
    store.close()


def test_notices_are_bounded(store, bench, monkeypatch):
    monkeypatch.setattr(sqlite, "MAX_NOTICES", 3)
    for number in range(1, 9):
        made = bench.entry()
        store.put("box", number, made._replace(pointer=(9, *made.pointer[1:])))
        store._cache.clear()
        store.commit()
        store.after("box", 0, 99)
    assert len(store.notices) == 3


# --- against the model


class StoreMachine(RuleBasedStateMachine):
    """The durable store equals the one in memory, whatever happens to commits and processes."""

    @initialize()
    def start(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="zb-db-"))
        self.bench = Bench(self.base / "0")
        self.model = MemoryStore()
        self.store = self.bench.open()
        self.full = False
        self.copies = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.bench.journal.close()
            shutil.rmtree(self.base)

    boxes = st.sampled_from(["one", "two", "three"])
    numbers = st.integers(1, 12)

    @rule(box=boxes, numbers=st.lists(numbers, min_size=1, max_size=6), size=st.sampled_from([0, 5, 3000, 70_000]))
    def put(self, box: str, numbers: list[int], size: int) -> None:
        for number in numbers:
            entry = self.bench.entry(b"x" * size)
            self.model.put(box, number, entry)
            self.store.put(box, number, entry)

    @rule(box=boxes, numbers=st.lists(numbers, max_size=12))
    def remove(self, box: str, numbers: list[int]) -> None:
        self.model.remove(box, numbers)
        self.store.remove(box, numbers)

    @rule(who=st.sampled_from("abc"), name=st.sampled_from(["x", "ÿ"]), stays=st.booleans())
    def change_session(self, who: str, name: str, stays: bool) -> None:
        for store in (self.model, self.store):
            if stays:
                store.save_session(session(who, name=name))
            else:
                store.forget_session(who)

    @rule(what=st.sampled_from("abc"), stays=st.booleans())
    def change_awaited(self, what: str, stays: bool) -> None:
        for store in (self.model, self.store):
            if stays:
                store.save_awaited(awaited(what))
            else:
                store.forget_awaited([what])

    @rule(number=st.integers(1, 5))
    def refuse(self, number: int) -> None:
        for store in (self.model, self.store):
            store.save_refusal(refusal(number))

    @rule()
    def commit(self) -> None:
        try:
            self.store.commit()
        except StoreError:
            assert self.full and self.store.pending
        else:
            assert not self.store.pending
            self.model.commit()

    @rule()
    def fill_the_disk(self) -> None:
        self.full = not self.full
        self.store._db.execute(f"PRAGMA max_page_count = {1 if self.full else 1 << 30}")

    @rule(box=boxes, number=numbers, limit=st.integers(1, 5))
    def look(self, box: str, number: int, limit: int) -> None:
        assert self.store.after(box, number, limit) == self.model.after(box, number, limit)

    @rule(clean=st.booleans())
    def die(self, clean: bool) -> None:
        """Restarts the broker, in good order or with the files as they are at that moment."""
        if clean:
            self.store.close()
        else:
            self.copies += 1
            new = self.base / str(self.copies)
            shutil.copytree(self.bench.directory, new)
            self.store.close()
            self.bench.directory = new
            self.bench.path = str(new / "mailboxes.sqlite3")
        self.model.crash()
        self.store = self.bench.open()
        self.full = False
        assert self.store.notices == []

    @precondition(lambda self: not self.store.pending)
    @rule()
    def recover(self) -> None:
        found, expected = self.store.recover(99), self.model.recover(99)
        for field in ("sessions", "boxes", "owed", "awaited", "refusals"):
            assert sorted(getattr(found, field)) == sorted(getattr(expected, field))
        for key in ("one", "two", "three"):
            ids = [entry.msg_id for _, entry in self.model.after(key, 0, 99)]
            assert [owed.msg_id for owed in found.owed if owed.mailbox == key] == ids
        assert self.store.notices == []

    @invariant()
    def stores_agree(self) -> None:
        if hasattr(self, "store"):
            assert self.store.total() == self.model.total()
            assert self.store.oldest_segment() == self.model.oldest_segment()
            assert self.store.stale(20.0) == sorted(self.model.stale(20.0))
            for key in ("one", "two", "three"):
                assert self.store.after(key, 0, 99) == self.model.after(key, 0, 99)


StoreMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow], deadline=None
)
TestStoreMachine = pytest.mark.slow(StoreMachine.TestCase)
