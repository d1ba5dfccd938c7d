"""Sends messages from the page, as a session named `console`.

The session joins the bus with the first message sent, so a person who only looks is not listed. While a page is open it
stays, to receive answers: it acknowledges them, and the page shows them from the log. `STAY_S` after the last page has
closed it leaves; its name keeps its mailbox, and the next message brings it back. When the console ends the session
leaves for good: nobody will come back under its name, so no mail is kept, and later answers are refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import zmqbus
from zmqbus.client import bus as bus_module
from zmqbus.client.locate import broker_pid
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.errors import NameTaken, NotConnected, ZmqbusError
from zmqbus.settings import Settings
from zmqbus.wire.naming import next_name

NAME = "console"
LABEL = "Console"
#: Names tried when `console` is taken, once for each console that runs.
NAME_TRIES = 5
#: How long the session stays when no page is open: a reload, or a laptop closed for a moment, changes nothing.
STAY_S = 60.0
#: How long to wait for the broker's receipt; after that the page says that the message may still arrive.
CONFIRM_S = 30.0


class Sender:
    """Sends for the page. Thread-safe."""

    def __init__(self, settings: Settings, connect: Callable[..., bus_module.Bus] = zmqbus.connect) -> None:
        """`connect`: `zmqbus.connect`, or a replacement in tests."""
        self._settings = settings
        self._connect = connect
        self._lock = threading.Lock()  # held while joining or leaving
        self._bus: bus_module.Bus | None = None
        self._reader: threading.Thread | None = None
        self._leave_timer: threading.Timer | None = None
        self._away_name: str | None = None  # name of the session that has left and may come back
        self._closed = False

    @property
    def session_id(self) -> str | None:
        """Id of the console's session; None while it has not joined."""
        bus = self._bus
        return None if bus is None else bus.session_id

    @property
    def is_leaving(self) -> bool:
        """Whether the session leaves when `STAY_S` is over."""
        return self._leave_timer is not None

    def set_pages(self, count: int) -> None:
        """Sets how many pages are open; without any, the session leaves after `STAY_S`."""
        with self._lock:
            if self._leave_timer is not None:
                self._leave_timer.cancel()
                self._leave_timer = None
            if not count and self._bus is not None and not self._closed:
                self._leave_timer = threading.Timer(STAY_S, self._leave)
                self._leave_timer.daemon = True
                self._leave_timer.start()

    def close(self) -> None:
        """Leaves the bus for good. Idempotent."""
        with self._lock:
            self._closed = True
            leave_timer = self._leave_timer
        if leave_timer is not None:
            leave_timer.cancel()
            leave_timer.join()  # it may be leaving right now
        self._leave(forget=True)
        away_name, self._away_name = self._away_name, None
        if away_name is not None and broker_pid(self._settings) is not None:
            # The session is away. Only a process that joins as it may delete it for good.
            with contextlib.suppress(ZmqbusError):
                self._connect(away_name, label=LABEL, port=self._settings.port).close(forget=True)

    def send(self, target: str, text: str, reply_to: str | None) -> Receipt:
        """Sends to one session. Raises like `Bus.send`, and why the bus cannot be joined."""
        return self._joined().send(target, text, reply_to=reply_to, timeout=CONFIRM_S)

    def broadcast(self, text: str, *, topic: str | None = None, project: str | None = None) -> BroadcastReceipt:
        """Sends to all sessions, to the subscribers of a topic, or to a project's sessions. Raises like `send`."""
        return self._joined().broadcast(text, topic=topic, project=project or False, timeout=CONFIRM_S)

    def _joined(self) -> bus_module.Bus:
        """Returns the session's bus; joins first where it is not connected."""
        with self._lock:
            if self._closed:
                raise NotConnected("the console is ending; start it again with: zmqbus console")
            if self._bus is not None and self._reader is not None and self._reader.is_alive():
                return self._bus
            if self._bus is not None:  # somebody else has disconnected it
                self._bus.close()
                self._bus = None
            self._bus = self._connect_as(self._away_name)
            self._away_name = None
            self._reader = threading.Thread(target=_acknowledge_all, args=(self._bus,), name="console sender")
            self._reader.start()
            return self._bus

    def _connect_as(self, before: str | None) -> bus_module.Bus:
        """Joins under the name that the session had `before`, or the first free one."""
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
            self._away_name = None if forget else bus.name
            bus.close(forget=forget)
        if reader is not None:
            reader.join()


def _acknowledge_all(bus: bus_module.Bus) -> None:
    """Receives, and thereby acknowledges, every message to the console until it leaves."""
    try:
        for _ in bus.messages():
            pass
    except ZmqbusError:
        return


def receipt_json(receipt: Receipt | BroadcastReceipt) -> dict[str, Any]:
    """Returns a receipt as the page gets it."""
    if isinstance(receipt, BroadcastReceipt):
        return {"state": "broadcast", **receipt._asdict(), "full": list(receipt.full), "unsaved": list(receipt.unsaved)}
    return receipt._asdict()
