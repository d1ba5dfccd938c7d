"""Labels remembered by project."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zmqbus.errors import Unauthorized
from zmqbus.session import labels as labels_module
from zmqbus.session.labels import load_label, remember_label


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def file(data: str, name: str) -> Path:
    return Path(data, "clients", name)


class TestLabels:
    """One label for each project."""

    def test_labels_are_remembered_by_project(self, data: str) -> None:
        assert load_label(data, "/p") is None
        remember_label(data, "/p", "payments ü")
        remember_label(data, "/q", "auth")
        assert (load_label(data, "/p"), load_label(data, "/q"), load_label(data, "/r")) == ("payments ü", "auth", None)
        remember_label(data, "/p", None)
        remember_label(data, "/q", "")
        remember_label(data, "/r", None)
        assert (load_label(data, "/p"), load_label(data, "/q")) == (None, None)
        assert not file(data, "labels.json.tmp").exists()

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff", b'{"/p": 1}', b'{"/p": "a\\nb"}', b'{"/p": "%s"}' % (b"x" * 61)]
    )
    def test_damaged_file_is_replaced(self, data: str, content: bytes) -> None:
        remember_label(data, "/q", "auth")
        file(data, "labels.json").write_bytes(content)
        assert load_label(data, "/p") is None
        remember_label(data, "/p", "new")
        assert load_label(data, "/p") == "new"

    def test_file_that_others_could_write_is_refused(self, data: str) -> None:
        remember_label(data, "/p", "x")
        file(data, "labels.json").chmod(0o622)
        with pytest.raises(Unauthorized):
            load_label(data, "/p")
        with pytest.raises(Unauthorized):
            remember_label(data, "/p", "y")

    def test_least_recently_used_labels_are_dropped(self, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(labels_module, "MAX_LABELS", 3)
        for project in ("/1", "/2", "/3", "/1", "/4"):
            remember_label(data, project, "x")
        assert [load_label(data, f"/{number}") for number in (1, 2, 3, 4)] == ["x", None, "x", "x"]

    def test_simultaneous_changes_are_all_kept(self, data: str) -> None:
        together = threading.Barrier(16)

        def remember(number: int) -> None:
            together.wait()
            remember_label(data, f"/{number}", f"label {number}")

        with ThreadPoolExecutor(16) as threads:  # locks are held by descriptors, so threads do
            list(threads.map(remember, range(16)))
        assert [load_label(data, f"/{number}") for number in range(16)] == [f"label {number}" for number in range(16)]

    def test_same_label_again_writes_nothing(self, data: str) -> None:
        remember_label(data, "/p", "x")
        before = file(data, "labels.json").stat()
        remember_label(data, "/p", "x")
        assert file(data, "labels.json").stat().st_ino == before.st_ino

    def test_label_that_cannot_be_written_is_an_error(self, data: str) -> None:
        remember_label(data, "/p", "x")
        file(data, "labels.json.tmp").mkdir()
        with pytest.raises(Unauthorized, match=r"labels\.json\.tmp is not a file"):
            remember_label(data, "/p", "y")
        assert load_label(data, "/p") == "x"
