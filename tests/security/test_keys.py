"""Keys: made once, read, and refused with a remedy where they are damaged or unsafe."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading

import pytest
import zmq
import zmq.auth
import zmq.utils.monitor

from zmqbus.errors import BrokerUnavailable, Unauthorized
from zmqbus.security.keys import ClientKeys, KeyPair, broker_keys, client_keys

KEY_FILES = ("broker.key", "broker.key_secret", "client.key", "client.key_secret")


def mode(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


class TestKeys:
    def test_one_matching_set_is_made(self, data, umask):
        client = client_keys(data)
        broker = broker_keys(data)
        assert client == client_keys(data)
        assert client.server_public == broker.public == zmq.curve_public(broker.secret)
        assert client.public == zmq.curve_public(client.secret)
        assert broker.allowed_clients == {client.public}
        assert broker.public != client.public
        assert sorted(os.listdir(data)) == ["keys"]
        assert sorted(os.listdir(f"{data}/keys")) == list(KEY_FILES)
        assert mode(data) == mode(f"{data}/keys") == 0o700
        assert {mode(f"{data}/keys/{name}") for name in KEY_FILES} == {0o600}

    def test_files_are_certificates_of_zmq_auth(self, data):
        client, broker = client_keys(data), broker_keys(data)
        theirs = {name: zmq.auth.load_certificate(f"{data}/keys/{name}") for name in KEY_FILES}
        assert theirs == {
            "broker.key": (broker.public, None),
            "broker.key_secret": (broker.public, broker.secret),
            "client.key": (client.public, None),
            "client.key_secret": (client.public, client.secret),
        }

    def test_repr_hides_secrets(self, data):
        client, broker = client_keys(data), broker_keys(data)
        for keys in (client, broker, KeyPair(client.public, client.secret)):
            assert repr(client.secret)[2:-1] not in repr(keys)
            assert repr(broker.secret)[2:-1] not in repr(keys)
            assert "secret=…" in repr(keys)

    def test_concurrent_threads_get_one_set(self, data):
        os.mkdir(data, 0o700)
        start = threading.Barrier(12)
        found: list[ClientKeys] = []

        def run() -> None:
            start.wait()
            found.append(client_keys(data))

        threads = [threading.Thread(target=run) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 12
        assert len(set(found)) == 1
        assert os.listdir(data) == ["keys"]

    @pytest.mark.slow
    def test_concurrent_processes_get_one_set(self, data):
        code = "import sys; from zmqbus.security.keys import client_keys; print(client_keys(sys.argv[1])[1].hex())"
        running = [
            subprocess.Popen([sys.executable, "-c", code, data], stdout=subprocess.PIPE, text=True) for _ in range(30)
        ]
        printed = [process.communicate(timeout=90)[0] for process in running]
        assert [process.returncode for process in running] == [0] * 30
        assert len(set(printed)) == 1
        assert os.listdir(data) == ["keys"]

    def test_loser_of_the_race_uses_the_set_of_the_winner(self, data, monkeypatch):
        os.mkdir(data, 0o700)
        real_rename = os.rename
        winner: list[ClientKeys] = []

        def rename(source: str, target: str) -> None:
            monkeypatch.setattr(os, "rename", real_rename)
            winner.append(client_keys(data))
            real_rename(source, target)

        monkeypatch.setattr(os, "rename", rename)
        assert client_keys(data) == winner[0]
        assert os.listdir(data) == ["keys"]

    @pytest.mark.parametrize("name", KEY_FILES)
    def test_missing_file_is_not_replaced(self, data, name):
        client_keys(data)
        os.unlink(f"{data}/keys/{name}")
        with pytest.raises(Unauthorized, match=f"{name} is missing; stop the broker .*rm -r '{data}/keys'"):
            broker_keys(data)
        assert name not in os.listdir(f"{data}/keys")

    def test_empty_directory_is_not_filled(self, data):
        os.makedirs(f"{data}/keys", 0o700)
        os.chmod(data, 0o700)
        with pytest.raises(Unauthorized, match="is missing"):
            client_keys(data)

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
    def test_damage_is_reported_with_its_remedy(self, data, name, damage):
        client_keys(data)
        path = f"{data}/keys/{name}"
        with open(path, "r+b") as file:
            content = damage(file.read())
            file.seek(0)
            file.truncate()
            file.write(content)
        with pytest.raises(Unauthorized, match=rf"{name} .*; stop the broker .* run: rm -r '{data}/keys' "):
            broker_keys(data)

    def test_remedy_works(self, data):
        before = client_keys(data)
        os.unlink(f"{data}/keys/broker.key")
        with pytest.raises(Unauthorized) as error:
            client_keys(data)
        command = str(error.value).split("run: ", 1)[1].split(" — ", 1)[0]
        subprocess.run(command, shell=True, check=True)
        assert client_keys(data) != before

    @pytest.mark.parametrize("who", ["broker", "client"])
    def test_keys_of_two_sets_are_refused(self, data, tmp_path, who):
        other = str(tmp_path / "other")
        client_keys(data)
        client_keys(other)
        os.rename(f"{other}/keys/{who}.key", f"{data}/keys/{who}.key")
        with pytest.raises(Unauthorized, match=f"{who}.key does not belong to {who}.key_secret"):
            broker_keys(data)

    def test_wrong_character_in_a_secret_is_noticed(self, data):
        keys = client_keys(data)
        wrong = (b"0" if keys.secret[:1] != b"0" else b"1") + keys.secret[1:]
        with open(f"{data}/keys/client.key_secret", "r+b") as file:
            content = file.read().replace(keys.secret, wrong)
            file.seek(0)
            file.write(content)
        with pytest.raises(Unauthorized, match=r"client\.key_secret holds two keys"):
            client_keys(data)

    @pytest.mark.parametrize("name", KEY_FILES)
    @pytest.mark.parametrize("fault", ["others", "link"])
    def test_unsafe_file_is_refused(self, data, name, fault, tmp_path):
        client_keys(data)
        path = f"{data}/keys/{name}"
        if fault == "others":
            os.chmod(path, 0o640)
        else:
            os.rename(path, tmp_path / "moved")
            os.symlink(tmp_path / "moved", path)
        with pytest.raises(Unauthorized, match="chmod 600" if fault == "others" else "symbolic link"):
            broker_keys(data)

    def test_unsafe_directory_is_refused(self, data):
        client_keys(data)
        os.chmod(f"{data}/keys", 0o755)
        with pytest.raises(Unauthorized, match=f"chmod 700 '{data}/keys'"):
            client_keys(data)

    def test_linked_directory_is_refused(self, data, tmp_path):
        client_keys(data)
        os.rename(f"{data}/keys", tmp_path / "moved")
        os.symlink(tmp_path / "moved", f"{data}/keys")
        with pytest.raises(Unauthorized, match="symbolic link"):
            client_keys(data)

    def test_unwritable_directory_is_reported(self, data, monkeypatch):
        def denied(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        os.mkdir(data, 0o700)
        monkeypatch.setattr(os, "rename", denied)
        with pytest.raises(BrokerUnavailable, match=f"no keys can be made in {data}: Read-only"):
            client_keys(data)
        assert os.listdir(data) == []

    def test_hot_path_imports_nothing_costly(self, data):
        client_keys(data)
        code = (
            "import sys; from zmqbus.security.keys import client_keys; before = set(sys.modules);"
            "assert 'zmq' not in before;"
            "client_keys(sys.argv[1]); print(' '.join({'zmq.auth', 'logging', 'asyncio', 'pathlib', 'dataclasses',"
            "'subprocess', 'shutil', 'hashlib', 'socket', 'psutil', 'tempfile'} & (set(sys.modules) - before)))"
        )
        # Without the imports of zmq itself.
        plain = "import sys, zmq; print(' '.join(sys.modules))"
        used = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=True).stdout
        zmqs = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, check=True).stdout
        assert set(used.split()) <= set(zmqs.split())
