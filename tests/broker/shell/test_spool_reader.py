"""What a broker reads of what its senders have put down, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zmqbus.broker.shell import spool_reader as module
from zmqbus.broker.shell.spool_reader import Spools, check, no_spools
from zmqbus.errors import BrokerUnavailable, ProtocolError, RateLimited, Unauthorized
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format

NAME, OTHER = "a" * 32, "b" * 32
SIZE = 70_000
GOOD = verbs.Spooled("aaaaaaaaaaaa", 0, "bob", Format.TEXT, None, SIZE, NAME, 0, SIZE, 5)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    found = tmp_path / "spool"
    found.mkdir(mode=0o700)
    return found


@pytest.fixture
def spools(directory: Path) -> Spools:
    return Spools(str(directory))


def write(directory: Path, name: str, content: bytes) -> None:
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o600)


class TestCheck:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"length": 6 * SIZE},
            {"offset": verbs.MAX_SPOOL_BYTES, "crc": 2**32 - 1},
            {"fmt": Format.BYTES, "size_bytes": 70_000, "length": 93_336},
            {"fmt": Format.MSGPACK, "size_bytes": 69_999, "length": 93_332},
        ],
    )
    def test_what_a_sender_may_say(self, changes):
        check(GOOD._replace(**changes))

    @pytest.mark.parametrize(
        "changes",
        [
            {"file": ""},
            {"file": "../messages.log"},
            {"file": "A" * 32},
            {"file": "a" * 31},
            {"file": NAME + "\n"},
            {"file": f"{NAME}/x"},
            {"offset": -1},
            {"offset": verbs.MAX_SPOOL_BYTES + 1},
            {"offset": 2**63},
            {"crc": -1},
            {"crc": 2**32},
            {"length": SIZE - 1},
            {"length": 6 * SIZE + 1},
            {"length": -1},
            {"size_bytes": -1},
            {"size_bytes": verbs.SPILL_BYTES, "length": SIZE},
            {"size_bytes": 2**60, "length": 2**60},
            {"size_bytes": 10 * 2**20, "length": verbs.MAX_SPELLED_BYTES + 1},
            {"fmt": Format.BYTES, "length": SIZE},
        ],
    )
    def test_what_no_sender_says(self, changes):
        with pytest.raises(ProtocolError):
            check(GOOD._replace(**changes))


class TestReading:
    def test_pieces_are_read_as_they_are_then(self, spools, directory):
        write(directory, NAME, b"x" + b"a" * SIZE + b"b" * SIZE)
        assert spools.read(b"r", GOOD._replace(offset=1)) == b"a" * SIZE
        write(directory, NAME, b"x" + b"c" * SIZE + b"b" * SIZE)
        assert spools.read(b"r", GOOD._replace(offset=1)) == b"c" * SIZE
        assert spools.read(b"r", GOOD._replace(offset=1 + SIZE)) == b"b" * SIZE

    def test_a_file_is_opened_once_for_a_connection(self, spools, directory):
        write(directory, NAME, b"a" * SIZE)
        spools.read(b"r", GOOD)
        (directory / NAME).unlink()
        assert spools.read(b"r", GOOD) == b"a" * SIZE
        with pytest.raises(BrokerUnavailable, match=r"No such file.*send it again"):
            spools.read(b"another", GOOD)

    @pytest.mark.parametrize("offset", [1, SIZE, verbs.MAX_SPOOL_BYTES])
    def test_what_is_not_there_is_an_error(self, spools, directory, offset):
        write(directory, NAME, b"a" * SIZE)
        with pytest.raises(BrokerUnavailable, match=r"shorter.*send it again"):
            spools.read(b"r", GOOD._replace(offset=offset))

    def test_files_that_are_open_to_others_are_refused(self, spools, directory):
        write(directory, NAME, b"a" * SIZE)
        (directory / NAME).chmod(0o644)
        with pytest.raises(Unauthorized, match="chmod 600"):
            spools.read(b"r", GOOD)

    def test_links_and_what_is_no_file_are_refused(self, spools, directory, tmp_path):
        write(tmp_path, "secret", b"s" * SIZE)
        (directory / NAME).symlink_to(tmp_path / "secret")
        with pytest.raises(Unauthorized, match="link"):
            spools.read(b"r", GOOD)
        (directory / NAME).unlink()
        os.mkfifo(directory / NAME, 0o600)
        with pytest.raises(Unauthorized):
            spools.read(b"r", GOOD)
        (directory / NAME).unlink()
        (directory / NAME).mkdir(mode=0o700)
        with pytest.raises((Unauthorized, BrokerUnavailable)):
            spools.read(b"r", GOOD)

    def test_a_wake_reads_no_more_than_its_bound_and_one_piece(self, spools, directory, monkeypatch):
        monkeypatch.setattr(module, "WAKE_BYTES", 2 * SIZE)
        write(directory, NAME, b"a" * SIZE)
        for _ in range(2):
            spools.read(b"r", GOOD)
        with pytest.raises(RateLimited, match="message of its own"):
            spools.read(b"r", GOOD)
        spools.read_bytes = 0
        assert spools.read(b"r", GOOD) == b"a" * SIZE

    def test_a_broker_without_files(self):
        with pytest.raises(Unauthorized):
            no_spools(b"r", GOOD)


class TestTidiness:
    def test_what_earlier_senders_have_left_is_removed_at_the_start_and_nothing_else(self, directory):
        write(directory, NAME, b"a" * SIZE)
        write(directory, "something else", b"")
        Spools(str(directory))
        assert os.listdir(directory) == ["something else"]

    def test_the_directory_is_made_private(self, directory):
        directory.rmdir()
        Spools(str(directory))
        assert directory.stat().st_mode & 0o777 == 0o700
        directory.chmod(0o755)
        with pytest.raises(Unauthorized, match="chmod 700"):
            Spools(str(directory))

    def test_the_file_of_a_connection_that_has_ended_is_removed(self, spools, directory):
        for name, route in ((NAME, b"1"), (OTHER, b"2")):
            write(directory, name, b"a" * SIZE)
            spools.read(route, GOOD._replace(file=name))
        spools.sweep({b"2"})
        assert os.listdir(directory) == [OTHER]
        assert not spools.is_empty
        spools.sweep(set())
        assert os.listdir(directory) == []
        assert spools.is_empty

    def test_a_connection_has_one_file_at_a_time(self, spools, directory):
        for name in (NAME, OTHER):
            write(directory, name, name[:1].encode() * SIZE)
            assert spools.read(b"r", GOOD._replace(file=name))[:1] == name[:1].encode()
        assert os.listdir(directory) == [OTHER]
        assert "1 open" in repr(spools)

    def test_a_file_that_cannot_be_opened_costs_the_one_before_nothing(self, spools, directory):
        write(directory, NAME, b"a" * SIZE)
        spools.read(b"r", GOOD)
        with pytest.raises(BrokerUnavailable):
            spools.read(b"r", GOOD._replace(file=OTHER))
        assert spools.read(b"r", GOOD) == b"a" * SIZE

    def test_files_stay_when_the_broker_ends(self, spools, directory):
        write(directory, NAME, b"a" * SIZE)
        spools.read(b"r", GOOD)
        spools.close()
        spools.close()
        assert os.listdir(directory) == [NAME]
