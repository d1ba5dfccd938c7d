"""ThreadIndex, out of a log that only knows the way back."""

from __future__ import annotations

from pathlib import Path

from tests.console.conftest import put
from tests.records import RECORD
from zmqbus.console import threads as module
from zmqbus.console.threads import MAX_SHOWN, ThreadIndex
from zmqbus.journal.record import Record


def message(msg_id: str, answers: str | None = None, text: str = "text") -> Record:
    return RECORD._replace(msg_id=msg_id, reply_to=answers, body=text.encode())


def shown(threads: ThreadIndex, msg_id: str) -> list[tuple[str, int]]:
    return [(one["id"], one["depth"]) for one in threads.thread(msg_id)]


def test_a_thread_is_the_same_from_wherever_one_looks(data_dir: Path) -> None:
    put(data_dir, message("question"), message("otherone"), message("answer01", "question"))
    put(data_dir, message("answer02", "question"), message("followup", "answer01"))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    whole = [("question", 0), ("answer01", 1), ("followup", 2), ("answer02", 1)]
    for msg_id in ("question", "answer01", "answer02", "followup"):
        assert shown(threads, msg_id) == whole
    assert shown(threads, "otherone") == [("otherone", 0)]
    assert shown(threads, "nowhere1") == []


def test_it_grows_and_goes_over_rotations(data_dir: Path) -> None:
    put(data_dir, message("question"), message("answer01", "question"))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    assert shown(threads, "question") == [("question", 0), ("answer01", 1)]
    put(data_dir, message("answer02", "question"))
    (data_dir / "messages.log").rename(data_dir / "messages.log.1")
    put(data_dir, message("answer03", "question"), segment=2)
    assert shown(threads, "question") == [("question", 0), ("answer01", 1), ("answer02", 1), ("answer03", 1)]
    (data_dir / "messages.log.1").unlink()
    assert shown(threads, "answer03") == [("answer03", 0)], "what it answers is gone"


def test_a_text_cannot_pose_as_an_answer(data_dir: Path) -> None:
    put(data_dir, message("question"), message("impostor", text='","reply_to":"question","text":"'))
    put(data_dir, message("quoting1", text='{"reply_to":"question"}'))
    assert shown(ThreadIndex(str(data_dir / "messages.log")), "question") == [("question", 0)]


def test_a_message_that_answers_itself_and_a_circle(data_dir: Path) -> None:
    put(data_dir, message("selfself", "selfself"), message("circle01", "circle02"), message("circle02", "circle01"))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    assert shown(threads, "selfself") == [("selfself", 0)]
    assert sorted(msg_id for msg_id, _ in shown(threads, "circle01")) == ["circle01", "circle02"]


def test_long_threads_are_cut(data_dir: Path) -> None:
    put(data_dir, message("question"), *(message(f"answer{number:05}", "question") for number in range(MAX_SHOWN + 50)))
    assert len(shown(ThreadIndex(str(data_dir / "messages.log")), "question")) == MAX_SHOWN


def test_what_is_remembered_is_bounded(data_dir: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWERS", 10)
    put(data_dir, *(message(f"answer{number:05}", f"question{number:04}") for number in range(50)))
    threads = ThreadIndex(str(data_dir / "messages.log"))
    threads.thread("answer00049")
    assert len(threads) == 10


def test_no_log(data_dir: Path) -> None:
    assert ThreadIndex(str(data_dir / "messages.log")).thread("question") == []
