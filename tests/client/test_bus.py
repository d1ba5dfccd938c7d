"""The bus as programs have it: one process, several programs, a broker in a process of its own."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed, wait
from pathlib import Path
from typing import Any, cast

import numpy
import psutil
import pytest

import zmqbus
from zmqbus import errors
from zmqbus.client import bus as bus_module
from zmqbus.client import transport as transport_module
from zmqbus.client.bus import Bus
from zmqbus.client.message import Message
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.wire import verbs

#: Far over what any of this takes.
PATIENCE_S = 90.0
ROOT = Path(__file__).resolve().parents[2]

Connect = Callable[..., Bus]


def until(condition: Callable[[], Any]) -> Any:
    end_s, pause_s = time.monotonic() + PATIENCE_S, 0.002
    while not (value := condition()):
        assert time.monotonic() < end_s
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.2)  # the condition may be a list, of which there may be ten a second
    return value


def broker(data_dir: Path) -> psutil.Process:
    [pid_file] = data_dir.glob("server.*.pid")
    return psutil.Process(int(pid_file.read_text()))


def kill_broker(data_dir: Path) -> None:
    process = broker(data_dir)
    process.kill()
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


@pytest.fixture
def echo(connect: Connect) -> Iterator[Bus]:
    """A program called "echo" that answers what it is asked with the same."""
    bus = connect("echo")
    stop = threading.Event()
    thread = threading.Thread(target=bus.serve, args=(lambda message: message.body,), kwargs={"stop": stop})
    thread.start()
    yield bus
    stop.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        **options,
    )


# --- who is who


def test_a_named_program_is_a_session_like_any_other(connect):
    with connect("auth", label="Auth service", topics=["deploys"], group=["a", "b"]) as bus:
        [row] = bus.sessions()
        assert (row.name, row.label, row.session_id) == ("auth", "Auth service", bus.session_id)
        assert row.pid == os.getpid()
        assert (bus.name, repr(bus)) == ("auth", "<Bus 'auth': <Producer: 0 sent, 0 asked, 0 waiting>>")
    assert "closed" in repr(bus)
    with connect("other") as other:
        assert [row.name for row in other.sessions()] == ["other"]
        assert sorted(row.name for row in other.sessions(away=True)) == ["auth", "other"]


def test_a_program_without_a_name_is_a_guest(connect):
    guest = connect()
    assert guest.session_id is None and guest.name.endswith(f"-{os.getpid()}")
    assert guest.sessions(away=True) == []
    for call in (guest.next_message, lambda: next(guest.messages()), lambda: guest.rename("auth")):
        with pytest.raises(errors.NotConnected, match=r"open the bus with zmqbus\.connect\(name\)"):
            call()
    guest.watch(lambda: None)


def test_members_of_a_group_name_themselves_and_are_gone_after_close(connect):
    members = [connect(group="workers") for _ in range(3)]
    topical = connect(topics="deploys")
    looker = connect()
    assert len({member.name for member in members}) == 3
    assert len(looker.sessions()) == 4
    for member in (*members, topical):
        member.close()
    assert looker.sessions(away=True) == []


def test_a_taken_name_is_an_error(connect):
    connect("auth")
    before = threading.active_count()
    with pytest.raises(errors.NameTaken):
        connect("auth")
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "Bad Name"}, errors.InvalidName),
        ({"name": ""}, errors.InvalidName),
        ({"name": "a", "label": "\0"}, errors.InvalidLabel),
        ({"topics": ["Bad Topic"]}, errors.InvalidName),
        ({"group": "Bad Group"}, errors.InvalidName),
        ({"ack": "perhaps"}, errors.InvalidArgument),
        ({"name": 5}, errors.InvalidName),
        ({"name": b"auth"}, errors.InvalidName),
        ({"label": 5}, errors.InvalidLabel),
        ({"topics": 5}, errors.InvalidArgument),
        ({"topics": [5]}, errors.InvalidName),
        ({"group": [None]}, errors.InvalidName),
        ({"port": "9473"}, errors.InvalidArgument),
        ({"port": 0}, errors.InvalidArgument),
    ],
)
def test_what_cannot_be_connected(connect, arguments, error):
    with pytest.raises(error) as caught:
        connect(**arguments)
    named = [*arguments][-1].rstrip("s")  # one of its topics
    assert named in str(caught.value)


def test_renaming(connect):
    bus, other = connect("auth"), connect("other")
    bus.rename("login")
    until(lambda: bus.name == "login")
    other.send("login", "hi", wait=False)
    assert bus.next_message(PATIENCE_S).text == "hi"
    with pytest.raises(errors.NameTaken):
        bus.rename("other")
    with pytest.raises(errors.InvalidName):
        bus.rename("Bad Name")


# --- speaking


def test_sending_and_receiving(connect):
    alice, bob = connect("alice"), connect("bob")
    future = alice.send("bob", {"numbers": [1, 2]}, wait=False)
    message = bob.next_message(PATIENCE_S)
    assert (message.body, message.sender, message.sender_id) == ({"numbers": [1, 2]}, "alice", alice.session_id)
    receipt = future.result(PATIENCE_S)
    assert receipt == Receipt(message.msg_id, receipt.state, "bob", bob.session_id, receipt.busy, 0)
    bob.close()
    assert alice.send("bob", "again").state == "queued"
    assert alice.send("bo", "by a prefix").to == "bob"
    assert alice.send(bob.session_id, "by its id").to == "bob"


def test_sends_that_do_not_wait_arrive_in_order_between_those_that_do(connect):
    alice, bob = connect("alice"), connect("bob")
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.extend(message.body for message in take(bob, 600)))
    reader.start()
    for number in range(0, 600, 3):
        alice.send("bob", number, wait=False)
        alice.request("bob", number + 1)
        if number % 60 == 0:
            alice.send("bob", number + 2)
        else:
            alice.send("bob", number + 2, wait=False)
    reader.join(PATIENCE_S)
    assert got == list(range(600))


def take(bus: Bus, count: int) -> Iterator[Message]:
    for _ in range(count):
        message = bus.next_message(PATIENCE_S)
        assert message is not None
        yield message


def test_broadcasts(connect):
    alice = connect("alice")
    bob, carol = connect("bob", topics=["deploys"]), connect("carol")
    for options, readers, to in (
        ({}, [bob, carol], "all"),
        ({"topic": "deploys"}, [bob], "#deploys"),
        ({"project": True}, [bob, carol], f"%{ROOT.name}"),
    ):
        told: list[Any] = []
        thread = threading.Thread(
            target=lambda told=told, options=options: told.append(alice.broadcast("x", **options))
        )
        thread.start()
        assert [bus.next_message(PATIENCE_S).to for bus in readers] == [to] * len(readers)
        thread.join(PATIENCE_S)
        [receipt] = told
        assert isinstance(receipt, BroadcastReceipt) and receipt.delivered + receipt.queued == len(readers)
    with pytest.raises(ValueError, match="not to both"):
        alice.broadcast("x", topic="deploys", project=True)
    with pytest.raises(errors.TextTooLong):
        alice.broadcast("x" * 300_000)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda bus: bus.send("nobody", "x"), errors.UnknownPeer),
        (lambda bus: bus.ask("nobody", "x"), errors.UnknownPeer),
        (lambda bus: bus.send(None, "x"), errors.InvalidName),
        (lambda bus: bus.send("me", "to myself"), errors.UnknownPeer),
        (lambda bus: bus.request("@", "x"), errors.InvalidName),
        (lambda bus: bus.send("you", object()), errors.InvalidPayload),
        (lambda bus: bus.send("you", ""), errors.InvalidPayload),
        (lambda bus: bus.send("you", " \n\u200b"), errors.InvalidPayload),
        (lambda bus: bus.broadcast("\t"), errors.InvalidPayload),
        (lambda bus: bus.send("half \udce9 a name", "x"), errors.InvalidName),
        (lambda bus: bus.request("you", {1, 2}), errors.InvalidPayload),
        (lambda bus: bus.send("you", "x" * 17_000_000), errors.TextTooLong),
        (lambda bus: bus.request("@nobody", "x", wait=False).result(PATIENCE_S), errors.UnknownPeer),
        (lambda bus: bus.ask("@nobody", "x", timeout=0.05), errors.Timeout),
        (lambda bus: list(bus.map("@nobody", [1], timeout=0.05)), errors.Timeout),
        (lambda bus: bus.ask("you", "x", timeout=0.05), errors.Timeout),
        (lambda bus: list(bus.map("@Bad", [1])), errors.InvalidName),
        (lambda bus: bus.broadcast(object()), errors.InvalidPayload),
        (lambda bus: bus.scatter(["you", "@Bad"], 1), errors.InvalidName),
        (lambda bus: bus.scatter("you", 1), errors.InvalidArgument),
        (lambda bus: bus.scatter(None, 1), errors.InvalidArgument),
        (lambda bus: bus.scatter(["you"], 1, progress="no"), errors.InvalidArgument),
        (lambda bus: bus.map("you", "abc"), errors.InvalidArgument),
        (lambda bus: bus.map("you", b"abc"), errors.InvalidArgument),
        (lambda bus: bus.map("you", None), errors.InvalidArgument),
        (lambda bus: bus.map("you", [1], timeout="5"), errors.InvalidArgument),
        (lambda bus: bus.send(["you", "me"], "x"), errors.InvalidName),
        (lambda bus: bus.send("you", "x", timeout="5"), errors.InvalidArgument),
        (lambda bus: bus.send("you", "x", timeout=None), errors.InvalidArgument),
        (lambda bus: bus.send("you", "x", wait="no"), errors.InvalidArgument),
        (lambda bus: bus.send("you", "x", reply_to=5), errors.InvalidArgument),
        (lambda bus: bus.request("you", "x", timeout="5"), errors.InvalidArgument),
        (lambda bus: bus.request("you", "x", wait=None), errors.InvalidArgument),
        (lambda bus: bus.ask("you", "x", timeout=[5]), errors.InvalidArgument),
        (lambda bus: bus.reply("you", "x"), errors.InvalidArgument),
        (lambda bus: bus.broadcast("x", topic=5), errors.InvalidName),
        (lambda bus: bus.broadcast("x", project=5), errors.InvalidArgument),
        (lambda bus: bus.broadcast("x", timeout="5"), errors.InvalidArgument),
        (lambda bus: bus.messages(timeout="5"), errors.InvalidArgument),
        (lambda bus: bus.next_message("5"), errors.InvalidArgument),
        (lambda bus: bus.sessions(away="no"), errors.InvalidArgument),
        (lambda bus: bus.sessions(timeout="5"), errors.InvalidArgument),
        (lambda bus: bus.rename(5), errors.InvalidName),
        (lambda bus: bus.close(forget="no"), errors.InvalidArgument),
        (lambda bus: bus.watch(None), errors.InvalidArgument),
        (lambda bus: bus.serve(None), errors.InvalidArgument),
        (lambda bus: bus.serve(len, stop=True), errors.InvalidArgument),
        (lambda bus: zmqbus.wait([], timeout=cast(Any, "5")), errors.InvalidArgument),
        (lambda bus: zmqbus.wait(cast(Any, 5)), errors.InvalidArgument),
        (lambda bus: zmqbus.wait([], return_when=cast(Any, "soon")), errors.InvalidArgument),
        (lambda bus: zmqbus.as_completed(cast(Any, None)), errors.InvalidArgument),
        (lambda bus: zmqbus.as_completed([], timeout=cast(Any, "5")), errors.InvalidArgument),
    ],
)
def test_bad_input_is_an_error_of_our_tree_and_leaves_nothing(connect, call, error):
    bus = connect("me")
    connect("you")
    with pytest.raises(error) as caught:
        call(bus)
    assert isinstance(caught.value, errors.ZmqbusError) and len(str(caught.value)) > 10
    until(lambda: not bus._producer._asked)


def test_an_empty_value_is_a_value(connect):
    """Only a text that nobody could see is refused: scripts send what they have."""
    bus, other = connect("me"), connect("you")
    values: list[Any] = [b"", None, [], 0]
    for value in values:
        bus.send("you", value, wait=False)
    messages = other.messages()
    assert [next(messages).body for _ in values] == values


def test_no_public_parameter_is_left_unchecked(connect):
    """Whatever takes a nonsense value takes it on purpose."""
    bus = connect("me")
    bodies = {"body", "item"}  # anything may be one
    for verb in ("send", "broadcast", "reply", "request", "ask", "scatter", "map", "serve", "messages", "sessions"):
        call = getattr(bus, verb)
        given = {"target": "me", "targets": ["me"], "items": [1], "handler": len, "name": "me", "message": None}
        for name in inspect.signature(call).parameters:
            if name in bodies:
                continue
            arguments = {
                other: given.get(other, "x")
                for other, one in inspect.signature(call).parameters.items()
                if one.default is inspect.Parameter.empty
            }
            arguments[name] = object()
            with pytest.raises(errors.ZmqbusError) as caught:
                call(**arguments)
            assert isinstance(caught.value, errors.LocalError), (verb, name, caught.value)


def test_group_without_a_worker_is_an_error_of_its_own(connect):
    bus = connect("me")
    with pytest.raises(errors.Timeout, match="nobody works for that group"):
        bus.ask("@nobody", "x", timeout=0.3)
    member = connect(group="some")  # which does not serve
    with pytest.raises(errors.Timeout, match="nobody works for that group"):
        bus.ask("@some", "x", timeout=0.3)
    member._consumer.offer(1)
    until(lambda: _asks_in_vain(bus))
    assert not bus._producer._unassigned


def _asks_in_vain(bus: Bus) -> bool:
    try:
        bus.ask("@some", "x", timeout=0.3)
    except errors.Timeout as error:
        return "may still be at work" in str(error)
    return False


def test_what_fails_in_map_is_named(connect, echo):
    bus = connect()
    answers = bus.map("echo", [1, 2, {3}, 4], timeout=PATIENCE_S)
    assert [next(answers).body, next(answers).body] == [1, 2]
    with pytest.raises(errors.InvalidPayload) as caught:
        next(answers)
    assert (caught.value.index, caught.value.item) == (2, {3})
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["of item 2 of map: {3} (set)"]
    assert errors.ZmqbusError("x").index is None


# --- a bus that nobody closes


def threads() -> int:
    return sum(thread.name.startswith("zmqbus") for thread in threading.enumerate())


@pytest.mark.slow
@pytest.mark.filterwarnings("always::ResourceWarning")
def test_those_that_are_dropped_end_and_say_so(port):
    before = threads(), len(os.listdir("/dev/fd"))
    with warnings.catch_warnings(record=True) as caught:
        for number in range(20):
            zmqbus.connect(f"m{number}")
            zmqbus.connect()
        gc.collect()
    told = [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)]
    assert len(told) == 40 and "unclosed bus 'm0'; use it in a with statement" in told
    until(lambda: (threads(), len(os.listdir("/dev/fd"))) == before)
    with zmqbus.connect() as bus:
        assert bus.sessions() == []  # they have left in good order
        assert {row.name for row in bus.sessions(away=True)} == {f"m{number}" for number in range(20)}
    with zmqbus.connect("m0") as again:  # the same session as before, as if it had been closed
        assert again.session_id in {row.session_id for row in again.sessions()}
        assert len([row for row in again.sessions(away=True) if row.name == "m0"]) == 1


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_one_that_was_closed_does_not_complain(port):
    bus = zmqbus.connect()
    bus.close()
    del bus
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_bus_with_a_pending_answer_is_not_closed_by_the_collector(port, echo):
    reply = zmqbus.connect().request("echo", "x", timeout=PATIENCE_S)
    receipt = zmqbus.connect().send("echo", "y", wait=False)
    answers = zmqbus.connect().map("echo", ["z"], timeout=PATIENCE_S)
    gc.collect()
    assert reply.result().body == "x"
    assert receipt.result(PATIENCE_S).to == "echo"
    assert next(answers).body == "z"
    del reply, receipt, answers
    gc.collect()
    until(lambda: threads() == 2)  # of the echo


def test_ambiguous_names(connect):
    bus = connect("auth-one")
    connect("auth-two")
    with pytest.raises(errors.Ambiguous, match="auth-two"):
        bus.send("auth", "x")


def test_what_no_broker_confirms_is_a_timeout(connect, data_dir):
    bus, auth = connect(), connect("auth")
    broker(data_dir).suspend()
    try:
        for call in (lambda: bus.send("auth", "x", timeout=0.05), lambda: bus.sessions(timeout=0.05)):
            with pytest.raises(errors.Timeout, match=r"within 0\.05 s"):
                call()
    finally:
        broker(data_dir).resume()
    assert auth.next_message(PATIENCE_S).text == "x"


# --- asking


def test_asking(connect, echo):
    bus = connect("alice")
    assert bus.ask("echo", [1, 2]).body == [1, 2]
    future: zmqbus.Reply = bus.request("echo", "later")
    assert issubclass(zmqbus.Reply, Future) and future.result(PATIENCE_S).body == "later"
    assert (future.target, future.result().reply_to) == ("echo", future.msg_id)


def test_replying(connect):
    alice, bob = connect("alice"), connect("bob")
    future = alice.request("bob", "ready?")
    question = bob.next_message(PATIENCE_S)
    assert bob.reply(question, "yes").to == "alice"
    assert future.result(PATIENCE_S).text == "yes"


@pytest.mark.parametrize("size", [0, 1000, 70_000, 9 * 1024 * 1024])
def test_arrays_there_and_back(connect, echo, size):
    """Inside the envelope, in a frame of their own, and by way of the log."""
    array = numpy.random.default_rng(size).integers(0, 255, (size // 10, 10), "u1")
    answer = connect("alice").ask("echo", array, timeout=PATIENCE_S)
    assert (answer.body.dtype, answer.body.shape) == (array.dtype, array.shape)
    assert answer.body.tobytes() == array.tobytes()


class TestLargeMessages:
    """They take the way by the sender's file, in their place among the others."""

    TEXTS = tuple(f"{number} " + 'a line with "quotes" and ü\n' * (number * 4_000) for number in range(12))

    def test_they_arrive_whole_and_in_order(self, connect, data_dir):
        alice, bob = connect("alice"), connect("bob")
        receipts = [alice.send("bob", text, wait=False) for text in self.TEXTS]
        for text in self.TEXTS:
            message = bob.next_message(PATIENCE_S)
            assert message is not None and message.text == text
        assert {receipt.result(PATIENCE_S).state for receipt in receipts} == {"delivered"}
        assert len(list((data_dir / "spool").iterdir())) == 1
        alice.close()
        assert list((data_dir / "spool").iterdir()) == []

    @pytest.mark.slow
    def test_leaving_at_once_sends_messages_and_leaves_nothing_behind(self, connect, data_dir):
        bob = connect("bob")
        with connect("alice") as alice:
            for text in self.TEXTS:
                alice.send("bob", text, wait=False)
        for text in self.TEXTS:
            message = bob.next_message(PATIENCE_S)
            assert message is not None and message.text == text
        until(lambda: not list((data_dir / "spool").iterdir()))

    @pytest.mark.slow
    def test_killed_program_leaves_nothing_behind(self, connect, data_dir):
        bob = connect("bob")
        script = (
            "import zmqbus\n"
            "bus = zmqbus.connect('alice')\n"
            "while True: [bus.send('bob', 'x' * 100_000, wait=False) for _ in range(10)][-1].result()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        ) as process:
            for _ in range(20):
                message = bob.next_message(PATIENCE_S)
                assert message is not None and message.text == "x" * 100_000
            assert list((data_dir / "spool").iterdir())
            process.kill()
        until(lambda: not list((data_dir / "spool").iterdir()))

    @pytest.mark.slow
    def test_a_broker_that_is_killed_with_them_loses_none(self, connect, data_dir):
        alice, bob = connect("alice"), connect("bob")
        texts = self.TEXTS * 3
        receipts = [alice.send("bob", text, wait=False) for text in texts]
        kill_broker(data_dir)
        for text in texts:
            message = bob.next_message(PATIENCE_S)
            assert message is not None and message.text == text
        assert all(receipt.result(PATIENCE_S) for receipt in receipts)
        assert alice.send("bob", texts[5]).state == "queued"  # and then by the new one, in a file of its own
        message = bob.next_message(PATIENCE_S)
        assert message is not None and message.text == texts[5]

    def test_a_disk_that_does_not_take_them_is_no_concern_of_the_program(self, connect, monkeypatch):
        alice, bob = connect("alice"), connect("bob")

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        receipt = alice.send("bob", self.TEXTS[7], wait=False)
        message = bob.next_message(PATIENCE_S)
        assert message is not None and message.text == self.TEXTS[7]
        assert receipt.result(PATIENCE_S).state == "delivered"


def test_scatter(connect, echo):
    bus = connect("alice")
    replies: list[zmqbus.Reply] = bus.scatter(["echo", "nobody", "echo"], "x")
    assert [reply.target for reply in replies] == ["echo", "nobody", "echo"]
    assert set(as_completed(replies, PATIENCE_S)) == set(replies)
    assert replies[0].result().body == replies[2].result().body == "x"
    assert isinstance(replies[1].exception(), errors.UnknownPeer)
    assert bus.scatter([], "x", progress=True) == []


def test_map_keeps_the_order_and_tells_its_progress(connect, echo, capsys):
    bus = connect("alice")
    assert [answer.body for answer in bus.map("echo", range(1000), progress=True)] == list(range(1000))
    replies = bus.scatter(["echo"] * 3, "x", progress=True)
    wait(replies, PATIENCE_S)
    lines: list[str] = []

    def read() -> bool:
        lines.extend(capsys.readouterr().err.splitlines())
        return len(lines) >= 2  # a thread of the bus prints the last

    until(read)
    assert lines[0].startswith("map over echo: 1000 of 1000 in ")
    assert lines[-1].startswith("scatter: 3 of 3 in ")


def test_breaking_out_of_map_withdraws_open_requests(connect, figures):
    bus = connect()
    mapped = bus.map("@nobody", range(1000))
    until(lambda: figures()["requests_waiting"] == 512)
    del mapped
    gc.collect()
    until(lambda: figures()["requests_waiting"] == 0)


@pytest.mark.slow
def test_ping_pong_thousands_of_times(connect, echo):
    """A lost wake-up would show as a pause of seconds each time, or for ever."""
    bus = connect("alice")
    for number in range(3_000):
        assert bus.ask("echo", number, timeout=PATIENCE_S).body == number


@pytest.mark.slow
def test_many_threads_ask_over_one_bus(connect, echo):
    bus = connect("alice")
    wrong: list[Any] = []

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for number in range(300):
            body = [seed, number]
            match draw.randrange(5):
                case 0:
                    got = bus.request("echo", body, timeout=PATIENCE_S).result().body
                case 1:
                    got = [answer.body for answer in bus.map("echo", [body] * 3, timeout=PATIENCE_S)][2]
                case 2:
                    bus.request("echo", body).cancel()
                    got = body
                case 3:
                    bus.send("echo", "fyi", wait=False)
                    got = body
                case _:
                    got = bus.ask("echo", body, timeout=PATIENCE_S).body
            if got != body:
                wrong.append((body, got))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive()
    assert wrong == []
    until(lambda: not bus._producer._asked and not bus._producer._sent)


# --- callbacks


def test_callbacks_may_ask_on_and_may_hold_locks(connect, echo):
    bus = connect("alice")
    lock = threading.Lock()
    done = threading.Event()
    left = [200]

    def again(future: Future[Message]) -> None:
        with lock:
            left[0] -= 1
            if left[0]:
                bus.request("echo", left[0]).add_done_callback(again)
            else:
                done.set()

    def take_lock(_: object) -> None:
        with lock:
            pass

    with lock:
        for _ in range(20):
            bus.request("echo", "x").add_done_callback(take_lock)
        bus.request("echo", "x").add_done_callback(again)
    assert done.wait(PATIENCE_S)


def test_waiting_for_the_bus_in_a_callback_is_an_error_that_says_so(connect, echo):
    bus = connect("alice")
    found: Future[BaseException] = Future()

    def callback(_: object) -> None:
        try:
            bus.ask("echo", "x")
        except BaseException as error:
            found.set_result(error)

    bus.request("echo", "x").add_done_callback(callback)
    assert isinstance(found.result(PATIENCE_S), errors.LocalError)
    assert bus.ask("echo", "x").text == "x"


@pytest.mark.parametrize("name", ["alice", None], ids=["named", "member"])
def test_closing_in_a_callback(connect, echo, name):
    bus = connect(name, group="g")
    closed = threading.Event()

    def close(_: object) -> None:
        bus.close()
        closed.set()

    other = bus.request("@nobody", "x")
    bus.request("echo", "x").add_done_callback(close)
    assert closed.wait(PATIENCE_S)
    assert isinstance(other.exception(PATIENCE_S), errors.NotConnected)
    bus.close()
    left = ["alice", "echo"] if name else ["echo"]
    until(lambda: [row.name for row in echo.sessions(away=True)] == left)


# --- ends


def test_closing_wakes_waiting_threads(connect):
    bus = connect("alice")
    calls: list[Callable[[], Any]] = [
        lambda: list(bus.messages()),
        lambda: bus.ask("@nobody", "x"),
        lambda: list(bus.map("@nobody", [1, 2])),
        lambda: wait([bus.request("@nobody", "x")]).done.pop().result(),
        lambda: next(as_completed([bus.request("@nobody", "x")])).result(),
        lambda: bus.next_message(),
    ]
    found: list[BaseException] = []

    def waits(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=waits, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    until(lambda: len(bus._producer._asked) == 5)
    bus.close()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [type(error) for error in found] == [errors.NotConnected] * 6


def test_closing_from_many_threads_at_once(connect):
    bus = connect(group="g")
    threads = [threading.Thread(target=bus.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    for call in (bus.sessions, lambda: bus.send("x", "x"), lambda: bus.request("x", "x"), bus.next_message):
        with pytest.raises(errors.NotConnected, match="closed"):
            call()


def away(bus: Bus) -> list[str]:
    time.sleep(0.1)  # the broker allows ten lists a second
    return [row.name for row in bus.sessions(away=True)]


def test_leaving_for_good_gives_up_the_mailbox_and_says_how_much_was_in_it(connect):
    alice, bob = connect("alice"), connect("bob")
    first = alice.send("bob", "taken", wait=False)
    assert bob.next_message(PATIENCE_S).text == "taken"
    assert first.result(PATIENCE_S).to == "bob"
    for number in range(3):
        alice.send("bob", str(number), wait=False)
    until(lambda: bob._consumer.unread == 3)
    assert bob.next_message(0.0).text == "0"
    assert bob.close(forget=True) == 2
    assert bob.close(forget=True) == bob.close() == 0
    assert away(alice) == ["alice"]
    with pytest.raises(errors.UnknownPeer):
        alice.send("bob", "too late")
    again = connect("bob")
    assert again.session_id != bob.session_id
    assert again.next_message(0.0) is None
    again.close()
    assert away(alice) == ["alice", "bob"]  # as ever


def test_what_a_program_has_not_acknowledged_is_given_up_too(connect):
    alice, bob = connect("alice"), connect("bob", ack="manual")
    sent = [alice.send("bob", str(number), wait=False) for number in range(2)]
    first, second = take(bob, 2)
    first.ack()
    assert sent[0].result(PATIENCE_S).to == "bob"
    assert bob.close(forget=True) == 1
    with pytest.raises(errors.NotConnected):
        second.ack()


def test_leaving_for_good_without_a_broker_leaves_all_the_same(connect, data_dir, monkeypatch):
    monkeypatch.setattr(bus_module, "LEAVE_S", 0.1)
    monkeypatch.setattr(transport_module, "LINGER_MS", 90_000)
    bus = connect("alice")
    process = broker(data_dir)
    process.suspend()
    assert bus.close(forget=True) == 0
    process.resume()
    # It was said all the same.
    other = connect("other")
    until(lambda: away(other) == ["other"])


def test_a_guest_and_a_member_of_a_group_leave_as_ever(connect):
    looker = connect()
    member = connect(group="g")
    assert member.close(forget=True) == 0
    assert connect().close(forget=True) == 0
    assert away(looker) == []


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("where", ["the word of the broker", "the first thread", "the second thread"])
def test_an_interrupt_while_it_closes_costs_the_wait_only(connect, monkeypatch, where, forget):
    """Ctrl-C at any of the places where close() waits."""
    monkeypatch.setattr(transport_module, "LINGER_MS", 90_000)  # so that the last messages go out on a busy machine
    bus = connect("bob") if forget else connect(group="g")
    looker = connect()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        match where:
            case "the word of the broker":
                patch.setattr(bus._consumer._arrived, "wait_for", interrupted)
            case "the first thread":
                patch.setattr(bus._producer._io._thread, "join", interrupted)
            case _:
                patch.setattr(bus._consumer._io._thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bus.close(forget=forget)
    until(lambda: away(looker) == [])
    bus.close()
    assert not bus._producer._io._thread.is_alive() and not bus._consumer._io._thread.is_alive()
    with pytest.raises(errors.NotConnected):
        bus.send("x", "x")


def test_a_worker_that_is_killed_is_off_the_list_and_gets_no_mail(connect):
    looker = connect("looker")
    script = "import zmqbus\nbus = zmqbus.connect(group='g', topics=['t'])\nprint(bus.name, flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert away(looker) == sorted([name, "looker"])
        process.kill()
        process.wait(PATIENCE_S)
        until(lambda: away(looker) == ["looker"])
        assert looker.broadcast("to t", topic="t")[1:] == (0, 0, (), ())


def test_a_session_that_a_command_disconnects(connect):
    bus = connect("alice")
    waiting: Future[Any] = Future()

    def read() -> None:
        try:
            waiting.set_result(list(bus.messages()))
        except BaseException as error:
            waiting.set_exception(error)

    thread = threading.Thread(target=read)
    thread.start()
    bus._producer.call(verbs.Disconnect).result(PATIENCE_S)
    with pytest.raises(errors.NotConnected, match="disconnected by a command"):
        waiting.result(PATIENCE_S)
    thread.join(PATIENCE_S)
    with pytest.raises(errors.NotConnected, match="disconnected by a command"):
        bus.next_message(0.0)


def test_a_program_that_forgets_to_close_ends(port):
    done = run(
        """
        import zmqbus
        bus = zmqbus.connect("auth")
        bus.request("@nobody", "x")
        bus.send("auth", "x", wait=False)
        member = zmqbus.connect(group="g")
        print("end")
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)


def test_an_interrupt_withdraws_what_was_asked(connect, figures):
    """Ctrl-C while `ask` waits."""
    script = textwrap.dedent(
        """
        import zmqbus
        with zmqbus.connect("asker") as bus:
            try:
                print("asking", flush=True)
                bus.ask("@nobody", "x")
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                input()
        """
    )
    program = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        until(lambda: figures()["requests_waiting"] == 1)
        program.send_signal(2)
        assert program.stdout is not None
        assert [program.stdout.readline() for _ in range(2)] == ["asking\n", "interrupted\n"]
        until(lambda: figures()["requests_waiting"] == 0)
        program.communicate("\n", PATIENCE_S)
        assert program.returncode == 0
    finally:
        program.kill()
        program.communicate()


# --- brokers that die


@pytest.mark.slow
def test_a_broker_that_dies_while_requests_are_open(connect, data_dir, echo):
    bus = connect("alice")
    replies = [bus.request("echo", number, timeout=PATIENCE_S) for number in range(300)]
    kill_broker(data_dir)
    replies += [bus.request("echo", number, timeout=PATIENCE_S) for number in range(300, 600)]
    assert [reply.result().body for reply in replies] == list(range(600))


@pytest.mark.slow
def in_time(call: Callable[[], Any]) -> Any:
    """What a call returns that must not wait for a broker. One that does fails the test, and does not hang it."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(PATIENCE_S)


def starting(*buses: Bus) -> subprocess.Popen[bytes] | None:
    """The broker that one of these has started, and that has not come up."""
    for bus in buses:
        assert bus._consumer is not None
        for half in (bus._consumer, bus._producer):
            launching = half._io._transport._launching
            if launching is not None and launching._process is not None:
                return launching._process
    return None


def test_nobody_waits_for_a_broker_that_is_slow_to_start(connect, data_dir, starts):
    """The thread that starts a broker does not keep others from sending."""
    alice, bob = connect("alice"), connect("bob")
    starts.hold()
    kill_broker(data_dir)
    until(lambda: starting(alice, bob))
    sent = [in_time(lambda number=number: alice.send("bob", number, wait=False)) for number in range(50)]
    late = in_time(lambda: alice.request("@nobody", "x", timeout=0.05))
    assert isinstance(late.exception(PATIENCE_S), errors.Timeout)  # deadlines hold meanwhile
    withdrawn = in_time(lambda: alice.request("@nobody", "x"))
    assert in_time(withdrawn.cancel)
    assert in_time(lambda: bob.next_message(0.0)) is None
    assert not any(future.done() for future in sent)
    starts.let()
    assert [message.body for message in take(bob, 50)] == list(range(50))
    assert {future.result(PATIENCE_S).to for future in sent} == {"bob"}


def test_closing_does_not_wait_for_a_broker_that_is_slow_to_start(connect, data_dir, starts):
    bus = connect("alice")
    starts.hold()
    kill_broker(data_dir)
    process = until(lambda: starting(bus))
    in_time(bus.close)
    assert process.returncode is not None  # ended, and seen off


def test_messages_are_taken_once_though_brokers_die(connect, data_dir):
    alice, bob = connect("alice"), connect("bob", ack="manual")
    got: list[int] = []

    def read() -> None:
        while len(got) < 300:
            message = bob.next_message(PATIENCE_S)
            assert message is not None
            got.append(message.body)
            message.ack()

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(300):
        alice.send("bob", number, wait=False)
        if number in (100, 200):
            kill_broker(data_dir)
            alice.sessions()
    thread.join(PATIENCE_S)
    assert got == list(range(300))
    assert bob.next_message(0.2) is None


@pytest.mark.slow
def test_a_manual_message_that_is_worked_on_comes_not_again_with_the_next_broker(connect, data_dir):
    alice, bob = connect("alice"), connect("bob", ack="manual")
    future = alice.send("bob", "work", wait=False)
    message = bob.next_message(PATIENCE_S)
    kill_broker(data_dir)
    alice.send("bob", "next", wait=False)
    assert bob.next_message(PATIENCE_S).text == "next"
    message.ack()
    assert future.result(PATIENCE_S).to == "bob"
    assert bob.next_message(0.2) is None
    bob.close()
    assert [message.text for message in take(connect("bob"), 1)] == ["next"]


# --- child processes


def test_a_bus_of_the_parent_is_an_error_in_a_forked_child(connect, echo):
    bus = connect("alice")
    reply = bus.request("echo", "x")
    context = multiprocessing.get_context("fork")
    found: Any = context.SimpleQueue()

    def child() -> None:
        for call in (
            lambda: bus.send("echo", "x"),
            lambda: bus.ask("echo", "x"),
            bus.next_message,
            bus.sessions,
            lambda: list(bus.map("echo", [1])),
        ):
            try:
                call()
            except errors.ForkedBus as error:
                found.put(str(error))
        reply.cancel()
        bus.close()  # nothing, and nothing hangs
        gc.collect()
        with zmqbus.connect("child") as own:
            found.put(own.ask("echo", "from the child", timeout=PATIENCE_S).text)

    process = context.Process(target=child)
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    texts = [found.get() for _ in range(6)]
    assert all("connect again in the child" in text for text in texts[:5])
    assert texts[5] == "from the child"
    assert bus.ask("echo", "still mine").text == "still mine"
    assert reply.result(PATIENCE_S).text == "x"


def test_a_child_that_dies_with_the_parents_bus_leaves_it_alone(connect, echo):
    bus = connect("alice")
    pid = os.fork()
    if pid == 0:
        try:
            bus.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert bus.ask("echo", "x").text == "x"


@pytest.mark.parametrize("call", ["ask", "request"])
def test_a_negative_deadline_is_refused_before_anything_is_sent(connect, call):
    with pytest.raises(errors.InvalidArgument, match="0 or more, not -1"):
        getattr(connect("alice"), call)("alice", "question: ready?", timeout=-1)


class TestStatesOfAgents:
    """A program tells what it does, and hears what others do."""

    def test_state_is_shown_and_told_to_a_new_broker(self, connect: Connect, data_dir: Path) -> None:
        bus, other = connect("nightly"), connect("other")

        def shown() -> list[tuple[str, str]]:
            return [(row.agent, row.agent_detail) for row in other.sessions() if row.name == "nightly"]

        assert shown() == [("unknown", "")]
        bus.set_state("blocked", "the password\nof the  registry" + "x" * 300)
        expected = [("blocked", ("the password of the registry" + "x" * 300)[:200])]
        assert shown() == expected
        kill_broker(data_dir)
        until(lambda: shown() == expected)
        bus.set_state("idle")
        assert shown() == [("idle", "")]

    def test_notices(self, connect: Connect) -> None:
        watcher = connect("watcher", topics=["sys.state", "sys.sessions"])
        bus = connect("nightly")
        seen: list[tuple[str, str, str, str]] = []

        def read_until(*wanted: str) -> None:
            for notice in watcher.notices(PATIENCE_S):
                seen.append((notice.topic, notice.name, notice.change, notice.detail))
                if seen[-1] == wanted:
                    return
            raise AssertionError(seen)

        read_until("sys.sessions", "nightly", "came", "")
        bus.set_state("blocked", "a person")
        read_until("sys.state", "nightly", "blocked", "a person")
        bus.rename("daily")
        read_until("sys.sessions", "daily", "renamed", "nightly")
        assert watcher.next_notice(0.0) is None
        bus.close()
        read_until("sys.sessions", "daily", "went", "")
        watcher.close()
        with pytest.raises(errors.NotConnected):
            watcher.next_notice(PATIENCE_S)

    def test_what_is_refused(self, connect: Connect) -> None:
        guest, bus = connect(), connect("nightly")
        with pytest.raises(errors.NotConnected, match="set_state"):
            guest.set_state("idle")
        with pytest.raises(errors.InvalidArgument, match="a state is one of working, blocked, idle, gone, unknown"):
            bus.set_state("asleep")
        with pytest.raises(errors.InvalidArgument, match="detail is a text"):
            bus.set_state("idle", None)  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidArgument, match=r"sys\.state"):
            bus.notices()
