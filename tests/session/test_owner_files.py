"""Names of an owner's files where several processes have one pid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from zmqbus.process import Place, Process, this_machine
from zmqbus.session.owner_files import FILE_NAME, is_anothers, owner_in, path_of, pid_of, record_of, stem_of

HERE = this_machine().place()
OWNER = Process(4711, "1000", *HERE)
CONTAINER = Process(4711, "1000", *HERE._replace(namespace="4026539999"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "clients").mkdir(mode=0o700)
    return str(tmp_path)


def put(data: str, stem: str, suffix: str, record: object) -> None:
    path = Path(path_of(data, stem, suffix))
    path.write_text(json.dumps(record) + "\n")
    path.chmod(0o600)


class TestStem:
    """How the names of an owner's files begin."""

    def test_stem_is_normally_the_pid(self, data: str) -> None:
        assert stem_of(data, OWNER) == stem_of(data, CONTAINER) == "4711"
        put(data, "4711", ".lock", record_of(OWNER))
        assert stem_of(data, OWNER) == "4711"

    @pytest.mark.parametrize("suffix", [".lock", ".options"])
    def test_second_owner_with_a_pid_gets_a_tag(self, data: str, suffix: str) -> None:
        put(data, "4711", suffix, record_of(CONTAINER))
        assert stem_of(data, CONTAINER) == "4711"
        assert stem_of(data, OWNER) == f"4711-{HERE.tag}"

    @pytest.mark.parametrize("suffix", [".lock", ".options"])
    def test_tag_is_kept_when_the_plain_name_becomes_free(self, data: str, suffix: str) -> None:
        put(data, f"4711-{HERE.tag}", suffix, record_of(OWNER))
        assert stem_of(data, OWNER) == f"4711-{HERE.tag}"
        assert stem_of(data, CONTAINER) == "4711"

    def test_names_of_owner_files(self) -> None:
        tag = Place("1", "2", "3").tag
        assert len(tag) == 12
        for stem in ("4711", f"4711-{tag}"):
            assert pid_of(stem) == 4711
            for suffix in (".lock", ".session", ".session.tmp", ".shown", ".shown.tmp", ".options", ".options.tmp"):
                match = re.fullmatch(FILE_NAME, stem + suffix, re.ASCII)
                assert match is not None and match[1] == stem
        for name in (
            "labels.json",
            "reap.lock",
            "011.lock",
            "4711-.lock",
            "4711-xyz.lock",
            f"4711-{tag}0.lock",
            "4711.pid",
        ):
            assert re.fullmatch(FILE_NAME, name, re.ASCII) is None


class TestRecord:
    """The owner in a record."""

    @pytest.mark.parametrize("record", [None, [], "x", {"owner_started": 1}, {"session_id": "x"}])
    def test_damaged_record_names_no_owner(self, data: str, record: object) -> None:
        assert owner_in(record, "4711") is None
        put(data, "4711", ".lock", record)
        assert stem_of(data, OWNER) == "4711"

    def test_record_round_trip(self) -> None:
        assert owner_in(record_of(OWNER), "4711") == OWNER
        assert owner_in({**record_of(OWNER), "boot": 5}, f"4711-{HERE.tag}") == OWNER._replace(boot="")
        assert owner_in({"owner_started": "1000"}, "4711") == Process(4711, "1000")

    def test_records_of_other_processes(self) -> None:
        assert not is_anothers(None, OWNER)
        assert not is_anothers(OWNER, OWNER)
        assert not is_anothers(Process(4711, "1000"), OWNER), "an earlier release wrote no place"
        assert not is_anothers(OWNER._replace(boot="an earlier boot"), OWNER), "it has ended"
        assert is_anothers(CONTAINER, OWNER)
        assert is_anothers(Process(4711, "1"), OWNER), "of whatever place: it may live"
