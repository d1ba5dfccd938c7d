"""The bus in an event loop: the same verbs awaited, and what cancelling and timeouts leave behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

import zmqbus
from zmqbus import aio, errors
from zmqbus.client.fanout import WINDOW
from zmqbus.client.message import Message
from zmqbus.client.oneshot import observer
from zmqbus.settings import load
from zmqbus.wire import verbs

_T = TypeVar("_T")

#: Far over what any of this takes.
PATIENCE_S = 90.0
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_bus(data_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("INTER_SESSION_PORT", str(free_port))
    yield
    left = threads()
    end_s = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < end_s:  # those of a cancelled connect end by themselves
        time.sleep(0.01)
        left = threads()
    assert not left, left


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("zmqbus")]


def run(main: Callable[[], Awaitable[_T]]) -> _T:
    async def bounded() -> _T:
        return await asyncio.wait_for(main(), 2 * PATIENCE_S)

    return asyncio.run(bounded())


def requests_waiting() -> int:
    with observer(load({})) as bus:
        health = bus.request(verbs.Status)
    assert isinstance(health, verbs.Health)
    return int(dict(health.figures)["requests_waiting"])


async def until(condition: Callable[[], Any]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end_s
        await asyncio.sleep(0.002)


async def echoing(bus: aio.Bus) -> None:
    """Answers what it is asked with the same."""
    async for message in bus.messages():
        bus.send_soon(message.sender_id, message.body, reply_to=message.msg_id)


class Echo:
    """A program called "echo" in this loop."""

    async def __aenter__(self) -> aio.Bus:
        self.bus = await aio.connect("echo")
        self.task = asyncio.create_task(echoing(self.bus))
        return self.bus

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.bus.close()


async def forget(receipt: Awaitable[Any]) -> None:
    await receipt


# --- the verbs


def test_the_verbs():
    async def main() -> None:
        async with aio.connect("alice", label="Alice", topics=["t"]) as alice, aio.connect("bob") as bob:
            assert (alice.name, repr(alice)[:10]) == ("alice", "<aio <Bus ")
            sending = asyncio.create_task(alice.send("bob", {"n": 1}))
            message = await anext(bob.messages())
            assert (message.body, message.sender) == ({"n": 1}, "alice")
            assert (await sending).to == "bob"
            question = alice.request("bob", "ready?")
            asked = await anext(bob.messages())
            await bob.reply(asked, "yes")
            assert (await question).text == "yes"
            casting = asyncio.create_task(bob.broadcast("freeze", topic="t"))
            assert (await anext(alice.messages())).to == "#t"
            assert sum((await casting)[1:3]) == 1
            assert [row.name for row in await alice.sessions()] == ["alice", "bob"]
            await bob.rename("robert")
            assert [row.name for row in await alice.sessions()] == ["alice", "robert"]
            assert alice.session_id is not None

    run(main)


def test_leaving_for_good():
    async def main():
        async with aio.connect("looker") as looker:
            bus = await aio.connect("alice")
            assert (await looker.send("alice", "x")).to == "alice"
            assert await bus.close(forget=True) == 1
            assert await bus.close() == 0
            assert [row.name for row in await looker.sessions(away=True)] == ["looker"]

    run(main)


def test_without_a_context_and_closed_twice():
    async def main() -> None:
        bus = await aio.connect("alice")
        await bus.close()
        await bus.close()
        with pytest.raises(errors.NotConnected):
            await bus.send("bob", "x")
        async with await aio.connect("alice") as again:
            assert again.name == "alice"

    run(main)


def test_errors_are_those_of_the_other_bus():
    async def main() -> None:
        async with aio.connect("alice") as bus:
            with pytest.raises(errors.UnknownPeer):
                await bus.send("nobody", "x")
            with pytest.raises(errors.UnknownPeer):
                await bus.ask("nobody", "x")
            with pytest.raises(errors.InvalidPayload):
                await bus.send("nobody", object())
            with pytest.raises(errors.Timeout, match="nobody works for that group"):
                await bus.ask("@nobody", "x", timeout=0.05)
            with pytest.raises(errors.NameTaken):
                await aio.connect("alice")
        async with aio.connect() as guest:
            with pytest.raises(errors.NotConnected):
                await anext(guest.messages())
            with pytest.raises(errors.NotConnected):
                await guest.serve(print)

    run(main)


@pytest.mark.slow
def test_asking_scattering_mapping():
    async def main() -> None:
        async with Echo(), aio.connect() as bus:
            assert (await bus.ask("echo", [1])).body == [1]
            replies = bus.scatter(["echo", "nobody", "echo"], "x")
            first, second, third = await asyncio.gather(*replies, return_exceptions=True)
            assert isinstance(first, Message) and isinstance(third, Message)
            assert isinstance(second, errors.UnknownPeer)
            some = [(await reply).body for reply in asyncio.as_completed(bus.scatter(["echo"] * 3, "y"))]
            assert some == ["y"] * 3
            assert [answer.body async for answer in bus.map("echo", range(1500))] == list(range(1500))
            assert [answer.body async for answer in bus.map("echo", counted(20))] == list(range(20))
            assert [answer async for answer in bus.map("echo", [])] == []

    run(main)


async def counted(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


def test_sends_arrive_in_order():
    async def main() -> None:
        async with aio.connect("alice") as alice, aio.connect("bob") as bob:
            sent = [alice.send_soon("bob", number) for number in range(1000)]
            got = []
            async for message in bob.messages():
                got.append(message.body)
                if len(got) == 1000:
                    break
            assert got == list(range(1000))
            await asyncio.gather(*sent)

    run(main)


def test_many_tasks_at_once():
    async def main() -> None:
        async with Echo(), aio.connect("alice") as bus:

            async def ask(seed: int) -> None:
                for number in range(20):
                    assert (await bus.ask("echo", [seed, number], timeout=PATIENCE_S)).body == [seed, number]

            await asyncio.gather(*(ask(seed) for seed in range(50)))

    run(main)


# --- messages


def test_messages_end_when_none_has_come_in_time():
    async def main() -> None:
        async with aio.connect("alice") as alice, aio.connect("bob") as bob:
            sending = asyncio.create_task(alice.send("bob", "x"))
            await until(lambda: bob._bus._consumer._inbox)  # type: ignore[union-attr]
            assert [message.text async for message in bob.messages(timeout=0.05)] == ["x"]
            await sending

    run(main)


def test_several_tasks_take_each_message_once():
    async def main() -> None:
        async with aio.connect("alice") as alice, aio.connect("bob") as bob:
            got: list[int] = []
            over = asyncio.Event()

            async def take() -> None:
                async for message in bob.messages():
                    got.append(message.body)
                    if len(got) == 500:
                        over.set()

            tasks = [asyncio.create_task(take()) for _ in range(5)]
            sent = [alice.send_soon("bob", number) for number in range(500)]
            await over.wait()
            assert sorted(got) == list(range(500))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *sent, return_exceptions=True)
            # Nobody who was cancelled has taken one away.
            later = alice.send_soon("bob", "later")
            assert (await anext(bob.messages())).body == "later"
            await later

    run(main)


def test_closing_ends_those_that_wait():
    async def main() -> None:
        bus = await aio.connect("alice")

        async def read() -> None:
            async for _ in bus.messages():
                pass

        async def map_() -> None:
            async for _ in bus.map("@nobody", range(3)):
                pass

        tasks = [asyncio.create_task(one) for one in (read(), map_(), bus.ask("@nobody", "x"), bus.serve(print))]
        await until(lambda: len(bus._bus._producer._asked) == 4)
        await bus.close()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in ended] == [errors.NotConnected] * 3 + [type(None)]

    run(main)


# --- cancelling


def test_a_cancelled_task_withdraws_its_request():
    async def main() -> None:
        async with aio.connect("alice") as bus:
            task = asyncio.create_task(bus.ask("@nobody", "x"))
            await until(lambda: requests_waiting() == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: requests_waiting() == 0)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(bus.ask("@nobody", "x"), 0.05)
            await until(lambda: requests_waiting() == 0 and not bus._bus._producer._asked)

    run(main)


@pytest.mark.parametrize("how", ["break", "cancel"])
def test_leaving_map_withdraws_open_requests(how):
    async def main() -> None:
        async with Echo(), aio.connect("alice") as bus:

            async def leave() -> None:
                mapped = bus.map("@nobody" if how == "cancel" else "echo", range(2000))
                async for _ in mapped:
                    break
                await mapped.aclose()  # type: ignore[attr-defined]

            task = asyncio.create_task(leave())
            if how == "cancel":
                await until(lambda: requests_waiting() == WINDOW)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not bus._bus._producer._asked)
            await until(lambda: requests_waiting() == 0)

    run(main)


def test_an_item_that_cannot_be_sent_raises_in_its_turn():
    async def main() -> None:
        async with Echo(), aio.connect() as bus:
            got = []
            with pytest.raises(errors.InvalidPayload):
                async for answer in bus.map("echo", [1, 2, object(), 3]):
                    got.append(answer.body)
            assert got == [1, 2]
            assert not bus._bus._producer._asked

    run(main)


def test_items_may_be_made_from_answers():
    async def main() -> None:
        async with Echo(), aio.connect() as bus:
            todo: asyncio.Queue[int | None] = asyncio.Queue()

            async def items() -> AsyncIterator[int]:
                while (item := await todo.get()) is not None:
                    yield item

            todo.put_nowait(0)
            got = []
            async for answer in bus.map("echo", items(), timeout=PATIENCE_S):
                got.append(answer.body)
                todo.put_nowait(answer.body + 1 if answer.body < 20 else None)
            assert got == list(range(21))

    run(main)


def test_the_deadline_of_map_is_that_of_all_of_it():
    async def main() -> None:
        async with Echo(), aio.connect() as bus:

            async def never() -> AsyncIterator[int]:
                yield 1
                await asyncio.Event().wait()

            got = []
            with pytest.raises(errors.Timeout, match="longer timeout"):
                async for answer in bus.map("echo", never(), timeout=0.5):
                    got.append(answer.body)
            assert got == [1]
            with pytest.raises(errors.Timeout):
                async for _ in bus.map("@nobody", [1], timeout=0.05):
                    pass

    run(main)


def test_a_cancelled_connect_leaves_nothing():
    async def main() -> None:
        for _ in range(10):
            task = asyncio.create_task(forget(aio.connect("alice")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: not threads())
        async with aio.connect("alice"):
            pass

    run(main)


# --- serving


@pytest.mark.filterwarnings("always::ResourceWarning")
def test_one_that_nobody_closes_ends_and_says_so():
    async def main() -> None:
        bus = await aio.connect("auth")
        assert bus.name == "auth"
        del bus
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed bus 'auth'"):
        run(main)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda bus: bus.send("me", "x", timeout="5"), errors.InvalidArgument),
        (lambda bus: bus.reply("me", "x"), errors.InvalidArgument),
        (lambda bus: bus.ask("me", "x", timeout="5"), errors.InvalidArgument),
        (lambda bus: _async(bus.scatter, "me", "x"), errors.InvalidArgument),
        (lambda bus: anext(bus.map("me", "abc")), errors.InvalidArgument),
        (lambda bus: anext(bus.map("me", 5)), errors.InvalidArgument),
        (lambda bus: anext(bus.messages("5")), errors.InvalidArgument),
        (lambda bus: bus.serve(len, concurrency=0), errors.InvalidArgument),
        (lambda bus: aio.connect(cast(Any, 5)), errors.InvalidName),
    ],
)
def test_arguments_are_checked(call, error):
    async def main() -> None:
        async with aio.connect("me") as bus:
            with pytest.raises(error):
                await call(bus)

    run(main)


async def _async(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


def test_what_fails_in_map_is_named():
    async def main() -> None:
        async with aio.connect() as bus:
            with pytest.raises(errors.ZmqbusError) as caught:
                async for _ in bus.map("@nobody", [{1}], timeout=PATIENCE_S):
                    pass
            assert (caught.value.index, caught.value.item) == (0, {1})

    run(main)


def test_serving_until_it_is_cancelled():
    async def main() -> None:
        async def handler(message: Message) -> Any:
            await asyncio.sleep(0)
            return message.body * 2

        async with aio.connect(group="g") as worker, aio.connect() as bus:
            for one in (handler, lambda message: message.body * 2):
                serving = asyncio.create_task(worker.serve(one, concurrency=4))
                assert [answer.body async for answer in bus.map("@g", range(50))] == list(range(0, 100, 2))
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
            reply = bus.request("@g", 1)
            await until(lambda: requests_waiting() == 1)
            assert not reply.done()
            reply.cancel()

    run(main)


def test_a_handlers_error_is_remote():
    async def main() -> None:
        async def handler(message: Message) -> None:
            raise ValueError("no")

        async with aio.connect(group="g") as worker, aio.connect() as bus:
            serving = asyncio.create_task(worker.serve(handler))
            with pytest.raises(errors.RemoteError, match="ValueError: no"):
                await bus.ask("@g", 1)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    run(main)


# --- loops


def test_both_kinds_of_bus_in_one_program():
    async def main() -> None:
        with zmqbus.connect("thread") as blocking:
            thread = threading.Thread(target=blocking.serve, args=(lambda message: message.body,))
            thread.start()
            async with aio.connect("loop") as bus:
                assert (await bus.ask("thread", "x", timeout=PATIENCE_S)).text == "x"
            await asyncio.to_thread(blocking.close)
            await asyncio.to_thread(thread.join)

    run(main)


def test_a_loop_that_ends_before_its_bus():
    """As with a notebook that is left, or a forgotten close: no noise, and the process ends."""
    script = """
        import asyncio, zmqbus.aio
        async def main():
            bus = await zmqbus.aio.connect("alice")
            bus.request("@nobody", "x")
            asyncio.ensure_future(bus.ask("@nobody", "x"))
            async def read():
                async for _ in bus.messages():
                    pass
            asyncio.ensure_future(read())
            await asyncio.sleep(0)
        asyncio.run(main())
        print("end")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)


def test_states_and_notices_of_agents() -> None:
    async def main() -> None:
        async with aio.connect("watcher", topics=["sys.state"]) as watcher, aio.connect("nightly") as bus:
            await bus.set_state("blocked", "a person")
            async for notice in watcher.notices(PATIENCE_S):
                assert (notice.topic, notice.name) == ("sys.state", "nightly")
                assert (notice.change, notice.detail) == ("blocked", "a person")
                break
            assert [one async for one in watcher.notices(0.01)] == []
            (row,) = [row for row in await watcher.sessions() if row.name == "nightly"]
            assert (row.agent, row.agent_detail) == ("blocked", "a person")

    run(main)
