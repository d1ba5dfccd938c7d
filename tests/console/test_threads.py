"""Message threads from the log."""

from __future__ import annotations

from pathlib import Path

from tests.console.conftest import put
from tests.records import RECORD
from zmqbus.console import threads as threads_module
from zmqbus.console.threads import MAX_SHOWN, ThreadIndex
from zmqbus.journal.record import Record


def message(msg_id: str, answers: str | None = None, text: str = "text") -> Record:
    return RECORD._replace(msg_id=msg_id, reply_to=answers, body=text.encode())


def shown(threads: ThreadIndex, msg_id: str) -> list[tuple[str, int]]:
    return [(one["id"], one["depth"]) for one in threads.thread(msg_id)]


def test_every_message_of_a_thread_finds_it(data_dir: Path) -> None:
    put(data_dir, message("question"), message("otherone"), message("answer01", "question"))
    put(data_dir, message("answer02", "question"), message("followup", "answer01"))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    whole = [("question", 0), ("answer01", 1), ("followup", 2), ("answer02", 1)]
    for msg_id in ("question", "answer01", "answer02", "followup"):
        assert shown(threads, msg_id) == whole
    assert shown(threads, "otherone") == [("otherone", 0)]
    assert shown(threads, "nowhere1") == []


def test_thread_grows_across_rotations(data_dir: Path) -> None:
    put(data_dir, message("question"), message("answer01", "question"))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    assert shown(threads, "question") == [("question", 0), ("answer01", 1)]
    put(data_dir, message("answer02", "question"))
    (data_dir / "messages.log").rename(data_dir / "messages.log.1")
    put(data_dir, message("answer03", "question"), segment=2)
    assert shown(threads, "question") == [("question", 0), ("answer01", 1), ("answer02", 1), ("answer03", 1)]
    (data_dir / "messages.log.1").unlink()
    assert shown(threads, "answer03") == [("answer03", 0)], "the message that it answers is gone"


def test_text_that_looks_like_an_answer_is_not_one(data_dir: Path) -> None:
    put(data_dir, message("question"), message("impostor", text='","reply_to":"question","text":"'))
    put(data_dir, message("quoting1", text='{"reply_to":"question"}'))
    assert shown(ThreadIndex(str(data_dir / "messages.log")), "question") == [("question", 0)]


def test_circular_answers(data_dir: Path) -> None:
    put(data_dir, message("selfself", "selfself"), message("circle01", "circle02"), message("circle02", "circle01"))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    assert shown(threads, "selfself") == [("selfself", 0)]
    assert sorted(msg_id for msg_id, _ in shown(threads, "circle01")) == ["circle01", "circle02"]


def test_shown_messages_are_limited(data_dir: Path) -> None:
    put(data_dir, message("question"), *(message(f"answer{number:05}", "question") for number in range(MAX_SHOWN + 50)))
    assert len(shown(ThreadIndex(str(data_dir / "messages.log")), "question")) == MAX_SHOWN


def test_index_is_bounded(data_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(threads_module, "MAX_ANSWERS", 10)
    put(data_dir, *(message(f"answer{number:05}", f"question{number:04}") for number in range(50)))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    threads.thread("answer00049")
    assert len(threads) == 10


def test_missing_log(data_dir: Path) -> None:
    assert ThreadIndex(str(data_dir / "messages.log")).thread("question") == []
