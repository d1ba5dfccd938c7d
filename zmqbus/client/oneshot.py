"""The one-shot client: the bus as blocking calls for one thread, as the commands use it.

    with OneShotClient(settings, persona) as bus:
        receipt = bus.send("auth", b"run the tests")

Each call drives the connection itself: there is no thread, and between calls nothing happens. A broker that dies is
replaced, and messages that it had not confirmed are sent again; a call gives up when no broker has been heard of for
five seconds.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import zmqbus
from zmqbus import errors
from zmqbus.client import core
from zmqbus.client.locate import check_loopback
from zmqbus.client.receipts import BroadcastReceipt, Receipt, receipt_of
from zmqbus.client.seen import SeenIds
from zmqbus.client.transport import Transport
from zmqbus.settings import Settings
from zmqbus.text import wording
from zmqbus.text.display import sanitise
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Role, Scope

#: Seconds to wait for the broker, which answers everything within one (BUSY_AFTER_S).
CONFIRM_S = 5.0
#: How often a preview is repeated because all of its messages had been shown, and only their acknowledgements were
#: lost.
MAX_PREVIEWS = 4


class OneShotClient:
    """A connection for a command or a simple script. A context manager; neither thread-safe nor fork-safe."""

    def __init__(
        self,
        settings: Settings,
        persona: core.Persona,
        taken: SeenIds | None = None,
        *,
        starts: bool = True,
        patient: bool = False,
        patience_s: float | None = None,
    ) -> None:
        """`taken`: the messages that were taken before, if that is remembered for longer than this client lives.
        `starts`: start a broker where none runs; otherwise that is a `BrokerUnavailable`. `patient`: see
        `Transport`. `patience_s`: the seconds that all calls together may wait; None: no such limit."""
        self._patience_s = patience_s
        self._end_s = math.inf if patience_s is None else time.monotonic() + patience_s
        self._taken = SeenIds() if taken is None else taken
        client = core.ClientCore(persona, zmqbus.__version__, self._taken)
        self._transport = Transport(settings, client, starts=starts, patient=patient)
        self._new_id = verbs.IdMaker()
        self._answers: dict[str, verbs.Receipt | verbs.Tally | errors.ZmqbusError] = {}
        self._responses: dict[str, verbs.Envelope | errors.ZmqbusError] = {}
        self._incoming: deque[core.Incoming] = deque()
        self._refs = 0

    @property
    def identity(self) -> core.Persona:
        """The identity that it acts under."""
        return self._transport.core.persona

    def __repr__(self) -> str:
        return f"<OneShotClient {self._transport!r}>"

    def __enter__(self) -> OneShotClient:
        try:
            self._transport.open()
        except BaseException:
            self._transport.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.perform(self._transport.core.bye())
        self._transport.close()

    # --- sending

    def post(
        self,
        target: str,
        body: bytes,
        *,
        scope: Scope = Scope.SESSION,
        fmt: Format = Format.TEXT,
        reply_to: str | None = None,
        await_answer: bool = False,
    ) -> str:
        """Sends without waiting for the receipt, which `outcome` returns; returns the message's id."""
        msg_id = self._new_id()
        while not self._transport.core.may_send:
            self._pump(None)
        if await_answer:
            self._do(self._transport.core.await_answer(msg_id))
        self._do(self._transport.core.send(core.Outgoing(msg_id, scope, target, fmt, reply_to, False, body)))
        return msg_id

    def outcome(self, msg_id: str) -> Receipt | BroadcastReceipt:
        """Waits for the outcome of a message.

        Guarantee: `delivered` means that the receiver's application has taken it, `queued` that it is in the receiver's
        mailbox (docs/protocol.md, section 7). Raises the `DeliveryError` or `BrokerError` that the broker gave, and
        `BrokerUnavailable` if none confirms it.
        """
        self._until(lambda: msg_id in self._answers)
        answer = self._answers.pop(msg_id)
        if isinstance(answer, errors.ZmqbusError):
            raise answer
        return receipt_of(msg_id, answer)

    def send(self, target: str, body: bytes, *, fmt: Format = Format.TEXT, reply_to: str | None = None) -> Receipt:
        """Sends to one session and waits for the receipt."""
        receipt = self.outcome(self.post(target, body, fmt=fmt, reply_to=reply_to))
        assert isinstance(receipt, Receipt)
        return receipt

    def broadcast(self, body: bytes, *, topic: str | None = None, fmt: Format = Format.TEXT) -> BroadcastReceipt:
        """Sends to every session, or to those that joined a topic, and waits for the receipt."""
        scope = Scope.ALL if topic is None else Scope.TOPIC
        receipt = self.outcome(self.post(topic or "", body, scope=scope, fmt=fmt))
        assert isinstance(receipt, BroadcastReceipt)
        return receipt

    # --- receiving

    def answer_to(self, msg_id: str, timeout_s: float) -> core.Incoming:
        """Waits for the answer to a message that was posted with `await_answer`. Raises `errors.Timeout`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for message in self._incoming:
                if message.header.reply_to == msg_id:
                    self._incoming.remove(message)
                    return message
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise errors.Timeout(
                    f"no answer to {msg_id} within {timeout_s:g} s; the message stays delivered or queued, and an "
                    "answer that comes later is shown by the session's listener"
                )
            self._pump(left_s)

    def take(self, message: core.Incoming) -> None:
        """Acknowledges a message to the broker. To be called in the order of arrival."""
        self._transport.core.taken(message.ticket)
        self._do(self._transport.core.acknowledge())

    def unread(self, *, peek: bool) -> Iterator[core.Incoming | verbs.Fetched]:
        """Yields the session's unread messages, oldest first, and at last their count. `take` marks each as read."""
        ref = self._ref()
        self._do(self._transport.core.request(verbs.Fetch(ref, peek)))
        while True:
            while self._incoming:
                yield self._incoming.popleft()
            response = self._responses.pop(ref, None)
            if isinstance(response, errors.ZmqbusError):
                raise response
            if isinstance(response, verbs.Fetched):
                yield response
                return
            self._until(lambda: bool(self._incoming) or ref in self._responses)

    def preview(self, messages: int, head_bytes: int) -> tuple[list[verbs.Previewed], int]:
        """Returns the oldest unread messages, at most `messages`, each with at most `head_bytes` of its body, and how
        many more are unread. They stay unread. The cost does not depend on how many wait."""
        return self._preview(lambda: self.request(lambda ref: verbs.Preview(ref, messages, head_bytes)))

    def await_preview(
        self, messages: int, head_bytes: int, look: Callable[[], float]
    ) -> tuple[list[verbs.Previewed], int]:
        """As `preview`, once a message is unread, however long that takes; nothing where the session is not away.

        `look` is called before each wait, and returns after how many seconds it has to be called again at the latest.
        It ends the wait by an exception.
        """
        return self._preview(lambda: self._await_response(verbs.Preview(self._ref(), messages, head_bytes, True), look))

    def _preview(self, ask: Callable[[], verbs.Envelope]) -> tuple[list[verbs.Previewed], int]:
        left = 0
        for _ in range(MAX_PREVIEWS):
            answer = ask()
            assert isinstance(answer, verbs.Previews)
            rows = [verbs.Previewed._make(row) for row in answer.rows]
            shown = [row.msg_id for row in rows if row.msg_id in self._taken]
            left = answer.left
            if len(shown) < len(rows) or not rows:
                return [row for row in rows if row.msg_id not in shown], left
            # All of them were shown before, and only their acknowledgement was lost: remove them, and look behind them.
            self.settle(shown)
        return [], left

    def _await_response(self, request: verbs.Preview, look: Callable[[], float]) -> verbs.Envelope:
        self._do(self._transport.core.request(request))
        while request.ref not in self._responses:
            self._pump(look())
        return self._response(request.ref)

    def pause(self, seconds: float, look: Callable[[], float]) -> None:
        """Serves the connection for so long. `look`: see `await_preview`."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._pump(min(left_s, look()))

    def tell(self, make: Callable[[str], verbs.Envelope]) -> None:
        """Sends a request whose response does not matter. It is repeated to the next broker until it has one."""
        self._do(self._transport.core.request(make(self._ref())))

    @property
    def epoch(self) -> str | None:
        """Which broker this is; None: it has not answered yet."""
        welcome = self._transport.core.welcome
        return welcome.epoch if welcome is not None else None

    def watch(self, descriptor: int, *, hang_up: bool = False) -> None:
        """Ends each wait early when this descriptor is readable; with `hang_up`, when its other end has gone."""
        self._transport.watch(descriptor, hang_up=hang_up)

    def mark_read(self, msg_ids: Sequence[str]) -> None:
        """Marks previewed messages as read, for good: whatever happens now, they are not shown again. `settle` tells
        the broker, or the next process of the session that it offers them to."""
        self._taken.add_all(msg_ids)

    def settle(self, msg_ids: Sequence[str]) -> None:
        """Tells the broker that messages were read, so that they leave the mailbox."""
        self.request(lambda ref: verbs.MarkRead(ref, tuple(msg_ids)))

    # --- asking the broker

    def sessions(self, *, everyone: bool = False) -> list[verbs.Session]:
        """Returns the connected sessions; with `everyone` also those that are away."""
        rows: list[verbs.Session] = []
        after = ""
        while True:
            page = self.request(lambda ref, after=after: verbs.List(ref, everyone, after))  # type: ignore[misc]
            assert isinstance(page, verbs.Sessions)
            rows += [verbs.Session._make(row) for row in page.rows]
            if not page.more:
                return rows
            after = rows[-1].session_id

    def figures(self) -> dict[str, Any]:
        """Returns the broker's metrics by name; see `zmqbus.wire.metrics_catalogue`."""
        health = self.request(verbs.Status)
        assert isinstance(health, verbs.Health)
        return dict(health.figures)

    def request(self, make: Callable[[str], verbs.Envelope]) -> verbs.Envelope:
        """Sends a request and waits for the response; raises the broker's refusal. `make` gets the ref to use."""
        ref = self._ref()
        self._do(self._transport.core.request(make(ref)))
        self._until(lambda: ref in self._responses)
        return self._response(ref)

    def _response(self, ref: str) -> verbs.Envelope:
        """Returns a response that has come; raises it where it is a refusal."""
        response = self._responses.pop(ref)
        if isinstance(response, errors.ZmqbusError):
            raise response
        return response

    def until(self, target: str, states: Sequence[str], timeout_s: float) -> str:
        """Waits until the agent of a session is in one of these states, and returns that.

        The broker answers when it is so; a new broker is asked again. Raises the broker's refusal (`UnknownPeer`), and
        `errors.Timeout` after `timeout_s` seconds.
        """
        ref = self._ref()
        self._do(self._transport.core.request(verbs.Until(ref, target, tuple(states))))
        deadline_s = time.monotonic() + timeout_s
        while ref not in self._responses:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise errors.Timeout(f"'{sanitise(target, 80)}' is not {' or '.join(states)} after {timeout_s:g} s")
            self._pump(left_s)
        response = self._response(ref)
        assert isinstance(response, verbs.Done)
        return response.text

    def await_answer(self, msg_id: str) -> None:
        """Directs the answer to a message that was sent before to this connection; `answer_to` returns it."""
        self._do(self._transport.core.await_answer(msg_id))
        self.meet()

    def meet(self) -> verbs.Welcome:
        """Waits for the broker's WELCOME, and returns it."""
        self._until(lambda: self._transport.core.phase is core.Phase.READY)
        assert self._transport.core.welcome is not None
        return self._transport.core.welcome

    # --- driving

    def _ref(self) -> str:
        self._refs += 1
        return f"r{self._refs}"

    def _until(self, done: Callable[[], bool]) -> None:
        heard_s = time.monotonic()
        while not done():
            if self._transport.core.phase is not core.Phase.READY:
                heard_s = time.monotonic()  # the transport itself gives up when no broker answers
            now_s = time.monotonic()
            if now_s >= self._end_s:
                raise self._impatience()
            left_s = min(heard_s + CONFIRM_S, self._end_s) - now_s
            if left_s <= 0:
                raise errors.BrokerUnavailable(
                    f"the broker does not answer ({CONFIRM_S:g} s); see zmqbus broker --status, and repeat the command "
                    "when it does"
                )
            self._pump(left_s)

    def _impatience(self) -> errors.BrokerUnavailable:
        check_loopback(self._transport.port)
        port = self._transport.port
        return errors.BrokerUnavailable(
            f"the broker on port {port} does not answer within {self._patience_s:g} s; see: zmqbus doctor"
        )

    def _pump(self, timeout_s: float | None) -> None:
        self._take_in(self._transport.pump(timeout_s))

    def _do(self, effects: list[core.Effect]) -> None:
        self._take_in(self._transport.perform(effects))

    def _take_in(self, effects: list[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Confirmed(msg_ids, outcome):
                    for msg_id in msg_ids:
                        self._answers[msg_id] = outcome
                case core.Response(ref, envelope):
                    self._responses[ref] = envelope
                case core.Hand():
                    self._incoming += effect.messages()
                case core.TakeBack():
                    self._incoming.clear()
                case core.Closed(reason):
                    raise reason or errors.NotConnected(
                        f"the session was disconnected; run {wording.command('connect')}"
                    )


def guest(settings: Settings, name: str) -> OneShotClient:
    """Returns a client for a script without a session: it sends under a name, and is not listed."""
    return OneShotClient(settings, core.Persona(role=Role.GUEST, name=name, token=verbs.new_token()))


def observer(settings: Settings, *, starts: bool = True, patience_s: float | None = None) -> OneShotClient:
    """Returns a client for looking only. Without `starts` it never starts a broker, not even in the place of one that
    ends while it is asked: every look would undo `zmqbus broker --stop`. All its calls together wait for `patience_s`
    at most, and then raise `BrokerUnavailable`: a healthy broker answers within milliseconds."""
    return OneShotClient(settings, core.Persona(role=Role.OBSERVER), starts=starts, patience_s=patience_s)
