"""Permissions, keys and ZAP. The handshakes are real ones, over loopback."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shlex
import socket as plain_socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import zmq
import zmq.auth
import zmq.utils.monitor
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from zmqbus.errors import BrokerUnavailable, Unauthorized
from zmqbus.security import keys as security

#: Far over what anything here takes on a loaded machine.
DEADLINE_S = 90.0

FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)
KEY_FILES = ("broker.key", "broker.key_secret", "client.key", "client.key_secret")


@pytest.fixture
def data(tmp_path) -> str:
    return str(tmp_path / "data")


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids="umask {:03o}".format)
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def make_file(path, permissions: int = 0o600, content: bytes = b"x") -> str:
    path.write_bytes(content)
    path.chmod(permissions)
    return str(path)


def run_cure(error: pytest.ExceptionInfo[Unauthorized]) -> None:
    """Runs the command that the message names, with a shell, as the user would."""
    subprocess.run(str(error.value).split("run: ", 1)[1], shell=True, check=True)


class TestDirectories:
    def test_is_made_private_with_its_parents(self, tmp_path, umask):
        path = str(tmp_path / "a" / "b" / "c")
        security.secure_dir(path)
        assert [mode(str(tmp_path / part)) for part in ("a", "a/b", "a/b/c")] == [0o700] * 3

    def test_of_the_user_is_accepted_as_it_is(self, data):
        os.mkdir(data, 0o700)
        before = os.lstat(data)
        security.secure_dir(data)
        security.secure_dir(data + "/")
        assert os.lstat(data) == before

    @pytest.mark.parametrize("permissions", [0o750, 0o705, 0o701, 0o777, 0o710])
    def test_that_others_can_enter_is_refused_with_its_cure(self, tmp_path, permissions):
        path = str(tmp_path / "it's a; $(dir)")
        os.mkdir(path)
        os.chmod(path, permissions)
        with pytest.raises(Unauthorized, match=f"{permissions:04o}") as error:
            security.secure_dir(path)
        assert f"chmod 700 {shlex.quote(path)}" in str(error.value)
        assert mode(path) == permissions
        run_cure(error)
        security.secure_dir(path)

    @pytest.mark.parametrize("slash", ["", "/", "//"])
    def test_link_is_refused(self, tmp_path, data, slash):
        (tmp_path / "real").mkdir(mode=0o700)
        os.symlink(tmp_path / "real", data)
        with pytest.raises(Unauthorized, match=r"symbolic link.*remove it, or set INTER_SESSION_DATA_DIR"):
            security.secure_dir(data + slash)

    def test_dangling_link_is_refused_and_not_followed(self, tmp_path, data):
        os.symlink(tmp_path / "nowhere", data)
        with pytest.raises(Unauthorized, match="symbolic link"):
            security.secure_dir(data)
        assert not (tmp_path / "nowhere").exists()

    def test_link_above_is_the_users_business(self, tmp_path):
        (tmp_path / "real").mkdir(mode=0o700)
        os.symlink(tmp_path / "real", tmp_path / "link")
        security.secure_dir(str(tmp_path / "link" / "data"))
        assert mode(str(tmp_path / "real" / "data")) == 0o700

    def test_file_in_its_place_is_refused(self, tmp_path):
        path = make_file(tmp_path / "file")
        with pytest.raises(Unauthorized, match="not a directory"):
            security.secure_dir(path)
        with pytest.raises(Unauthorized, match="cannot be made"):
            security.secure_dir(path + "/below")

    def test_of_another_user_is_refused(self, data, monkeypatch):
        os.mkdir(data, 0o700)
        monkeypatch.setattr(os, "geteuid", lambda: os.lstat(data).st_uid + 1)
        with pytest.raises(Unauthorized, match="belongs to another user"):
            security.secure_dir(data)

    def test_full_disk_is_not_a_matter_of_permission(self, data, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "mkdir", full)
        with pytest.raises(BrokerUnavailable, match="No space left"):
            security.secure_dir(data)


class TestFiles:
    def test_private_one_is_accepted(self, tmp_path):
        path = make_file(tmp_path / "file")
        security.check_private_file(path)
        fd = security.open_private(path, os.O_RDONLY)
        assert os.read(fd, 9) == b"x"
        assert not os.get_inheritable(fd)
        os.close(fd)

    def test_is_made_private(self, tmp_path, umask):
        path = str(tmp_path / "new")
        os.close(security.open_private(path, os.O_RDWR | os.O_CREAT))
        assert mode(path) == 0o600
        security.check_private_file(path)

    def test_missing_one_is_the_callers_business(self, tmp_path):
        path = str(tmp_path / "none")
        with pytest.raises(FileNotFoundError):
            security.check_private_file(path)
        with pytest.raises(FileNotFoundError):
            security.open_private(path, os.O_RDONLY)

    @pytest.mark.parametrize("permissions", [0o640, 0o604, 0o602, 0o666, 0o610])
    def test_that_others_can_read_is_refused_with_its_cure(self, tmp_path, permissions):
        path = make_file(tmp_path / "a file", permissions)
        with pytest.raises(Unauthorized):
            security.check_private_file(path)
        with pytest.raises(Unauthorized) as error:
            security.open_private(path, os.O_RDONLY)
        assert f"chmod 600 {shlex.quote(path)}" in str(error.value)
        run_cure(error)
        security.check_private_file(path)

    def test_refused_one_is_not_truncated(self, tmp_path):
        path = make_file(tmp_path / "file", 0o644, b"precious")
        with pytest.raises(Unauthorized):
            security.open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        assert (tmp_path / "file").read_bytes() == b"precious"

    def test_accepted_one_is_truncated(self, tmp_path):
        path = make_file(tmp_path / "file")
        os.close(security.open_private(path, os.O_WRONLY | os.O_TRUNC))
        assert (tmp_path / "file").read_bytes() == b""

    def test_link_is_refused(self, tmp_path):
        make_file(tmp_path / "real")
        link = str(tmp_path / "link")
        os.symlink(tmp_path / "real", link)
        for call in (security.check_private_file, lambda path: security.open_private(path, os.O_RDONLY)):
            with pytest.raises(Unauthorized, match=r"symbolic link.*remove it$"):
                call(link)

    def test_dangling_link_is_not_created_through(self, tmp_path):
        link = str(tmp_path / "link")
        os.symlink(tmp_path / "target", link)
        with pytest.raises(Unauthorized, match="symbolic link"):
            security.open_private(link, os.O_RDWR | os.O_CREAT)
        assert not (tmp_path / "target").exists()

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT])
    @pytest.mark.parametrize("kind", ["directory", "fifo", "socket"])
    def test_what_is_no_file_is_refused_and_blocks_nobody(self, tmp_path, kind, flags):
        path = str(tmp_path / "thing")
        if kind == "directory":
            os.mkdir(path, 0o700)
        elif kind == "fifo":
            os.mkfifo(path, 0o600)
        else:
            with plain_socket.socket(plain_socket.AF_UNIX) as server:
                server.bind(path)
            os.chmod(path, 0o600)
        with pytest.raises(Unauthorized, match="not a file"):
            security.open_private(path, flags)

    def test_of_another_user_is_refused(self, tmp_path, monkeypatch):
        path = make_file(tmp_path / "file")
        monkeypatch.setattr(os, "geteuid", lambda: os.lstat(path).st_uid + 1)
        with pytest.raises(Unauthorized, match=r"another user .*sudo chown"):
            security.open_private(path, os.O_RDONLY)

    def test_refusals_leave_no_descriptor_open(self, tmp_path):
        path = make_file(tmp_path / "file", 0o644)
        expected = os.open(os.devnull, os.O_RDONLY)
        os.close(expected)
        for _ in range(3):
            with pytest.raises(Unauthorized):
                security.open_private(path, os.O_RDONLY)
        found = os.open(os.devnull, os.O_RDONLY)
        os.close(found)
        assert found == expected


class TestKeys:
    def test_are_made_once_and_fit_together(self, data, umask):
        client = security.client_keys(data)
        broker = security.broker_keys(data)
        assert client == security.client_keys(data)
        assert client.server_public == broker.public == zmq.curve_public(broker.secret)
        assert client.public == zmq.curve_public(client.secret)
        assert broker.allowed_clients == {client.public}
        assert broker.public != client.public
        assert sorted(os.listdir(data)) == ["keys"]
        assert sorted(os.listdir(f"{data}/keys")) == list(KEY_FILES)
        assert mode(data) == mode(f"{data}/keys") == 0o700
        assert {mode(f"{data}/keys/{name}") for name in KEY_FILES} == {0o600}

    def test_both_readers_agree(self, data):
        client, broker = security.client_keys(data), security.broker_keys(data)
        theirs = {name: zmq.auth.load_certificate(f"{data}/keys/{name}") for name in KEY_FILES}
        assert theirs == {
            "broker.key": (broker.public, None),
            "broker.key_secret": (broker.public, broker.secret),
            "client.key": (client.public, None),
            "client.key_secret": (client.public, client.secret),
        }

    def test_show_no_secret(self, data):
        client, broker = security.client_keys(data), security.broker_keys(data)
        for keys in (client, broker, security.KeyPair(client.public, client.secret)):
            assert repr(client.secret)[2:-1] not in repr(keys)
            assert repr(broker.secret)[2:-1] not in repr(keys)
            assert "secret=…" in repr(keys)

    def test_threads_that_start_at_once_get_one_set(self, data):
        os.mkdir(data, 0o700)
        start = threading.Barrier(12)
        found: list[security.ClientKeys] = []

        def run() -> None:
            start.wait()
            found.append(security.client_keys(data))

        threads = [threading.Thread(target=run) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 12
        assert len(set(found)) == 1
        assert os.listdir(data) == ["keys"]

    @pytest.mark.slow
    def test_processes_that_start_at_once_get_one_set(self, data):
        code = "import sys; from zmqbus.security.keys import client_keys; print(client_keys(sys.argv[1])[1].hex())"
        running = [
            subprocess.Popen([sys.executable, "-c", code, data], stdout=subprocess.PIPE, text=True) for _ in range(30)
        ]
        printed = [process.communicate(timeout=90)[0] for process in running]
        assert [process.returncode for process in running] == [0] * 30
        assert len(set(printed)) == 1
        assert os.listdir(data) == ["keys"]

    def test_loser_of_the_race_uses_the_winners(self, data, monkeypatch):
        os.mkdir(data, 0o700)
        real_rename = os.rename
        winner: list[security.ClientKeys] = []

        def rename(source: str, target: str) -> None:
            monkeypatch.setattr(os, "rename", real_rename)
            winner.append(security.client_keys(data))
            real_rename(source, target)

        monkeypatch.setattr(os, "rename", rename)
        assert security.client_keys(data) == winner[0]
        assert os.listdir(data) == ["keys"]

    @pytest.mark.parametrize("name", KEY_FILES)
    def test_missing_file_is_not_made_anew(self, data, name):
        security.client_keys(data)
        os.unlink(f"{data}/keys/{name}")
        with pytest.raises(Unauthorized, match=f"{name} is missing; stop the broker .*rm -r '{data}/keys'"):
            security.broker_keys(data)
        assert name not in os.listdir(f"{data}/keys")

    def test_empty_directory_is_not_filled(self, data):
        os.makedirs(f"{data}/keys", 0o700)
        os.chmod(data, 0o700)
        with pytest.raises(Unauthorized, match="is missing"):
            security.client_keys(data)

    @pytest.mark.parametrize("name", KEY_FILES)
    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: content[: len(content) // 2],
            lambda content: content[:-10],
            lambda content: content.replace(b"public-key", b"public_key"),
            lambda content: b"\0" * len(content),
            lambda content: content * 50,
            lambda content: re.sub(rb'public-key = ".', b'public-key = "~', content),
            lambda content: re.sub(rb'public-key = ".{5}', b'public-key = "#####', content),
            lambda content: re.sub(rb'public-key = ".{5}', b'public-key = "', content),
        ],
        ids=["empty", "half", "cut", "field", "zeros", "long", "character", "group", "short"],
    )
    def test_damage_is_told_with_its_cure(self, data, name, damage):
        security.client_keys(data)
        path = f"{data}/keys/{name}"
        with open(path, "r+b") as file:
            content = damage(file.read())
            file.seek(0)
            file.truncate()
            file.write(content)
        with pytest.raises(Unauthorized, match=rf"{name} .*; stop the broker .* run: rm -r '{data}/keys' "):
            security.broker_keys(data)

    def test_cure_works(self, data):
        before = security.client_keys(data)
        os.unlink(f"{data}/keys/broker.key")
        with pytest.raises(Unauthorized) as error:
            security.client_keys(data)
        command = str(error.value).split("run: ", 1)[1].split(" — ", 1)[0]
        subprocess.run(command, shell=True, check=True)
        assert security.client_keys(data) != before

    @pytest.mark.parametrize("who", ["broker", "client"])
    def test_keys_of_two_sets_are_told_apart(self, data, tmp_path, who):
        other = str(tmp_path / "other")
        security.client_keys(data)
        security.client_keys(other)
        os.rename(f"{other}/keys/{who}.key", f"{data}/keys/{who}.key")
        with pytest.raises(Unauthorized, match=f"{who}.key does not belong to {who}.key_secret"):
            security.broker_keys(data)

    def test_one_wrong_character_in_a_secret_is_noticed(self, data):
        keys = security.client_keys(data)
        wrong = (b"0" if keys.secret[:1] != b"0" else b"1") + keys.secret[1:]
        with open(f"{data}/keys/client.key_secret", "r+b") as file:
            content = file.read().replace(keys.secret, wrong)
            file.seek(0)
            file.write(content)
        with pytest.raises(Unauthorized, match=r"client\.key_secret holds two keys"):
            security.client_keys(data)

    @pytest.mark.parametrize("name", KEY_FILES)
    @pytest.mark.parametrize("fault", ["others", "link"])
    def test_unsafe_file_is_refused(self, data, name, fault, tmp_path):
        security.client_keys(data)
        path = f"{data}/keys/{name}"
        if fault == "others":
            os.chmod(path, 0o640)
        else:
            os.rename(path, tmp_path / "moved")
            os.symlink(tmp_path / "moved", path)
        with pytest.raises(Unauthorized, match="chmod 600" if fault == "others" else "symbolic link"):
            security.broker_keys(data)

    def test_unsafe_directory_is_refused(self, data):
        security.client_keys(data)
        os.chmod(f"{data}/keys", 0o755)
        with pytest.raises(Unauthorized, match=f"chmod 700 '{data}/keys'"):
            security.client_keys(data)

    def test_linked_directory_is_refused(self, data, tmp_path):
        security.client_keys(data)
        os.rename(f"{data}/keys", tmp_path / "moved")
        os.symlink(tmp_path / "moved", f"{data}/keys")
        with pytest.raises(Unauthorized, match="symbolic link"):
            security.client_keys(data)

    def test_unwritable_directory_is_told(self, data, monkeypatch):
        def denied(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        os.mkdir(data, 0o700)
        monkeypatch.setattr(os, "rename", denied)
        with pytest.raises(BrokerUnavailable, match=f"no keys can be made in {data}: Read-only"):
            security.client_keys(data)
        assert os.listdir(data) == []

    def test_hot_path_imports_nothing_costly(self, data):
        security.client_keys(data)
        code = (
            "import sys; from zmqbus.security.keys import client_keys; before = set(sys.modules);"
            "assert 'zmq' not in before;"
            "client_keys(sys.argv[1]); print(' '.join({'zmq.auth', 'logging', 'asyncio', 'pathlib', 'dataclasses',"
            "'subprocess', 'shutil', 'hashlib', 'socket', 'psutil', 'tempfile'} & (set(sys.modules) - before)))"
        )
        # zmq's own imports are not this module's doing.
        plain = "import sys, zmq; print(' '.join(sys.modules))"
        used = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=True).stdout
        zmqs = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, check=True).stdout
        assert set(used.split()) <= set(zmqs.split())


RAW = bytes(range(32))
ALLOWED = frozenset([z85.encode(RAW)])
REQUEST = [b"1.0", b"7", b"zmqbus", b"127.0.0.1", b"", b"CURVE", RAW]


class TestZapReply:
    def test_lets_the_user_in(self):
        assert security.zap_reply(REQUEST, ALLOWED) == [b"1.0", b"7", b"200", b"OK", b"user", b""]

    @pytest.mark.parametrize(
        ("position", "value", "status"),
        [
            (0, b"2.0", b"500"),
            (3, b"10.0.0.1", b"400"),
            (3, b"::1", b"400"),
            (3, b"", b"400"),
            (3, b"1127.0.0.1", b"400"),
            (5, b"NULL", b"400"),
            (5, b"PLAIN", b"400"),
            (5, b"GSSAPI", b"400"),
            (5, b"curve", b"400"),
            (6, bytes(32), b"400"),
            (6, RAW[:31], b"500"),
            (6, b"", b"500"),
            (6, z85.encode(RAW), b"500"),
        ],
    )
    def test_refuses_everything_else(self, position, value, status):
        request = [*REQUEST[:position], value, *REQUEST[position + 1 :]]
        answer = security.zap_reply(request, ALLOWED)
        assert answer is not None
        assert (answer[:3], len(answer), answer[4]) == ([b"1.0", b"7", status], 6, b"")
        assert answer[3]

    def test_refuses_everyone_where_nobody_is_allowed(self):
        assert security.zap_reply(REQUEST, frozenset()) != security.zap_reply(REQUEST, ALLOWED)

    @pytest.mark.parametrize("length", range(6))
    def test_truncated_request_gets_500_or_nothing(self, length):
        answer = security.zap_reply(REQUEST[:length], ALLOWED)
        assert answer is None if length < 2 else answer is not None and answer[2] == b"500"

    def test_mechanisms_without_credentials(self):
        assert security.zap_reply([*REQUEST[:5], b"NULL"], ALLOWED)[2] == b"400"  # type: ignore[index]
        assert security.zap_reply(REQUEST[:6], ALLOWED)[2] == b"500"  # type: ignore[index]
        assert security.zap_reply([*REQUEST, b"more"], ALLOWED)[2] == b"500"  # type: ignore[index]

    @given(
        st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(REQUEST)), max_size=9),
        st.frozensets(st.binary(min_size=40, max_size=40), max_size=2),
    )
    def test_lets_in_nobody_by_accident(self, frames, others):
        answer = security.zap_reply(frames, ALLOWED | others)
        if answer is not None and answer[2] == b"200":
            assert frames[0] == b"1.0" and frames[5] == b"CURVE" and frames[3].startswith(b"127.")
            assert z85.encode(frames[6]) in ALLOWED | others and len(frames) == 7


class Bus:
    """A server with the broker's keys and its ZAP handler, polled as the broker would."""

    def __init__(self, data: str, *, handler: bool = True) -> None:
        self.keys = security.broker_keys(data)
        self.client_keys = security.client_keys(data)
        self.context: zmq.Context = zmq.Context()
        allowed = self.keys.allowed_clients
        self.zap: security.ZapHandler | None = security.ZapHandler(self.context, allowed) if handler else None
        self.server = self.context.socket(zmq.ROUTER)
        security.curve_server(self.server, self.keys)
        self.monitor = self.server.get_monitor_socket()
        port = self.server.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.clients: list[zmq.Socket] = []

    def client(self, keys: security.ClientKeys | None = None, context: zmq.Context | None = None) -> zmq.Socket:
        """A client that has something to say as soon as it is let in."""
        client = (context or self.context).socket(zmq.DEALER)
        self.clients.append(client)
        client.linger = 0
        if keys is not None:
            security.curve_client(client, keys)
        return client

    def hears(self, *, refusals: int = 0) -> bool:
        """Polls as the broker does, until somebody gets through (True) or so many handshakes have failed (False)."""
        poller = zmq.Poller()
        poller.register(self.server, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        if self.zap is not None:
            for one in self.zap.sockets:
                poller.register(one, zmq.POLLIN)
        deadline = time.monotonic() + DEADLINE_S
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(math.ceil(left * 1000)))
            if self.zap is not None and not ready.keys().isdisjoint(self.zap.sockets):
                self.zap.handle()
            if self.server in ready:
                self.server.recv_multipart()
                return True
            if self.monitor in ready:
                event = zmq.utils.monitor.recv_monitor_message(self.monitor)["event"]
                if refusals:  # else somebody else's handshake may well fail
                    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
                    refusals -= event in FAILURES
                    if not refusals:
                        return False
        raise AssertionError("neither let in nor refused")

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.zap is not None:
            self.zap.close()
        self.server.disable_monitor()
        self.monitor.close(0)
        self.server.close(0)
        self.context.term()


@pytest.fixture
def bus(data) -> Iterator[Bus]:
    bus = Bus(data)
    yield bus
    bus.close()


def fresh_pair() -> tuple[bytes, bytes]:
    return zmq.curve_keypair()


class TestHandshakes:
    def test_the_users_client_gets_in(self, bus):
        client = bus.client(bus.client_keys)
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert bus.hears()
        assert bus.zap.refused == 0

    def test_client_with_another_key_is_refused(self, bus):
        public, secret = fresh_pair()
        client = bus.client(security.ClientKeys(bus.keys.public, public, secret))
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.hears(refusals=1)
        assert bus.zap.refused == 1
        assert "1 handshakes refused" in repr(bus.zap)

    def test_client_that_expects_another_broker_tells_it_nothing(self, bus):
        client = bus.client(bus.client_keys._replace(server_public=fresh_pair()[0]))
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.hears(refusals=1)

    def test_client_without_a_mechanism_is_refused(self, bus):
        client = bus.client()
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.hears(refusals=1)

    def test_client_with_a_password_is_refused(self, bus):
        client = bus.client()
        client.plain_username, client.plain_password = b"user", b"secret"
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert not bus.hears(refusals=1)

    def test_junk_costs_nobody_else(self, bus):
        port = int(bus.endpoint.rsplit(":", 1)[1])
        with plain_socket.create_connection(("127.0.0.1", port), DEADLINE_S) as junk:
            junk.sendall(os.urandom(10_000))
            with plain_socket.create_connection(("127.0.0.1", port), DEADLINE_S) as half:
                half.sendall(b"\xff\0\0\0\0\0\0\0\1\x7f\3")
                client = bus.client(bus.client_keys)
                client.connect(bus.endpoint)
                client.send(b"hello")
                assert bus.hears()

    def test_nobody_gets_in_without_a_handler(self, data):
        with contextlib.closing(Bus(data, handler=False)) as bus:
            client = bus.client(bus.client_keys)
            client.connect(bus.endpoint)
            client.send(b"hello")
            assert not bus.hears(refusals=1)

    def test_handler_survives_nonsense_from_inside(self, bus):
        asker = bus.context.socket(zmq.DEALER)
        bus.clients.append(asker)
        asker.linger = 0
        asker.connect(security.ZAP_ENDPOINT)
        asker.send_multipart([b"no", b"delimiter"])
        asker.send_multipart([b"", b"1.0"])
        asker.send_multipart([b"", b"1.0", b"9", b"", b"127.0.0.1", b"", b"NULL"])
        while bus.zap.refused < 3:
            assert bus.zap.socket.poll(DEADLINE_S * 1000)
            bus.zap.handle()
        assert asker.poll(DEADLINE_S * 1000)
        assert asker.recv_multipart() == [b"", b"1.0", b"9", b"400", b"only CURVE is spoken here", b"", b""]

    def test_flood_is_taken_in_portions(self, bus, monkeypatch):
        monkeypatch.setattr(security, "MAX_HANDSHAKES", 5)
        asker = bus.context.socket(zmq.DEALER)
        bus.clients.append(asker)
        asker.linger = 0
        asker.connect(security.ZAP_ENDPOINT)
        for number in range(12):
            asker.send_multipart([b"", *REQUEST[:1], b"%d" % number, *REQUEST[2:]])
        assert [bus.zap.handle() for _ in range(4)] == [5, 5, 2, 0]

    def test_second_handler_leaves_nothing_behind(self, bus, monkeypatch):
        closed: list[zmq.Socket] = []
        monkeypatch.setattr(zmq.Socket, "close", lambda self, linger=None: closed.append(self))
        with pytest.raises(zmq.ZMQError) as error:
            security.ZapHandler(bus.context, frozenset())
        # Not by the garbage collector: the error still holds the frame that holds the socket.
        assert error.value.errno == zmq.EADDRINUSE
        assert len(closed) == 1
        monkeypatch.undo()
        closed[0].close()


class TestRenewal:
    """The handler's socket is replaced, and whoever has been let in stays in."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch) -> None:
        monkeypatch.setattr(security, "RENEW_AFTER", 1)

    def enter(self, bus: Bus) -> zmq.Socket:
        client = bus.client(bus.client_keys)
        client.connect(bus.endpoint)
        client.send(b"hello")
        assert bus.hears()
        return client

    def test_those_who_are_in_stay_and_others_come_in(self, bus):
        old = bus.zap.socket
        first = self.enter(bus)
        assert bus.zap.renew(100.0)
        assert bus.zap.sockets == (bus.zap.socket, old) and bus.zap.socket is not old
        assert not bus.zap.renew(100.0)  # whoever has found the old one has time
        assert bus.zap.renew(100.0 + 2 * security.RETIRED_S)
        assert old.closed and bus.zap.sockets == (bus.zap.socket,)
        self.enter(bus)
        first.send(b"still here")
        assert bus.hears()
        assert bus.zap.refused == 0

    def test_strangers_are_refused_as_before(self, bus):
        self.enter(bus)
        assert bus.zap.renew(0.0)
        public, secret = fresh_pair()
        client = bus.client(security.ClientKeys(bus.keys.public, public, secret))
        client.connect(bus.endpoint)
        client.send(b"hello")
        while bus.zap.refused == 0:
            assert bus.zap.socket.poll(DEADLINE_S * 1000)
            bus.zap.handle()
        assert not bus.server.poll(0)

    def test_whoever_asked_the_old_one_is_answered_by_it(self, bus):
        asker = bus.context.socket(zmq.DEALER)
        bus.clients.append(asker)
        asker.linger = 0
        asker.connect(security.ZAP_ENDPOINT)
        self.enter(bus)
        assert bus.zap.renew(0.0)
        retired = bus.zap.sockets[1]
        asker.send_multipart([b"", *REQUEST])
        assert retired.poll(DEADLINE_S * 1000)
        assert bus.zap.handle() == 1
        assert asker.poll(DEADLINE_S * 1000) and asker.recv_multipart()[2] == b"7"
        asker.send_multipart([b"", *REQUEST])
        assert retired.poll(DEADLINE_S * 1000)
        assert not bus.zap.renew(10.0)  # it answers this one, and waits again
        assert asker.poll(DEADLINE_S * 1000) and asker.recv_multipart()[2] == b"7"
        assert not bus.zap.renew(10.0 + security.RETIRED_S / 2)
        assert bus.zap.renew(10.0 + 2 * security.RETIRED_S) and retired.closed

    def test_not_before_it_has_answered_many(self, bus, monkeypatch):
        monkeypatch.setattr(security, "RENEW_AFTER", 2)
        self.enter(bus)
        assert not bus.zap.renew(0.0)
        self.enter(bus)
        assert bus.zap.renew(0.0)

    def test_never_where_a_missing_handler_would_let_all_in(self, data, monkeypatch):
        """Between the old one and the new there is none for a moment."""
        monkeypatch.setattr(security, "_enforces_domain", lambda socket: False)
        with contextlib.closing(Bus(data)) as bus:
            self.enter(bus)
            assert bus.zap is not None and not bus.zap.renew(0.0)

    def test_without_a_socket_left_the_old_one_goes_on(self, bus, monkeypatch):
        self.enter(bus)

        def fail(*_: object) -> None:
            raise zmq.ZMQError(errno.EMFILE)

        with monkeypatch.context() as full:
            full.setattr(bus.zap, "_open", fail)
            assert not bus.zap.renew(0.0)
        self.enter(bus)
        assert bus.zap.renew(0.0)
