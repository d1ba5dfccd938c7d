"""The life of a broker: election, detached process, crashes, idle shutdown, pid file."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

from tests.real.conftest import DEADLINE_S, Bus, ListenerProcess, has_ended, wait_until
from zmqbus.security.keys import broker_keys, client_keys, curve_client
from zmqbus.security.zap import ZapHandler, curve_server
from zmqbus.wire import codec, verbs

pytestmark = pytest.mark.slow


def brokers(bus: Bus) -> list[psutil.Process]:
    """The broker processes of this data directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "zmqbus.broker.shell.daemon" not in line and "--foreground" not in line:
            continue
        try:
            if process.environ().get("INTER_SESSION_DATA_DIR") == str(bus.data_dir):
                found.append(process)
        except psutil.Error:
            continue
    return found


def broker(bus: Bus) -> psutil.Process:
    """Waits for the broker's pid file; returns its process."""
    pid = wait_until(bus.broker_pid, "a broker has a pid file")
    return psutil.Process(pid)


def pid_file(bus: Bus) -> Path:
    return bus.data_dir / f"server.{bus.port}.pid"


def replaced(bus: Bus, pid: int) -> None:
    """Waits until another broker than `pid` has a pid file."""
    wait_until(lambda: bus.broker_pid() not in (None, pid), "there is a new broker")


def exchange(first: ListenerProcess, second: ListenerProcess, text: str) -> None:
    """Exchanges a message in each direction."""
    for sender, receiver in ((first, second), (second, first)):
        sender.bus.deliver(receiver.name, f"{text} for {receiver.name}", owner=sender)
        receiver.wait_message(f"{text} for {receiver.name}")


# --- the election


def test_thirty_listeners_at_once_get_one_broker(bus):
    listeners = [bus.listener(f"s{number}", connected=False) for number in range(30)]
    for listener in listeners:
        listener.wait_connected(4 * DEADLINE_S)
    wait_until(lambda: len(brokers(bus)) == 1, "the losers of the election leave")
    assert {row["name"] for row in bus.list()} == {f"s{number}" for number in range(30)}
    assert brokers(bus)[0].pid == bus.broker_pid()
    assert all(not listener.lines for listener in listeners)
    bus.deliver("s29", "hello", owner=listeners[0])
    listeners[29].wait_message("hello")


def test_thirty_commands_at_once_get_one_broker_and_one_set_of_keys(bus):
    commands = [bus.popen("list.py", "--json", owner=bus.stranger) for _ in range(30)]
    for command in commands:
        out, err = command.communicate(timeout=4 * DEADLINE_S)
        assert (command.returncode, out, err) == (0, b"[]\n", b"")
    wait_until(lambda: len(brokers(bus)) == 1, "the losers of the election leave")
    assert sorted(path.name for path in (bus.data_dir / "keys").iterdir()) == [
        "broker.key",
        "broker.key_secret",
        "client.key",
        "client.key_secret",
    ]
    assert not list(bus.data_dir.glob("keys.new-*"))


def test_second_port_on_one_data_directory_is_refused(bus, new_port):
    """A second broker on another port is refused, with the port of the first."""
    bus.listener("auth")
    other = str(new_port())
    for done in (
        bus.zmqbus("broker", "--port", other),
        bus.zmqbus("broker", "--foreground", "--port", other),
        bus.run("list.py", "--port", other),
        bus.send("--to", "auth", "--text", "x", "--as", "me", "--port", other),
    ):
        assert done.returncode == 1, done
        assert done.stdout == ""
        assert done.stderr.startswith("error: broker_unavailable: ")
        assert f"serves port {bus.port}" in done.stderr
        assert f"--port {bus.port}" in done.stderr  # what to do
    listener = bus.listener("pay", "--port", other, connected=False)
    assert listener.wait_exit() == 1
    assert f"serves port {bus.port}" in listener.lines[-1]
    assert len(brokers(bus)) == 1


def test_second_broker_on_the_same_port_leaves_the_first_alone(bus):
    bus.listener("auth")
    first = bus.broker_pid()
    done = bus.zmqbus("broker")
    assert (done.returncode, done.stdout) == (0, f"broker serves port {bus.port} (pid {first})\n")
    done = bus.zmqbus("broker", "--foreground")
    assert done.returncode == 1
    assert done.stderr.startswith("error: broker_unavailable: ")
    assert [process.pid for process in brokers(bus)] == [first]


# --- crashes


def test_listeners_keep_ids_and_names_across_killed_brokers(bus):
    auth, pay = bus.listener("auth", label="Auth"), bus.listener("pay")
    before = {row["name"]: row["session_id"] for row in bus.list()}
    for round_ in range(3):
        killed = bus.signal_broker(signal.SIGKILL)
        replaced(bus, killed)
        wait_until(lambda: set(bus.states().items()) == {("auth", "live"), ("pay", "live")}, "both are back")
        assert {row["name"]: row["session_id"] for row in bus.list()} == before
        exchange(auth, pay, f"round {round_}")
    assert len(brokers(bus)) == 1
    assert all(line.startswith("[inter-session msg=") for line in auth.lines + pay.lines)
    assert next(row["label"] for row in bus.list() if row["name"] == "auth") == "Auth"


def test_terminated_broker_is_replaced_while_listeners_need_one(bus):
    auth, pay = bus.listener("auth"), bus.listener("pay")
    ended = broker(bus)
    ended.send_signal(signal.SIGTERM)
    wait_until(lambda: has_ended(ended), "it ends")
    replaced(bus, ended.pid)
    exchange(auth, pay, "after")


def test_message_sent_while_the_broker_is_dead_arrives_once(bus):
    auth, pay = bus.listener("auth"), bus.listener("pay")
    bus.signal_broker(signal.SIGKILL)
    done = bus.send("--to", "pay", "--text", "over the gap", owner=auth)
    assert done.returncode == 0 or "unknown_peer" in done.stderr, done
    if done.returncode == 0:
        pay.wait_message("over the gap")
    bus.wait_state("pay", "live")
    bus.deliver("pay", "and on", owner=auth)
    pay.wait_message("and on")
    assert len([line for line in pay.lines if "over the gap" in line]) == (done.returncode == 0)


# --- the pid file


def test_pid_file_is_private_and_removed_at_the_end(bus):
    bus.listener("auth").stop()
    process = broker(bus)
    assert pid_file(bus).read_text() == str(process.pid)
    assert pid_file(bus).stat().st_mode & 0o777 == 0o600
    done = bus.zmqbus("broker", "--stop")
    assert (done.returncode, done.stdout) == (0, f"broker (pid {process.pid}) stopped\n")
    assert has_ended(process)
    assert not pid_file(bus).exists()
    done = bus.zmqbus("broker", "--stop")
    assert (done.returncode, done.stdout) == (0, f"no broker runs on port {bus.port}\n")
    done = bus.zmqbus("broker", "--status")
    assert (done.returncode, done.stdout) == (1, f"no broker runs on port {bus.port}\n")


def test_stop_command_never_starts_another_broker(bus):
    """The command sees the broker's connection end, and must not take that for a crash."""
    for _ in range(4):
        assert bus.zmqbus("broker").returncode == 0
        assert bus.zmqbus("broker", "--stop").returncode == 0
        assert brokers(bus) == []


def dead_pid() -> str:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        return str(process.pid)


@pytest.mark.parametrize("content", ["dead", "reused", "junk"])  # more of them: system/test_pidfile.py
def test_stale_pid_file_is_replaced(bus, content):
    path = pid_file(bus)
    text = {"dead": dead_pid, "reused": lambda: str(bus.owner().pid)}.get(content, lambda: content)()
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    auth, pay = bus.listener("auth"), bus.listener("pay")
    exchange(auth, pay, "hello")
    assert pid_file(bus).read_text() == str(brokers(bus)[0].pid)


def test_stale_pid_file_of_another_port_is_ignored(bus, new_port):
    stale = bus.data_dir / f"server.{new_port()}.pid"
    stale.write_text(dead_pid())
    stale.chmod(0o600)
    bus.listener("auth")
    assert len(brokers(bus)) == 1


# --- idleness


def test_idle_broker_ends_and_the_next_command_starts_another(bus):
    done = bus.zmqbus("broker", "--idle-shutdown-minutes", "0.01")
    assert done.returncode == 0, done
    wait_until(lambda: not pid_file(bus).exists(), "the broker ends by itself")
    wait_until(lambda: not brokers(bus), "its process is gone")
    assert "idle" in (bus.data_dir / "broker.log").read_text()
    assert bus.list() == []


def test_broker_with_a_connected_session_is_not_idle(bus):
    auth = bus.listener("auth", "--idle-shutdown-minutes", "0.01")
    process = broker(bus)
    for number in range(5):  # each takes a good part of the idle time, and none starts another broker
        bus.deliver("auth", f"message {number}")
        auth.wait_message(f"message {number}")
    assert bus.broker_pid() == process.pid
    auth.stop()
    wait_until(lambda: has_ended(process), "the broker ends when the last one has left")


def test_zero_idle_minutes_mean_never(bus):
    assert bus.zmqbus("broker", "--idle-shutdown-minutes", "0").returncode == 0
    first = bus.broker_pid()
    bus.listener("auth").stop()
    assert bus.zmqbus("broker", "--status").returncode == 0
    assert bus.broker_pid() == first


# --- the process


def test_broker_is_detached_from_its_starter(bus):
    """It has a session of its own and no terminal, and survives the death of its starter's process group."""
    starter = bus.popen("client.py", "--name", "auth", owner=bus.owner(), start_new_session=True)
    process = broker(bus)
    assert os.getsid(process.pid) != os.getsid(starter.pid)
    assert os.getpgid(process.pid) != os.getpgid(starter.pid)
    assert process.terminal() is None
    assert process.ppid() != starter.pid
    assert process.cwd() == "/"
    descriptors = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)}
    assert descriptors == {os.devnull}
    wait_until(lambda: bus.states().get("auth") == "live", "its starter is connected")
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        os.killpg(starter.pid, signum)
    starter.wait(DEADLINE_S)
    bus.wait_state("auth", "away")
    assert bus.broker_pid() == process.pid
    assert not has_ended(process)


def test_broker_holds_no_pipe_of_its_starter(bus):
    """A harness waits for the end of a pipe, which a broker that inherited it would hold open."""
    command = bus.popen("list.py", owner=bus.stranger)
    out, err = command.communicate(timeout=DEADLINE_S)
    assert (out, err) == (b"no sessions connected\n", b"")
    assert not has_ended(broker(bus))


def test_open_file_limit_is_raised_to_the_hard_limit(bus):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, 4096)
    starter = bus.popen(
        "list.py",
        owner=bus.stranger,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
    )
    starter.communicate(timeout=DEADLINE_S)
    assert starter.returncode == 0
    assert broker(bus).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)


def test_broker_log_is_private_and_rotated(bus):
    log = bus.data_dir / "broker.log"
    log.write_bytes(b"x" * (1024 * 1024))
    log.chmod(0o600)
    bus.listener("auth")
    assert (bus.data_dir / "broker.log.1").stat().st_size == 1024 * 1024
    assert f"serves port {bus.port}" in log.read_text()
    for path in bus.data_dir.glob("broker.log*"):
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_every_file_is_private_under_an_open_umask(bus):
    starter = bus.popen("client.py", "--name", "auth", owner=bus.owner(), preexec_fn=lambda: os.umask(0))
    wait_until(lambda: bus.states().get("auth") == "live", "it is connected")
    bus.deliver("auth", "hello")
    open_to_others = [
        str(path.relative_to(bus.data_dir))
        for path in [bus.data_dir, *bus.data_dir.rglob("*")]
        if path.lstat().st_mode & 0o077
    ]
    assert open_to_others == []
    starter.terminate()
    starter.wait(DEADLINE_S)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_foreground_broker_ends_on_signal(bus, signum):
    process = bus.popen("zmqbus", "broker", "--foreground", owner=bus.stranger)
    assert wait_until(bus.broker_pid, "it serves") == process.pid
    auth, pay = bus.listener("auth"), bus.listener("pay")
    exchange(auth, pay, "hello")
    auth.stop()
    pay.stop()
    process.send_signal(signum)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert f"serves port {bus.port}".encode() in err
    assert not pid_file(bus).exists()


# --- what does not go well


def test_missing_package_of_the_broker_is_reported(bus, tmp_path):
    """The listener has its packages, but the broker that it starts has not, as in a broken venv."""
    from zmqbus.client import launch
    from zmqbus.errors import BrokerUnavailable
    from zmqbus.settings import load

    settings = load({"port": str(bus.port)})
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'zmq'\" >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(script))
        with pytest.raises(BrokerUnavailable, match="No module named 'zmq'") as caught:
            launch.launch(settings)
        assert "zmqbus broker --foreground" in str(caught.value)
        patch.setattr(sys, "executable", str(tmp_path / "missing"))
        with pytest.raises(BrokerUnavailable, match=r"cannot start a broker with .*missing"):
            launch.launch(settings)


def test_data_directory_that_cannot_be_made_is_reported_with_a_cure(bus, tmp_path):
    """Not even root can make a directory below a file."""
    (tmp_path / "file").write_text("")
    env = {"INTER_SESSION_DATA_DIR": str(tmp_path / "file" / "data")}
    for done in (bus.run("list.py", env=env), bus.send("--to", "x", "--text", "x", "--as", "me", env=env)):
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert "INTER_SESSION_DATA_DIR" in done.stderr
        assert "Traceback" not in done.stderr
    listener = bus.listener("auth", env=env, connected=False)
    assert listener.wait_exit() == 1
    assert "INTER_SESSION_DATA_DIR" in listener.lines[-1]
    assert listener.errors == []


class FakeBroker:
    """A broker of another release: the right keys, and a thread that gives every client the same answer."""

    def __init__(self, bus: Bus, answer: tuple[object, ...]) -> None:
        self._bus = bus
        self._stopped = threading.Event()
        self._ready = threading.Event()
        self._answer = answer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        lock = os.open(self._bus.data_dir, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)  # the holder of the lock is the broker
        keys = broker_keys(str(self._bus.data_dir))
        zap = ZapHandler(context, keys.allowed_clients)
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        curve_server(router, keys)
        router.bind(f"tcp://127.0.0.1:{self._bus.port}")
        pid_file(self._bus).write_text(str(os.getpid()))
        pid_file(self._bus).chmod(0o600)
        self._ready.set()
        while not self._stopped.is_set():
            zap.handle()
            if router.poll(10):
                route, *_ = router.recv_multipart()
                router.send_multipart([route, msgpack.packb([self._answer])])
        router.close()
        zap.close()
        context.term()
        pid_file(self._bus).unlink()
        os.close(lock)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()


@pytest.fixture
def fake_broker(bus: Bus) -> Iterator[Callable[..., FakeBroker]]:
    made: list[FakeBroker] = []

    def make(*answer: object) -> FakeBroker:
        made.append(FakeBroker(bus, answer))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


def test_broker_of_another_protocol_is_a_clear_error(bus, fake_broker):
    fake_broker(
        33,
        "hello",
        "broker_unavailable",
        "this client speaks protocol 1, the broker speaks 7; end the older of the two",
    )
    for done in (bus.run("list.py"), bus.send("--to", "x", "--text", "x", "--as", "me")):
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert "speaks 7; end the older of the two" in done.stderr
    listener = bus.listener("auth", connected=False)
    assert listener.wait_exit() == 1
    assert "speaks 7; end the older of the two" in listener.lines[-1]


def test_client_of_another_protocol_is_refused_with_both_releases(bus):
    """The broker answers a HELLO of another version with both releases and the cure."""
    bus.listener("auth")
    keys = client_keys(str(bus.data_dir))
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        curve_client(dealer, keys)
        dealer.connect(f"tcp://127.0.0.1:{bus.port}")
        hello = verbs.Hello(7, "9.9.9", 4, None, None, None, None, "/", "/", 1, "1:1", (), (), None)
        dealer.send(msgpack.packb([(1, *hello)]))
        assert dealer.poll(int(DEADLINE_S * 1000))
        (refused,) = codec.Decoder(from_broker=True).decode(dealer.recv_multipart())
    assert isinstance(refused, verbs.Refused)
    assert (refused.ref, refused.code) == ("hello", "broker_unavailable")
    assert "release 9.9.9" in refused.text
    assert "zmqbus broker --stop" in refused.text


# --- a port that is not ours


class Stranger:
    """Another program on the port: silent, or with a greeting of its own."""

    def __init__(self, port: int, saying: bytes | None) -> None:
        self._socket = socket.create_server(("127.0.0.1", port), backlog=100)
        self._saying = saying
        self._peers: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self._peers.append(peer)
            if self._saying is not None:
                try:
                    peer.sendall(self._saying)
                except OSError:
                    pass

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for peer in self._peers:
            peer.close()


class PlainRouter:
    """A ZeroMQ socket without CURVE."""

    def __init__(self, port: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(f"tcp://127.0.0.1:{port}")

    def close(self) -> None:
        self._router.close()
        self._context.term()


@pytest.mark.parametrize("kind", ["silent", "garbage", "zmq without CURVE"])
@pytest.mark.parametrize("stale", [False, True], ids=["no pid file", "pid file of a living process"])
def test_port_held_by_another_program_is_reported(bus, kind, stale):
    holder = (
        PlainRouter(bus.port)
        if kind == "zmq without CURVE"
        else Stranger(bus.port, b"220 mail.example.com ESMTP\r\n" * 100 if kind == "garbage" else None)
    )
    try:
        if stale:
            pid_file(bus).write_text(str(bus.owner().pid))
        held = f"port {bus.port} is held by another program; "
        for done in (bus.run("list.py"), bus.send("--to", "x", "--text", "x", "--as", "me")):
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"error: broker_unavailable: {held}")
        listener = bus.listener("auth", connected=False)
        assert listener.wait_exit() == 1
        assert len(listener.lines) == 1
        assert listener.lines[0].startswith(f"[inter-session] {held}")
        assert listener.errors == []
        wait_until(lambda: not brokers(bus), "what was started has ended")
    finally:
        holder.close()
    if stale:
        pid_file(bus).unlink()
    bus.listener("auth")  # the bus works once the port is free


def test_package_in_the_current_directory_is_not_run(bus, tmp_path):
    """Agents work in repositories of others, whose own `zmqbus` must not be run."""
    decoy = tmp_path / "zmqbus" / "broker"
    decoy.mkdir(parents=True)
    for package in (decoy.parent, decoy):
        (package / "__init__.py").write_text("")
    witness = tmp_path / "it-ran"
    (decoy / "daemon.py").write_text(f"open({str(witness)!r}, 'w')\n")
    for env in ({}, {"PYTHONPATH": "."}):
        done = bus.zmqbus("broker", cwd=tmp_path, env=env)
        assert (done.returncode, done.stderr) == (0, "") and not witness.exists()
        assert bus.zmqbus("broker", "--stop").returncode == 0
