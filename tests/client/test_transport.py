"""The client's shell on real sockets, against a broker that the test plays itself."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
import zmq

from zmqbus.client import core, launch, locate
from zmqbus.client import transport as transport_module
from zmqbus.client.transport import Transport
from zmqbus.errors import BrokerUnavailable, PortHeld
from zmqbus.security.keys import broker_keys
from zmqbus.security.zap import ZapHandler, curve_server
from zmqbus.settings import Settings, load
from zmqbus.system.network import Network
from zmqbus.system.pidfile import Served
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role

DEADLINE_S = 90.0
PERSONA = core.Persona(
    role=Role.PROGRAM,
    session_id="11111111-1111-4111-8111-111111111111",
    token="token",
    name="auth",
    cwd="/",
    project="/p",
    topics=("t",),
    groups=("g",),
)


@pytest.fixture
def settings(data_dir: Path, free_port: int) -> Settings:
    return load({"port": str(free_port)})


class Broker:
    """What the test says in the broker's place."""

    def __init__(self, settings: Settings, pub_port: int) -> None:
        self.settings = settings
        self.pub_port = pub_port
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        keys = broker_keys(settings.data_dir)
        self.zap = ZapHandler(self.context, keys.allowed_clients)
        self.router = self.context.socket(zmq.ROUTER)
        self.publisher = self.context.socket(zmq.XPUB)
        for socket, port in ((self.router, settings.port), (self.publisher, pub_port)):
            socket.linger = 0
            curve_server(socket, keys)
            socket.bind(f"tcp://127.0.0.1:{port}")
        self.route = b""
        self.heard: list[Any] = []
        self.filters: list[bytes] = []
        self.decoder = codec.Decoder(from_broker=False)

    def turn(self) -> None:
        self.zap.handle()
        while self.router.poll(0):
            self.route, *frames = self.router.recv_multipart()
            self.heard += self.decoder.decode(frames)
        while self.publisher.poll(0):
            self.filters.append(self.publisher.recv())

    def say(self, *envelopes: verbs.Envelope) -> None:
        self.router.send_multipart([self.route, *codec.encode(envelopes)])

    def welcome(self, lease: str = "lease") -> None:
        version = verbs.VERSION
        self.say(verbs.Welcome(version, "0", "epoch", "sid", "auth", lease, 1, self.pub_port, 0, 0))

    def close(self) -> None:
        self.router.close()
        self.publisher.close()
        self.zap.close()
        self.context.term()


@pytest.fixture
def start_broker(settings: Settings, new_port: Callable[[], int]) -> Iterator[Callable[[], Broker]]:
    made: list[Broker] = []

    def start() -> Broker:
        made.append(Broker(settings, new_port()))
        return made[-1]

    yield start
    for broker in made:
        broker.close()


def served(settings: Settings) -> Served:
    """What a broker on the settings' port says of itself."""
    return Served(settings.port, 1, None, Network())


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Records the launches; none happens. There is a broker for all that `find_broker` says."""
    calls: list[Settings] = []
    monkeypatch.setattr(launch, "launch", calls.append)
    monkeypatch.setattr(locate, "find_broker", served)
    return calls


@pytest.fixture
def transport(settings: Settings) -> Iterator[Transport]:
    transport = Transport(settings, core.ClientCore(PERSONA, "0"))
    yield transport
    transport.close()


def until(condition: Callable[[], Any], transport: Transport, *brokers: Broker) -> list[core.Effect]:
    """Drives both sides until the condition holds; returns what the application was told."""
    told: list[core.Effect] = []
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, (transport, [broker.heard for broker in brokers])
        told += transport.pump(0.01)
        for broker in brokers:
            broker.turn()
    return told


def enter(transport: Transport, broker: Broker, lease: str = "lease") -> list[core.Effect]:
    until(lambda: broker.heard, transport, broker)
    assert isinstance(broker.heard.pop(), verbs.Hello)
    broker.welcome(lease)
    return until(lambda: transport.core.phase is core.Phase.READY, transport, broker)


def test_it_says_hello_and_subscribes_with_the_mark_at_the_end(transport, start_broker, launched):
    broker = start_broker()
    transport.open()
    told = enter(transport, broker)
    assert isinstance(told[-1], core.Welcomed)
    until(lambda: len(broker.filters) == 5, transport, broker)
    assert broker.filters[-1] == b"\1" + verbs.mark_channel("lease")
    assert {one[1:] for one in broker.filters[:-1]} == {b"*\0", b"/" + b"/p\0", b"#t\0", b"@auth\0"}
    assert launched == []


def test_it_finds_a_new_broker_by_itself_and_says_hello_again(transport, settings, start_broker, launched):
    broker = start_broker()
    transport.open()
    enter(transport, broker)
    transport.perform(transport.core.send(core.Outgoing("aaaaaaaaaa01", 0, "pay", 0, None, False, b"unconfirmed")))
    until(lambda: broker.heard, transport, broker)
    broker.close()
    until(lambda: transport.core.phase is core.Phase.OFFLINE, transport)
    second = start_broker()
    until(lambda: len(second.heard) >= 2, transport, second)
    assert [type(one).__name__ for one in second.heard] == ["Hello", "Send"]


@pytest.mark.parametrize("seen", ["both", "the loss only"])
def test_answer_received_with_the_loss_is_reported_before_a_launch(
    transport, start_broker, launched, monkeypatch, seen
):
    """Or `zmqbus broker --stop` would start the next one."""
    broker = start_broker()
    transport.open()
    enter(transport, broker)
    transport.perform(transport.core.request(verbs.Stop("s")))
    until(lambda: broker.heard, transport, broker)
    broker.router.linger = 1000
    broker.say(verbs.Done("s", "stopping"))
    broker.close()
    end_s = time.monotonic() + DEADLINE_S
    while not {transport._dealer, transport._monitor} <= dict(transport._poller.poll(10)).keys():
        assert time.monotonic() < end_s
    if seen == "the loss only":  # poll() looks at one socket after the other, and both events may come in between
        monkeypatch.setattr(transport, "_poller", SimpleNamespace(poll=lambda _: [(transport._monitor, zmq.POLLIN)]))
    assert transport.pump(0) == [core.Response("s", verbs.Done("s", "stopping"))]
    assert transport.core.phase is core.Phase.OFFLINE
    assert launched == []
    monkeypatch.setattr(locate, "find_broker", lambda _: None)
    transport.pump(0)
    assert len(launched) == 1  # the next call needs one


def test_what_it_cannot_read_is_passed_over(transport, start_broker, launched):
    """A verb of a newer broker, junk, and frames on the SUB that are no envelopes."""
    broker = start_broker()
    transport.open()
    enter(transport, broker)
    until(lambda: len(broker.filters) == 5, transport, broker)
    for junk in ([b"\xc1"], [msgpack.packb([[63, "new"]])], [msgpack.packb([[1]])], [b""]):
        broker.router.send_multipart([broker.route, *junk])
        broker.publisher.send_multipart([b"*\0", *junk])
    broker.publisher.send_multipart([b"*\0"])
    broker.say(verbs.Renamed("pay"))
    told = until(lambda: transport.core.persona.name == "pay", transport, broker)
    assert told == [core.Renamed("pay")]
    until(lambda: b"\0@auth\0" in broker.filters, transport, broker)
    assert b"\1@pay\0" in broker.filters


def test_without_a_broker_one_is_launched_first(transport, monkeypatch, launched, start_broker):
    monkeypatch.setattr(locate, "find_broker", lambda _: None)
    transport.open()
    assert len(launched) == 1
    enter(transport, start_broker())


def test_one_that_does_not_answer_is_launched_again_and_then_given_up_on(transport, launched, monkeypatch):
    """The pid file may be a dead one's, whatever it says."""
    monkeypatch.setattr(transport_module, "LOOK_S", 0.02)
    monkeypatch.setattr(transport_module, "INSIST_S", 0.1)
    monkeypatch.setattr(transport_module, "CONNECT_S", 0.1)
    transport.open()
    with pytest.raises(BrokerUnavailable, match=r"does not answer; see .*, or stop it"):
        until(lambda: False, transport)
    assert len(launched) == 1


def test_one_that_is_there_is_not_launched_while_it_is_slow(transport, launched, monkeypatch):
    """As in a storm of a thousand clients, each of which would start a process for nothing."""
    looks: list[int] = []

    def look(settings: Settings) -> Served:
        looks.append(1)
        return served(settings)

    monkeypatch.setattr(locate, "find_broker", look)
    monkeypatch.setattr(transport_module, "LOOK_S", 0.001)
    monkeypatch.setattr(transport_module, "INSIST_S", DEADLINE_S)
    transport.open()
    until(lambda: len(looks) > 5, transport)
    assert launched == []
    monkeypatch.setattr(locate, "find_broker", lambda _: None)
    until(lambda: launched, transport)  # it has gone


def test_one_that_has_shaken_hands_is_not_launched_and_given_up_on_if_it_says_nothing(
    transport, launched, start_broker, monkeypatch
):
    broker = start_broker()
    transport.open()
    until(lambda: broker.heard, transport, broker)
    monkeypatch.setattr(transport_module, "LOOK_S", 0.02)
    monkeypatch.setattr(transport_module, "INSIST_S", 0.02)
    monkeypatch.setattr(transport_module, "CONNECT_S", 0.1)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        until(lambda: False, transport, broker)
    assert launched == []


def test_one_that_only_looks_starts_no_broker(settings, launched, monkeypatch):
    """Neither where there is none, nor in the place of one that does not answer."""
    transport = Transport(settings, core.ClientCore(PERSONA, "0"), starts=False)
    with contextlib.closing(transport):
        monkeypatch.setattr(locate, "find_broker", lambda _: None)
        with pytest.raises(BrokerUnavailable, match=f"no broker runs on port {settings.port}; "):
            transport.open()
        monkeypatch.setattr(locate, "find_broker", served)
        monkeypatch.setattr(transport_module, "LOOK_S", 0.02)
        monkeypatch.setattr(transport_module, "CONNECT_S", 0.1)
        transport.open()
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            until(lambda: False, transport)
    assert launched == []


def test_one_that_only_looks_does_not_bring_back_a_broker_that_ends(settings, start_broker, launched, monkeypatch):
    """Otherwise every look would undo `zmqbus broker --stop`."""
    transport = Transport(settings, core.ClientCore(PERSONA, "0"), starts=False)
    with contextlib.closing(transport):
        broker = start_broker()
        transport.open()
        enter(transport, broker)
        transport.perform(transport.core.request(verbs.List("l", True, "")))
        broker.close()
        monkeypatch.setattr(locate, "find_broker", lambda _: None)
        with pytest.raises(BrokerUnavailable, match="no broker runs on port"):
            until(lambda: False, transport)
    assert launched == []


def test_a_patient_one_goes_on_for_ever_with_longer_and_longer_pauses(transport, monkeypatch):
    def fail(_: Settings) -> None:
        tries.append(time.monotonic())
        raise BrokerUnavailable("no room")

    tries: list[float] = []
    monkeypatch.setattr(launch, "launch", fail)
    monkeypatch.setattr(locate, "find_broker", lambda _: None)
    monkeypatch.setattr(transport_module, "BACKOFF_S", (0.01, 0.04))
    transport.patient = True
    transport._pause_s = 0.01
    transport.open()
    until(lambda: len(tries) >= 5, transport)
    assert transport._pause_s == 0.04


def test_a_patient_one_waits_for_a_port_that_is_held_and_says_so_once(transport, monkeypatch, settings):
    tries: list[int] = []

    def held(_: Settings) -> None:
        tries.append(1)
        raise PortHeld(settings.port, "python3 (pid 7)")

    monkeypatch.setattr(launch, "launch", held)
    monkeypatch.setattr(transport_module, "BACKOFF_S", (0.01, 0.02))
    transport.patient = True
    transport._pause_s = 0.01
    warned: list[str] = []
    transport._warn = warned.append
    transport.open()
    until(lambda: len(tries) >= 4, transport)
    assert [text.split("; ")[:2] for text in warned] == [
        [f"port {settings.port} is held by another program", "it is python3 (pid 7)"]
    ]
    assert warned[0].endswith("; this waits until the port is free")
    transport.patient = False
    with pytest.raises(PortHeld):
        until(lambda: False, transport)


def test_it_turns_to_the_port_on_which_the_next_broker_is(transport, settings, start_broker, monkeypatch):
    """Nobody chose the port: the data directory names another one, where the broker proves itself with its key."""
    transport._settings = settings._replace(port=1, port_chosen=False)
    transport.patient = True
    monkeypatch.setattr(launch, "launch", lambda _: "")
    monkeypatch.setattr(transport_module, "LOOK_S", 0.01)
    transport.open()
    assert transport.port == 1
    broker = start_broker()
    monkeypatch.setattr(locate, "find_broker", lambda _: served(settings))
    enter(transport, broker)
    assert transport.port == settings.port


def test_one_that_does_not_wait_goes_on_while_a_broker_starts(transport, settings, broker_says, start_broker, tmp_path):
    broker_says(
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo 'ready something was damaged' > /dev/fd/$report"
    )
    warned: list[str] = []
    transport._warn = warned.append
    transport.patient, transport.waits_to_launch = True, False
    transport.open()
    assert transport.pump(0) == []
    assert transport._launching is not None and transport.wait_s() <= launch.LOOK_S
    broker = start_broker()  # somebody else has started one
    enter(transport, broker)
    assert transport._launching is not None and not warned
    (tmp_path / "go").touch()
    until(lambda: transport._launching is None, transport, broker)
    assert warned == ["something was damaged"]


def test_client_that_does_not_wait_gets_the_reason_why_no_broker_started(transport, settings, broker_says):
    broker_says("echo held > /dev/fd/$report")
    transport.patient, transport.waits_to_launch = False, False
    with pytest.raises(PortHeld):
        transport.open()
        until(lambda: False, transport)
    assert transport._launching is None


def test_a_failed_start_is_nothing_to_one_that_has_been_welcomed_meanwhile(
    transport, settings, broker_says, start_broker, tmp_path
):
    broker_says(f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo held > /dev/fd/$report")
    transport.patient, transport.waits_to_launch = True, False
    transport.open()
    broker = start_broker()
    enter(transport, broker)
    (tmp_path / "go").touch()
    until(lambda: transport._launching is None, transport, broker)
    assert transport.core.phase is core.Phase.READY


def test_closing_sends_the_remaining_envelopes(settings, start_broker, launched):
    broker = start_broker()
    transport = Transport(settings, core.ClientCore(PERSONA, "0"))
    transport.open()
    enter(transport, broker)
    transport.perform(transport.core.send(core.Outgoing("aaaaaaaaaa01", 0, "pay", 0, None, False, b"last words")))
    transport.perform(transport.core.bye())
    transport.close()
    end_s = time.monotonic() + DEADLINE_S
    while len(broker.heard) < 2 and time.monotonic() < end_s:
        broker.turn()
    assert [type(one).__name__ for one in broker.heard] == ["Send", "Bye"]


def test_closing_without_a_broker_does_not_wait(settings, launched):
    transport = Transport(settings, core.ClientCore(PERSONA, "0"))
    transport.open()
    transport.perform(transport.core.send(core.Outgoing("aaaaaaaaaa01", 0, "pay", 0, None, False, b"nobody hears it")))
    transport.close()  # a hang would show in the time limit of the run


@pytest.mark.parametrize("port", [9473, 29_999, 30_000, 60_000])
def test_ports_that_the_kernel_may_give_out_are_connected_to_from_another_address(port, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    source = "127.0.0.2:0;" if port >= 30_000 else ""
    assert transport_module.endpoint(port) == f"tcp://{source}127.0.0.1:{port}"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert transport_module.endpoint(port) == f"tcp://127.0.0.1:{port}"


def test_repr_shows_the_state(transport, settings):
    assert repr(transport).startswith(f"<Transport to port {settings.port}: <ClientCore auth offline")


LARGE = b"x" * (verbs.SPILL_BYTES + 1)


def large(number: int) -> core.Outgoing:
    return core.Outgoing(f"aaaaaaaaaa{number:02}", 0, "pay", 0, None, False, LARGE)


def test_large_bodies_go_by_a_file_as_long_as_there_can_be_one(transport, settings, start_broker, launched):
    """In the order of all others; and after `close` only unconfirmed bodies are left."""
    broker = start_broker()
    transport.open()
    enter(transport, broker)
    spool = Path(settings.paths.spool)
    transport.perform(transport.core.send_all([large(1), large(2)._replace(body=b"small"), large(3)]))
    until(lambda: len(broker.heard) == 3, transport, broker)
    first, second, third = broker.heard
    assert [one.file is None for one in broker.heard] == [False, True, False]
    assert [one.name for one in spool.iterdir()] == [first.file]
    assert (spool / first.file).read_bytes() == LARGE * 2
    assert (first.piece[1], third.piece[1], second.bodies) == (0, len(LARGE), (b"small",))
    broker.say(verbs.Receipt(0, "b", "pay", 0, first.msg_ids))
    until(lambda: transport.core.unconfirmed == 2, transport, broker)
    spool.chmod(0o755)  # a writer that has a file goes on with it
    transport.perform(transport.core.send(large(4)))
    until(lambda: len(broker.heard) == 4, transport, broker)
    assert broker.heard[3].piece[1] == 0


@pytest.mark.parametrize("told", [True, False])
def test_files_are_removed_with_the_link_unless_something_in_them_is_under_way(told, settings, start_broker, launched):
    broker = start_broker()
    own = Transport(settings, core.ClientCore(PERSONA, "0"))
    own.open()
    enter(own, broker)
    own.perform(own.core.send(large(1)))
    until(lambda: broker.heard, own, broker)
    (spooled,) = broker.heard
    if told:
        broker.say(verbs.Receipt(0, "b", "pay", 0, spooled.msg_ids))
        until(lambda: not own.core.unconfirmed, own, broker)
    own.close()
    assert [one.name for one in Path(settings.paths.spool).iterdir()] == ([] if told else [spooled.file])


def test_where_there_can_be_no_file_they_go_along(transport, settings, start_broker, launched):
    broker = start_broker()
    Path(settings.paths.spool).mkdir(mode=0o755)
    Path(settings.paths.spool).chmod(0o755)
    transport.open()
    enter(transport, broker)
    transport.perform(transport.core.send(large(1)))
    until(lambda: broker.heard, transport, broker)
    assert broker.heard == [verbs.Send.one(*large(1))]


def test_each_welcome_has_a_file_of_its_own(transport, settings, start_broker, launched):
    broker = start_broker()
    transport.open()
    enter(transport, broker)
    transport.perform(transport.core.send(large(1)))
    until(lambda: broker.heard, transport, broker)
    (first,) = broker.heard
    broker.heard.clear()
    broker.say(verbs.Expired())
    until(lambda: len(broker.heard) == 2, transport, broker)
    assert broker.heard[1] == verbs.Send.one(*large(1)._replace(again=True))
    broker.heard.clear()
    broker.welcome("another lease")
    until(lambda: transport.core.phase is core.Phase.READY, transport, broker)
    transport.perform(transport.core.send(large(2)))
    until(lambda: broker.heard, transport, broker)
    (second,) = broker.heard
    spool = Path(settings.paths.spool)
    assert first.file != second.file
    assert {one.name for one in spool.iterdir()} == {first.file, second.file}
    broker.say(verbs.Receipt(0, "b", "pay", 0, first.msg_ids + second.msg_ids))
    until(lambda: not transport.core.unconfirmed, transport, broker)
    assert [one.name for one in spool.iterdir()] == [second.file]
