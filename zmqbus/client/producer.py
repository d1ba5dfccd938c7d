"""The sending half of a program's bus: messages and their receipts, requests and their answers, calls to the broker.
The result of each is a future.

Theory of operation
===================

The producer has a connection of its own, as a helper of the program's session (or as a guest, if that has no name). So
an answer never waits behind messages that the program does not read: those come to the other half (`consumer`).

A caller puts its message down, and has the I/O thread send it: at once, or in a stream together with the next ones
(`IoThread.send_soon`). As many go out as the client core's window allows; the rest waits here, in order, up to
`MAX_OUTSTANDING`. A request ends in one of five ways, each of which removes it from the tables: an answer, a refusal,
its deadline, its cancellation, the end of the bus. In the last three the producer tells the broker that the answer is
not wanted.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from zmqbus.client import core, payload
from zmqbus.client.io_thread import IoThread
from zmqbus.client.light_future import LightFuture
from zmqbus.client.message import Message, of_batch
from zmqbus.client.receipts import BroadcastReceipt, Receipt, receipts_of
from zmqbus.client.transport import Transport
from zmqbus.errors import Overloaded, Timeout, ZmqbusError
from zmqbus.journal.record import JournalError
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Format, Header, Scope

#: Messages and requests without an outcome: a program that has so many open should take some outcomes first.
MAX_OUTSTANDING = 100_000
#: Bytes of the bodies of those that have not gone out yet.
MAX_WAITING_BYTES = 256 * 1024 * 1024
#: Requests to single sessions that have gone out: the broker lets a connection await 1,000 answers.
MAX_AWAITED = 900
#: Remove the deadlines of answered requests when there are this many more deadlines than requests.
MAX_STALE_DEADLINES = 1_000

AnyReceipt: TypeAlias = Receipt | BroadcastReceipt


def _finish_all(outcomes: Iterable[tuple[LightFuture[Any], AnyReceipt | ZmqbusError]]) -> None:
    for future, outcome in outcomes:
        future.finish(outcome)


class Reply(LightFuture[Message]):
    """The future of the answer to a request: a `concurrent.futures.Future`. `target` is the request's, `msg_id` its id.

    `result()` returns the `Message`, or raises `RemoteError` (the handler failed), `Timeout` (the deadline), or the
    error that kept the request from its receiver. `cancel()` withdraws the request.
    """

    def __init__(self, io: IoThread, producer: Producer, msg_id: str, target: str) -> None:
        super().__init__(io)
        self._producer = producer
        self.msg_id = msg_id
        self.target = target

    def cancel(self) -> bool:
        """Withdraws the request unless it is answered: a worker that has not begun with it will not begin."""
        cancelled = super().cancel()
        if cancelled:
            self._producer.abandon(self.msg_id)
        return cancelled


def _too_late(reply: Reply, *, unassigned: bool) -> Timeout:
    """Returns the error of a request whose deadline has come."""
    if unassigned:
        return Timeout(
            f"no answer from '{reply.target}' to {reply.msg_id} in time: nobody works for that group; "
            "start a worker (connect(group=…) and serve()), or see who is there with sessions()"
        )
    return Timeout(
        f"no answer from '{reply.target}' to {reply.msg_id} in time; it may still be at work: ask again with "
        "a longer timeout, or see who is there with sessions()"
    )


class _OpenRequest(NamedTuple):
    """A request to send, the future of its answer, and its deadline on the monotonic clock, if any."""

    envelope: core.Outgoing | verbs.Request
    reply: Reply
    deadline_s: float | None


class Producer:
    """Sends messages and requests, and ends their futures. Thread-safe."""

    def __init__(self, transport: Transport, log_path: str) -> None:
        self._io = IoThread(transport, self)
        self._log = payload.Log(log_path)
        self._new_id = verbs.IdMaker()
        self._refs = 0
        # Put down, and not in the tables yet; under a lock of its own, which is never held for long.
        self._put_lock = threading.Lock()
        self._put: list[core.Outgoing | _OpenRequest] = []
        self._put_requests = 0  # how many of it are requests; messages are in `_sent` at once
        self._put_bytes = 0
        # Room that was found and not used up: to compute it for each message would cost as much as to put that down.
        self._room = 0
        self._room_bytes = 0
        self._over: ZmqbusError | None = None  # why nothing can be put down any more
        # Under the I/O thread's lock.
        self._waiting: deque[core.Outgoing] = deque()  # to go out, in order
        self._unsent: dict[str, core.Outgoing] = {}  # the requests among them
        self._dropped: set[str] = set()  # requests among them that were abandoned
        # Requests to groups that wait to go out, apart from messages: a group without members takes none.
        self._requests: OrderedDict[str, verbs.Request] = OrderedDict()
        self._waiting_bytes = 0
        self._sent: dict[str, LightFuture[Any]] = {}  # message → its receipt
        self._asked: dict[str, tuple[Reply, bool]] = {}  # request → its answer, and whether it is to a group
        self._called: dict[str, LightFuture[verbs.Envelope]] = {}  # ref → the broker's answer
        self._awaited = 0  # requests to single sessions that have gone out
        self._taken: list[core.Ticket] = []  # of answers, to be acknowledged
        self._abandoned: list[str] = []  # requests whose answers are no longer wanted
        self._unawaited: list[str] = []  # messages for whose answers an UNAWAIT has to go out
        self._deadlines: list[tuple[float, str]] = []  # a heap
        self._unassigned: set[str] = set()  # requests to groups without a worker

    def __repr__(self) -> str:
        waiting = len(self._waiting) + len(self._requests)
        return f"<Producer: {len(self._sent)} sent, {len(self._asked)} asked, {waiting} waiting>"

    def open(self) -> None:
        """Connects. Raises as `IoThread.open`."""
        self._io.open()

    def close(self) -> None:
        """Ends the connection; open futures fail with `NotConnected`."""
        self._io.close()

    def close_soon(self) -> None:
        """Ends the connection without waiting, for a finaliser."""
        self._io.close_soon()

    def check(self) -> None:
        """Raises as `IoThread.check`."""
        self._io.check()

    # --- for any thread

    def send(
        self, scope: Scope, target: str, fmt: Format, body: bytes, reply_to: str | None = None
    ) -> tuple[str, LightFuture[Any]]:
        """Sends a message; returns its id and the future of its receipt. Raises `Overloaded`."""
        io = self._io
        io.check()  # before any lock, which is never released in a child process
        future: LightFuture[Any] = LightFuture(io)
        msg_id = self._new_id()
        # Not `Outgoing(…)`, which costs twice as much.
        message = tuple.__new__(core.Outgoing, (msg_id, scope, target, fmt, reply_to, False, body))
        with self._put_lock:
            self._room -= 1
            self._room_bytes -= len(body)
            # guards: producer [self._room < 0 or =>]
            # guards: producer [or self._room_bytes < 0 =>]
            if self._room < 0 or self._room_bytes < 0:
                self._find_room(1, len(body))
            self._put_bytes += len(body)
            self._sent[msg_id] = future
            self._put.append(message)
            gathered = len(self._put)
        io.send_soon(gathered)
        return msg_id, future

    def ask(
        self, scope: Scope, target: str, fmt: Format, body: bytes, timeout_s: float | None, *, patient: bool = True
    ) -> Reply:
        """Sends a request; returns the future of its answer. `patient`: wait until the group has a member. Raises
        `Overloaded`."""
        return self.ask_all(scope, target, [(fmt, body)], timeout_s, patient=patient)[0]

    def ask_all(
        self,
        scope: Scope,
        target: str,
        requests: Sequence[tuple[Format, bytes]],
        timeout_s: float | None,
        *,
        patient: bool = True,
    ) -> list[Reply]:
        """Sends several requests together. Raises `Overloaded`, and then sends none."""
        to_group = scope == Scope.GROUP
        shown = f"@{target}" if to_group else target
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        puts: list[_OpenRequest] = []
        for fmt, body in requests:
            msg_id = self._new_id()
            envelope: core.Outgoing | verbs.Request
            if to_group:
                envelope = verbs.Request(msg_id, target, fmt, patient, False, body)
            else:
                envelope = core.Outgoing(msg_id, scope, target, fmt, None, False, body)
            puts.append(_OpenRequest(envelope, Reply(self._io, self, msg_id, shown), deadline_s))
        size_bytes = sum(len(body) for _, body in requests)
        self._io.check()
        with self._put_lock:
            self._find_room(len(puts), size_bytes)
            self._put += puts
            self._put_requests += len(puts)  # guards: producer
            self._put_bytes += size_bytes
        self._io.execute()
        return [put.reply for put in puts]

    def call(self, make: Callable[[str], verbs.Envelope]) -> LightFuture[verbs.Envelope]:
        """Sends a request to the broker; returns the future of the response. `make` gets the ref to use."""
        future: LightFuture[verbs.Envelope] = LightFuture(self._io)

        def act(client: core.ClientCore) -> list[core.Effect]:
            self._refs += 1
            ref = f"r{self._refs}"
            self._called[ref] = future
            return client.request(make(ref))

        self._io.execute(act)
        return future

    def abandon(self, msg_id: str) -> None:
        """Withdraws a request: its answer is no longer wanted."""

        def act(_: core.ClientCore) -> list[core.Effect]:
            self._take_up()
            if msg_id in self._asked:
                self._abandoned.append(msg_id)
            return []

        try:
            self._io.execute(act)
        except ZmqbusError:
            pass  # the bus has ended, and with it all requests; or it is the parent process's

    # --- Application

    def on_effects(self, effects: Sequence[core.Effect]) -> None:
        """See `io_thread.Application`."""
        for effect in effects:
            match effect:
                case core.Confirmed(msg_ids, outcome):
                    self._confirm(msg_ids, outcome)
                case core.Resolved(msg_id, result):
                    self._resolve(msg_id, result)
                case core.Assignment(msg_id, has_worker):
                    (self._unassigned.discard if has_worker else self._unassigned.add)(msg_id)
                case core.Welcomed():
                    self._unassigned.clear()  # another broker reports it again
                case core.Hand(ticket, batch):
                    # Acknowledged even if nobody waits for it: it was for this connection alone.
                    self._taken.append(ticket)
                    reply_to = batch.header.reply_to
                    if reply_to is not None and reply_to in self._asked:
                        self._resolve(reply_to, batch)
                case core.Response(ref, envelope):
                    future = self._called.pop(ref, None)
                    if future is not None:
                        self._io.call_later(partial(future.finish, envelope))

    def drain(self, client: core.ClientCore) -> list[core.Effect]:
        """See `io_thread.Application`."""
        effects: list[core.Effect] = []
        if self._put:
            self._take_up()
        if self._abandoned or self._unawaited:
            # Before the answers are acknowledged: with that the core forgets its AWAITs, which the broker would not.
            effects += self._withdraw(client)
        if self._taken:
            for ticket in self._taken:
                client.taken(ticket)
            self._taken.clear()
            effects += client.acknowledge()
        while self._requests and client.may_ask:
            request = self._requests.popitem(last=False)[1]
            self._waiting_bytes -= len(request.body)
            effects += client.ask(request)
        if self._waiting:
            self._send_some(client, effects)
        return effects

    def _send_some(self, client: core.ClientCore, effects: list[core.Effect]) -> None:
        """Sends as many waiting messages as the core has room for."""
        count, size_bytes = client.room
        sends: list[core.Outgoing] = []
        waiting, unsent = self._waiting, self._unsent
        while waiting and len(sends) < count and size_bytes >= 0:
            send = waiting[0]
            if unsent and send.msg_id in unsent:
                if self._awaited >= MAX_AWAITED:  # guards: producer
                    break
                del unsent[send.msg_id]
                self._awaited += 1
                effects += client.await_answer(send.msg_id)
            waiting.popleft()
            if self._dropped and send.msg_id in self._dropped:
                self._dropped.remove(send.msg_id)
                continue
            size_bytes -= len(send.body)
            sends.append(send)
        self._waiting_bytes -= sum([len(send.body) for send in sends])
        effects += client.send_all(sends)

    def deadline_s(self) -> float | None:
        """See `io_thread.Application`."""
        deadlines = self._deadlines  # read without the lock, while another thread may replace the list
        return deadlines[0][0] if deadlines else None

    def on_deadline(self) -> None:
        """See `io_thread.Application`."""
        late: list[tuple[Reply, Timeout]] = []

        def act(_: core.ClientCore) -> list[core.Effect]:
            self._take_up()
            now_s = time.monotonic()
            while self._deadlines and self._deadlines[0][0] <= now_s:
                msg_id = heapq.heappop(self._deadlines)[1]
                if msg_id in self._asked:
                    reply = self._asked[msg_id][0]
                    late.append((reply, _too_late(reply, unassigned=msg_id in self._unassigned)))
                    self._abandoned.append(msg_id)
            return []

        try:
            self._io.execute(act)
        except ZmqbusError:
            pass  # the bus has ended, and so do the requests that are not late
        for reply, error in late:
            self._io.call_later(partial(reply.finish, error))

    def on_end(self, error: ZmqbusError) -> None:
        """See `io_thread.Application`."""
        self._log.close()
        with self._put_lock:
            self._over = error
            self._room = self._room_bytes = 0
            puts, self._put = self._put, []
        futures: list[LightFuture[Any]] = [*self._sent.values(), *self._called.values()]
        futures += [reply for reply, _ in self._asked.values()]
        futures += [put.reply for put in puts if isinstance(put, _OpenRequest)]
        for table in (
            self._sent,
            self._called,
            self._asked,
            self._waiting,
            self._requests,
            self._unsent,
            self._unassigned,
        ):
            table.clear()
        for future in futures:
            self._io.call_later(partial(future.finish, error))

    # --- inside

    def _find_room(self, messages: int, size_bytes: int) -> None:
        """Finds room for so many more messages and requests, and notes what is left. Under the lock of the put-down
        list. Raises `Overloaded`, and the error that ended the connection."""
        self._room = self._room_bytes = 0
        if self._over is not None:
            raise self._over
        outstanding = len(self._sent) + len(self._asked) + self._put_requests
        waiting_bytes = self._waiting_bytes + self._put_bytes
        room = MAX_OUTSTANDING - outstanding - messages
        room_bytes = MAX_WAITING_BYTES - waiting_bytes - size_bytes
        if room < 0 or room_bytes < 0:
            raise Overloaded(
                f"{outstanding:,} messages and requests are open ({waiting_bytes:,} bytes waiting to go out); "
                "take some receipts or answers first, or use map(), which has so many under way as are of use"
            )
        self._room, self._room_bytes = room, room_bytes

    def _take_up(self) -> None:
        """Moves the put-down list into the tables. Under the I/O thread's lock."""
        with self._put_lock:
            puts, self._put = self._put, []
            self._waiting_bytes += self._put_bytes
            self._put_requests = self._put_bytes = 0
        for put in puts:
            if isinstance(put, core.Outgoing):
                self._waiting.append(put)
                continue
            envelope, reply, deadline_s = put
            msg_id = envelope.msg_id
            to_group = isinstance(envelope, verbs.Request)
            if isinstance(envelope, verbs.Request):
                self._requests[msg_id] = envelope
            else:
                self._waiting.append(envelope)
                self._unsent[msg_id] = envelope
            self._asked[msg_id] = reply, to_group
            if deadline_s is not None:
                heapq.heappush(self._deadlines, (deadline_s, msg_id))

    def _confirm(self, msg_ids: Iterable[str], outcome: verbs.Receipt | verbs.Tally | ZmqbusError) -> None:
        outcomes: list[tuple[LightFuture[Any], AnyReceipt | ZmqbusError]] = []
        for msg_id, receipt in receipts_of(msg_ids, outcome):
            future = self._sent.pop(msg_id, None)
            if future is not None:
                outcomes.append((future, receipt))
            elif isinstance(receipt, ZmqbusError):
                self._resolve(msg_id, receipt)
        if outcomes:
            self._io.call_later(partial(_finish_all, outcomes))

    def _resolve(self, msg_id: str, outcome: core.Batch | verbs.Result | ZmqbusError) -> None:
        found = self._asked.pop(msg_id, None)
        if found is None:
            return
        self._unassigned.discard(msg_id)
        reply, to_group = found
        if not to_group:
            self._unawaited.append(msg_id)
        if len(self._deadlines) > len(self._asked) + MAX_STALE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._asked]
            heapq.heapify(self._deadlines)
        self._io.call_later(partial(self._reply, reply, outcome))

    def _reply(self, reply: Reply, outcome: core.Batch | verbs.Result | ZmqbusError) -> None:
        """Ends the future of an answer. Without the lock: this may read a large answer from the journal."""
        reply.finish(outcome if isinstance(outcome, ZmqbusError) else self._message(outcome, reply.msg_id))

    def _message(self, outcome: core.Batch | verbs.Result, msg_id: str) -> Message | ZmqbusError:
        if not isinstance(outcome, verbs.Result):
            message = of_batch(outcome, 0, self._log)
        else:
            try:
                body = self._log.load(outcome)
            except JournalError as error:
                return payload.damage(outcome.answer_id, outcome.from_name, error)
            header = Header(
                outcome.from_session, outcome.from_name, None, Scope.SESSION, "", outcome.fmt, msg_id, outcome.ts
            )
            message = Message(header, outcome.answer_id, body)
        try:
            _ = message.body  # decoded here, so that the future ends with a handler's error, or with that of decoding
        except ZmqbusError as error:
            return error
        return message

    def _withdraw(self, client: core.ClientCore) -> list[core.Effect]:
        """Forgets abandoned requests, and tells the broker of them."""
        groups: list[str] = []
        for msg_id in self._abandoned:
            found = self._asked.pop(msg_id, None)
            if found is None:
                continue
            self._unassigned.discard(msg_id)
            never_sent = self._requests.pop(msg_id, None) or self._unsent.get(msg_id)
            if self._unsent.pop(msg_id, None) is not None:
                # guards: producer
                self._dropped.add(msg_id)  # it stays in the waiting list, and is skipped there
            if never_sent is not None:
                self._waiting_bytes -= len(never_sent.body)
            else:
                (groups if found[1] else self._unawaited).append(msg_id)
        self._abandoned.clear()
        others, self._unawaited = self._unawaited, []
        self._awaited -= len(others)
        return [*(client.withdraw(groups) if groups else ()), *(client.unawait(others) if others else ())]
