"""The console's own voice: what is sent from the page comes from a session called `console`.

It joins the bus with the first message that is sent, not before: who only looks is not on the list. As long as a page
is open it stays, so that answers reach it (they are shown because they are in the log; here they are only taken, and
thereby acknowledged). With the last page it leaves, after a while; its name keeps its mailbox, and its next message
brings it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import zmqbus
from zmqbus.client import bus as bus_module
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.errors import NameTaken, NotConnected, ZmqbusError
from zmqbus.naming import next_name
from zmqbus.settings import Settings

NAME = "console"
LABEL = "Console"
#: How often another name is tried: each is another console that runs.
NAME_TRIES = 5
#: How long it stays when no page is open: a reload, or a laptop that was shut for a moment, changes nothing.
STAY_S = 60.0
#: How long the broker's word is waited for; then the page says that it may still arrive.
CONFIRM_S = 30.0


class Voice:
    """Speaks for the page. Thread-safe."""

    def __init__(self, settings: Settings, connect: Callable[..., bus_module.Bus] = zmqbus.connect) -> None:
        self._settings = settings
        self._connect = connect
        self._lock = threading.Lock()  # one at a time joins or leaves
        self._bus: bus_module.Bus | None = None
        self._reader: threading.Thread | None = None
        self._leaving: threading.Timer | None = None
        self._ended = False

    @property
    def session_id(self) -> str | None:
        """Its session id, once it has joined."""
        bus = self._bus
        return None if bus is None else bus.session_id

    def watched_by(self, pages: int) -> None:
        """So many pages are open; with none it leaves, after a while."""
        with self._lock:
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None
            if not pages and self._bus is not None and not self._ended:
                self._leaving = threading.Timer(STAY_S, self._leave)
                self._leaving.daemon = True
                self._leaving.start()

    def close(self) -> None:
        """Leaves the bus for good. Idempotent."""
        with self._lock:
            self._ended = True
            if self._leaving is not None:
                self._leaving.cancel()
        self._leave()

    def send(self, target: str, text: str, reply_to: str | None) -> Receipt:
        """Sends to one session. Raises what `Bus.send` raises, and what keeps it from joining."""
        return self._joined().send(target, text, reply_to=reply_to, timeout=CONFIRM_S)

    def broadcast(self, text: str, *, topic: str | None = None, project: str | None = None) -> BroadcastReceipt:
        """Sends to everybody, to those who joined a topic, or to the sessions of a project. Raises as `send`."""
        return self._joined().broadcast(text, topic=topic, project=project or False, timeout=CONFIRM_S)

    def _joined(self) -> bus_module.Bus:
        with self._lock:
            if self._ended:
                raise NotConnected("the console is ending; start it again with: zmqbus console")
            if self._bus is not None and self._reader is not None and self._reader.is_alive():
                return self._bus
            if self._bus is not None:  # it has ended by itself
                self._bus.close()
                self._bus = None
            name = NAME
            for number in range(2, NAME_TRIES + 2):
                try:
                    self._bus = self._connect(name, label=LABEL, port=self._settings.port)
                    break
                except NameTaken:
                    if number > NAME_TRIES:
                        raise
                    name = next_name(NAME, number)
            assert self._bus is not None
            self._reader = threading.Thread(target=_take, args=(self._bus,), name="console voice")
            self._reader.start()
            return self._bus

    def _leave(self) -> None:
        with self._lock:
            bus, self._bus = self._bus, None
            reader, self._reader = self._reader, None
        if bus is not None:
            bus.close()
        if reader is not None:
            reader.join()


def _take(bus: bus_module.Bus) -> None:
    """Takes what comes for the console, until it leaves."""
    try:
        for _ in bus.messages():
            pass
    except ZmqbusError:
        return


def receipt_json(receipt: Receipt | BroadcastReceipt) -> dict[str, Any]:
    """What became of a message, for the page."""
    if isinstance(receipt, BroadcastReceipt):
        return {"state": "broadcast", **receipt._asdict(), "full": list(receipt.full), "unsaved": list(receipt.unsaved)}
    return receipt._asdict()
