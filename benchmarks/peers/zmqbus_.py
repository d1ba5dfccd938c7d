"""zmqbus, through the API that its users have: encrypted, in the journal, and each message acknowledged."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import zmqbus
from benchmarks import work
from benchmarks.stage import PATIENCE_S


class Receiver:
    """A program with a name."""

    def __init__(self) -> None:
        self._bus = zmqbus.connect("receiver")

    def receive(self, count: int, size_bytes: int) -> float:
        """Reads `count` messages; returns when the last one came."""
        check = work.Check(count, size_bytes)
        for message in self._bus.messages(PATIENCE_S):
            if not check.take(message.text):
                return time.monotonic()
        raise TimeoutError("not all messages have come")

    def receive_stamped(self, count: int) -> list[float]:
        """Reads `count` stamped messages; returns the latency of each, in seconds."""
        ages: list[float] = []
        for message in self._bus.messages(PATIENCE_S):
            ages.append(work.age_s(message.text))
            if len(ages) == count:
                return ages
        raise TimeoutError("not all messages have come")

    def echo(self, count: int) -> None:
        """Answers `count` requests."""
        over = threading.Event()
        left = count

        def answer(message: zmqbus.Message) -> str:
            nonlocal left
            left -= 1
            if not left:
                over.set()
            return message.text

        self._bus.serve(answer, stop=over)

    def close(self) -> None:
        """Closes all connections."""
        self._bus.close()


class Sender:
    """Another program."""

    def __init__(self) -> None:
        self._bus = zmqbus.connect("sender")

    def send(self, count: int, size_bytes: int) -> tuple[float, float]:
        """Sends `count` messages; returns when it began, and when it had all receipts."""
        texts = work.bodies(count, size_bytes)
        different = len(texts)
        send = self._bus.send
        began_s = time.monotonic()
        receipts: list[Future[zmqbus.Receipt]] = [
            send("receiver", texts[number % different], wait=False) for number in range(count)
        ]
        for receipt in receipts:
            receipt.result(PATIENCE_S)
        return began_s, time.monotonic()

    def fill(self, names: list[str], count: int, size_bytes: int) -> float:
        """Sends `count` messages to each of these absent sessions; returns how long until all were queued, in s."""
        texts = work.bodies(count, size_bytes)
        began_s = time.monotonic()
        for name in names:
            receipts = [self._bus.send(name, text, wait=False) for text in texts]
            if any(receipt.result(PATIENCE_S).state != "queued" for receipt in receipts):
                raise ValueError(f"{name} was to be away")
        return time.monotonic() - began_s

    def send_stamped(self, count: int, pause_s: float) -> None:
        """Sends `count` stamped messages with pauses, then waits for their receipts."""
        receipts: list[Future[zmqbus.Receipt]] = []
        for when_s in work.spaced(count, pause_s):
            work.sleep_until(when_s)
            receipts.append(self._bus.send("receiver", work.stamp(), wait=False))
        for receipt in receipts:
            receipt.result(PATIENCE_S)

    def ask(self, count: int, pause_s: float) -> list[float]:
        """Sends `count` requests with pauses; returns how long each answer took, in seconds."""
        taken: list[float] = []
        for when_s in work.spaced(count, pause_s):
            work.sleep_until(when_s)
            began_s = time.monotonic()
            self._bus.ask("receiver", work.stamp(), timeout=PATIENCE_S)
            taken.append(time.monotonic() - began_s)
        return taken

    def close(self) -> None:
        """Closes all connections."""
        self._bus.close()
