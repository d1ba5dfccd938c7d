"""The console's own voice: what is sent from the page comes from a session called `console`.

It joins the bus with the first message that is sent, not before: who only looks is not on the list. As long as a page
is open it stays, so that answers reach it (they are shown because they are in the log; here they are only taken, and
thereby acknowledged). With the last page it leaves, after a while; its name keeps its mailbox, and its next message
brings it back. With the end of the console it leaves for good: nobody is going to come back under its name, so nothing
is kept for it, and whoever answers later is told so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import zmqbus
from zmqbus.client import bus as bus_module
from zmqbus.client.launch import broker_pid
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.errors import NameTaken, NotConnected, ZmqbusError
from zmqbus.settings import Settings
from zmqbus.wire.naming import next_name

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
        self._away: str | None = None  # the name under which it has left, to come back
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
            leaving = self._leaving
        if leaving is not None:
            leaving.cancel()
            leaving.join()  # it may be in the middle of it
        self._leave(forget=True)
        away, self._away = self._away, None
        if away is not None and broker_pid(self._settings) is not None:
            # It had left, and may be called away yet. Coming back is how this process proves whose session that is.
            with contextlib.suppress(ZmqbusError):
                self._connect(away, label=LABEL, port=self._settings.port).close(forget=True)

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
            self._bus = self._connect_under(self._away)
            self._away = None
            self._reader = threading.Thread(target=_take, args=(self._bus,), name="console voice")
            self._reader.start()
            return self._bus

    def _connect_under(self, before: str | None) -> bus_module.Bus:
        """Joins under the name that it had before, or the first that is free."""
        names = [NAME, *(next_name(NAME, number) for number in range(2, NAME_TRIES + 1))]
        if before is not None:
            names = [before, *(name for name in names if name != before)]
        *others, last = names
        for name in others:
            with contextlib.suppress(NameTaken):
                return self._connect(name, label=LABEL, port=self._settings.port)
        return self._connect(last, label=LABEL, port=self._settings.port)

    def _leave(self, *, forget: bool = False) -> None:
        with self._lock:
            bus, self._bus = self._bus, None
            reader, self._reader = self._reader, None
        if bus is not None:
            self._away = None if forget else bus.name
            bus.close(forget=forget)
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
