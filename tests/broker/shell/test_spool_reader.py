"""Spool files: reading them within the bounds, refusing unsafe ones, and removing them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zmqbus.broker.body_checks import Spooled
from zmqbus.broker.shell import spool_reader as spool_reader_module
from zmqbus.broker.shell.spool_reader import SpoolReader
from zmqbus.errors import BrokerUnavailable, RateLimited, Unauthorized
from zmqbus.wire import verbs

NAME, OTHER = "a" * 32, "b" * 32
SIZE = 70_000
GOOD = Spooled(NAME, SIZE, 0, SIZE, 5)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    found = tmp_path / "spool"
    found.mkdir(mode=0o700)
    return found


@pytest.fixture
def spools(directory: Path) -> SpoolReader:
    return SpoolReader(str(directory))


def write(directory: Path, name: str, content: bytes) -> None:
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o600)


class TestReading:
    def test_content_is_read_at_the_time_of_the_message(self, spools, directory):
        write(directory, NAME, b"x" + b"a" * SIZE + b"b" * SIZE)
        assert spools.read(b"r", GOOD._replace(offset=1)) == b"a" * SIZE
        write(directory, NAME, b"x" + b"c" * SIZE + b"b" * SIZE)
        assert spools.read(b"r", GOOD._replace(offset=1)) == b"c" * SIZE
        assert spools.read(b"r", GOOD._replace(offset=1 + SIZE)) == b"b" * SIZE

    def test_a_connection_opens_its_file_once(self, spools, directory):
        write(directory, NAME, b"a" * SIZE)
        spools.read(b"r", GOOD)
        (directory / NAME).unlink()
        assert spools.read(b"r", GOOD) == b"a" * SIZE
        with pytest.raises(BrokerUnavailable, match=r"No such file.*send it again"):
            spools.read(b"another", GOOD)

    @pytest.mark.parametrize("offset", [1, SIZE, verbs.MAX_SPOOL_BYTES])
    def test_reading_past_the_end_is_an_error(self, spools, directory, offset):
        write(directory, NAME, b"a" * SIZE)
        with pytest.raises(BrokerUnavailable, match=r"shorter.*send it again"):
            spools.read(b"r", GOOD._replace(offset=offset))

    def test_files_that_others_can_read_are_refused(self, spools, directory):
        write(directory, NAME, b"a" * SIZE)
        (directory / NAME).chmod(0o644)
        with pytest.raises(Unauthorized, match="chmod 600"):
            spools.read(b"r", GOOD)

    def test_links_and_special_files_are_refused(self, spools, directory, tmp_path):
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

    def test_one_wake_exceeds_the_bound_by_at_most_one_body(self, spools, directory, monkeypatch):
        monkeypatch.setattr(spool_reader_module, "WAKE_BYTES", 2 * SIZE)
        write(directory, NAME, b"a" * SIZE)
        for _ in range(2):
            spools.read(b"r", GOOD)
        with pytest.raises(RateLimited, match="message of its own"):
            spools.read(b"r", GOOD)
        spools.read_bytes = 0
        assert spools.read(b"r", GOOD) == b"a" * SIZE


class TestCleanup:
    def test_only_spool_files_are_removed_at_the_start(self, directory):
        write(directory, NAME, b"a" * SIZE)
        write(directory, "something else", b"")
        SpoolReader(str(directory))
        assert os.listdir(directory) == ["something else"]

    def test_the_directory_is_private(self, directory):
        directory.rmdir()
        SpoolReader(str(directory))
        assert directory.stat().st_mode & 0o777 == 0o700
        directory.chmod(0o755)
        with pytest.raises(Unauthorized, match="chmod 700"):
            SpoolReader(str(directory))

    def test_files_of_ended_connections_are_removed(self, spools, directory):
        for name, route in ((NAME, b"1"), (OTHER, b"2")):
            write(directory, name, b"a" * SIZE)
            spools.read(route, GOOD._replace(file=name))
        spools.sweep({b"2"})
        assert os.listdir(directory) == [OTHER]
        assert not spools.is_empty
        spools.sweep(set())
        assert os.listdir(directory) == []
        assert spools.is_empty

    def test_opening_another_file_removes_the_previous_one(self, spools, directory):
        for name in (NAME, OTHER):
            write(directory, name, name[:1].encode() * SIZE)
            assert spools.read(b"r", GOOD._replace(file=name))[:1] == name[:1].encode()
        assert os.listdir(directory) == [OTHER]

    def test_an_unreadable_file_leaves_the_open_one_in_place(self, spools, directory):
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
