"""Event streams: each is bounded, and none delays another."""

from __future__ import annotations

import asyncio
import json
import threading

from zmqbus.console.sse import MAX_QUEUE_BYTES, MAX_STREAMS, MAX_STREAMS_EACH, Hub, Stream, event

PATIENCE_S = 90.0


async def collect(stream: Stream) -> bytes:
    return b"".join([data async for data in stream.events()])


def test_event_is_one_block() -> None:
    data = event("messages", {"text": "a\n\nevent: forged\r\ndata: x\u2028\ud800"})
    assert data.count(b"\n\n") == 1 and data.endswith(b"\n\n")
    head, body, *rest = data.split(b"\n")
    assert (head, rest) == (b"event: messages", [b"", b""])
    assert json.loads(body.removeprefix(b"data: "))["text"].startswith("a\n\nevent: forged\r\n")


def test_publish_from_a_thread_reaches_every_stream() -> None:
    async def play() -> list[bytes]:
        hub = Hub(lambda pages: None)
        hub.bind(asyncio.get_running_loop())
        streams = [hub.open("a"), hub.open("b")]
        reading = [asyncio.create_task(collect(stream)) for stream in streams]

        def publish() -> None:
            for number in range(100):
                hub.publish("n", number)

        thread = threading.Thread(target=publish)
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)
        hub.close_all()
        return await asyncio.wait_for(asyncio.gather(*reading), PATIENCE_S)

    first, second = asyncio.run(play())
    assert first == second == b"".join(event("n", number) for number in range(100)) + event("closing", {})


def test_queue_of_a_page_that_does_not_read_is_bounded() -> None:
    stream = Stream("a")
    chunk = event("messages", "x" * 10_000)
    for _ in range(10_000):  # 100 MB
        stream.put(chunk)
        assert stream.waiting_bytes <= MAX_QUEUE_BYTES + len(chunk)

    async def play() -> bytes:
        stream.end()
        return await collect(stream)

    got = asyncio.run(play())
    assert got.startswith(event("overflow", {})), "the page has to fetch the present state"
    assert len(got) <= MAX_QUEUE_BYTES + len(chunk)


def test_oldest_stream_ends_when_there_are_too_many() -> None:
    async def play() -> None:
        pages: list[int] = []
        hub = Hub(pages.append)
        hub.bind(asyncio.get_running_loop())
        streams = [hub.open("a") for _ in range(MAX_STREAMS_EACH + 1)]
        assert len(hub) == MAX_STREAMS_EACH
        assert await collect(streams[0]) == event("superseded", {})
        others = [hub.open(f"b{number}") for number in range(MAX_STREAMS)]
        assert len(hub) == MAX_STREAMS == max(pages)
        hub.close(others[0])
        hub.close(others[0])
        assert len(hub) == MAX_STREAMS - 1 == pages[-1]
        hub.close_all()
        assert len(hub) == pages[-1] == 0
        assert await collect(hub.open("late")) == b"", "no stream opens after the end"

    asyncio.run(play())


def test_publish_before_and_after_the_loop() -> None:
    hub = Hub(lambda pages: None)
    hub.publish("n", 1)  # before the loop runs

    async def play() -> None:
        hub.bind(asyncio.get_running_loop())

    asyncio.run(play())
    hub.publish("n", 2)
