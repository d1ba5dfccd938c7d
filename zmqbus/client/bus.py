"""The bus for Python programs: `zmqbus.connect` and what it returns.

    with zmqbus.connect("orchestrator") as bus:
        receipt = bus.send("auth", "run the tests")
        answer = bus.ask("auth", "question: ready?", timeout=30)

A bus with a name is a session like any other: it is listed, has a mailbox, and gets what was sent to that name. One
without a name speaks as a guest, and gets answers only. Bodies are text, bytes, or any value that msgpack knows, numpy
arrays included (`client.message`).

`producer` sends and `consumer` receives, each over a connection of its own; this module is their public face. Every
method may be called from any thread, and none from a forked child process (`ForkedBus`).
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from functools import partial
from types import TracebackType
from typing import Any, Literal, overload

import zmqbus

# The transport needs `spool_writer` for large bodies, when an update may have deleted the files of this release.
from zmqbus.client import arguments, core, identity_cache, spool_writer  # noqa: F401
from zmqbus.client import payload as bodies
from zmqbus.client.consumer import Consumer
from zmqbus.client.fanout import map_over, watch
from zmqbus.client.message import Message, check_message, encode, scope_and_target
from zmqbus.client.producer import Producer, Reply
from zmqbus.client.receipts import BroadcastReceipt, Receipt
from zmqbus.client.transport import Transport
from zmqbus.client.worker import Handler, Worker, check_handler
from zmqbus.errors import InvalidArgument, NameTaken, NotConnected, Timeout
from zmqbus.process import process_of
from zmqbus.settings import NO_DIRECTORY, Settings, load, shown_path, where_am_i
from zmqbus.system.descriptors import explained
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Notice, Role, Scope, Session

#: How many seconds a session that leaves for good waits for the broker's response: no session outlives its process.
LEAVE_S = 2.0
#: How many other names to try if the one that was made up is taken.
NAME_TRIES = 20
#: How many seconds a call without a timeout of its own waits for the broker, which answers within one; its successor is
#: there within two.
CONFIRM_S = 30.0
#: Characters of the script's name in the name of a guest.
MAX_GUEST_CHARS = 20


def connect(
    name: str | None = None,
    *,
    label: str | None = None,
    topics: Iterable[str] = (),
    group: str | Iterable[str] = (),
    ack: Literal["auto", "manual"] = "auto",
    port: int | None = None,
) -> Bus:
    """Opens a bus; starts a broker first if none runs.

    `name`: the name of this program on the bus, with which comes a mailbox (`Bus.messages`). Without a name the program
    is a guest or, if it joins a topic or a group, a session under a name that is made up.
    `label`: shown beside the name. `topics`: broadcasts to get. `group`: one or several worker groups to join
    (`Bus.serve`).
    `ack`: "auto" acknowledges a message when the program takes it, "manual" leaves that to `Message.ack`.
    `port`: of the broker (default: as in the settings).

    Close a bus, best by `with`. One that is garbage-collected ends by itself, with a `ResourceWarning`.

    Raises `InvalidName`, `InvalidLabel`, `InvalidArgument`, `NameTaken` (another session that is connected has it),
    `Unauthorized`, `PortHeld`, `BrokerUnavailable` (too few file descriptors among its reasons).
    """
    if ack not in ("auto", "manual"):
        raise InvalidArgument(f"ack is 'auto' or 'manual', not {arguments.shown(ack)}")
    name = None if name is None else arguments.name(name)
    label = arguments.label(label)
    groups = arguments.names(group, "group")
    topics = arguments.names(topics, "topic", verbs.SYSTEM_TOPICS)
    settings = load({"port": arguments.port(port)})
    with explained("a bus"):
        return _connect(settings, name, label, topics, groups, manual=ack == "manual")


def _connect(
    settings: Settings,
    name: str | None,
    label: str | None,
    topics: tuple[str, ...],
    groups: tuple[str, ...],
    *,
    manual: bool,
) -> Bus:
    if name is None and not topics and not groups:
        return Bus(settings, None, _guest())
    owner = process_of(os.getpid())
    place = where_am_i()
    before = identity_cache.take(settings.data_dir, name) if name is not None else None
    same = before or identity_cache.CachedIdentity.new()
    persona = core.Persona(
        role=Role.PROGRAM,
        session_id=same.session_id,
        token=same.token,
        name=name if name is not None else _own_name(groups or topics),
        label=label,
        cwd=place.cwd,
        project=place.project,
        pid=os.getpid(),
        owner=owner.text,
        topics=topics,
        groups=groups,
        named=name is not None,
    )
    try:
        return _open(settings, persona, same, manual=manual)
    except BaseException:
        if before is not None and name is not None:
            identity_cache.leave(settings.data_dir, name, before)
        raise


def _open(settings: Settings, persona: core.Persona, same: identity_cache.CachedIdentity, *, manual: bool) -> Bus:
    wanted = persona.name or ""
    for number in range(NAME_TRIES):
        try:
            return Bus(settings, persona, persona._replace(role=Role.HELPER), same, manual=manual)
        except NameTaken:
            if persona.named or number == NAME_TRIES - 1:
                raise
            persona = persona._replace(name=naming.next_name(wanted, number + 2))
    raise AssertionError("not reached")


def _guest() -> core.Persona:
    script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    owner = process_of(os.getpid())
    return core.Persona(
        role=Role.GUEST,
        name=_own_name((naming.derive_name(script),)),
        token=verbs.new_token(),
        owner=owner.text,
    )


def _own_name(parts: tuple[str, ...]) -> str:
    """Makes up a name that is unlikely to be taken."""
    return f"{parts[0][:MAX_GUEST_CHARS].rstrip('-')}-{os.getpid()}"


class Bus:
    """A program's place on the bus; made by `connect`. A context manager; thread-safe.

    Targets are names of sessions, unique prefixes of names, or session ids; `@group` is one member of a group.
    """

    def __init__(
        self,
        settings: Settings,
        member: core.Persona | None,
        producer: core.Persona,
        same: identity_cache.CachedIdentity | None = None,
        *,
        manual: bool = False,
    ) -> None:
        """For `connect` only. `member`: the session (None: a guest); `producer`: the identity that sends for it;
        `same`: its identity for the next time."""
        self._closed = True  # until it is open
        self._pid = os.getpid()
        self._log_path = log_path = settings.paths.log
        self._named = member is not None and member.named
        self._consumer: Consumer | None = None
        if member is not None:
            taken = same.taken if same is not None else None
            client = core.ClientCore(member, zmqbus.__version__, taken)
            self._consumer = Consumer(Transport(settings, client), log_path, manual=manual)
            self._consumer.open()
        try:
            transport = Transport(settings, core.ClientCore(producer, zmqbus.__version__))
            self._producer = Producer(transport, log_path)
            self._producer.open()
        except BaseException:
            if self._consumer is not None:
                self._consumer.close()
            raise
        self._guest = producer.name or ""
        self._session_id = member.session_id if member is not None else None
        self._data_dir = settings.data_dir
        self._same = same
        self._closed = False

    def __repr__(self) -> str:
        return f"<Bus {self.name!r}{', closed' if self._closed else ''}: {self._producer!r}>"

    def __del__(self) -> None:
        # Neither the threads nor their objects refer to a bus, except futures that are open.
        if self._closed or os.getpid() != self._pid:
            return
        warnings.warn(f"unclosed bus {self.name!r}; use it in a with statement", ResourceWarning, 2, source=self)
        self._closed = True
        self._producer.close_soon()
        if self._consumer is not None:
            self._consumer.close_soon()
            if self._named and self._same is not None:
                identity_cache.leave(self._data_dir, self.name, self._same)

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, *, forget: bool = False) -> int:
        """Leaves the bus. Open futures fail with `NotConnected`, though the broker has read all messages by then, if
        one answers within half a second. A chosen name keeps its mailbox; with `forget` it does not: the name is free
        at once, and untaken messages are given up. A session with a made-up name always leaves like that.

        Returns how many messages were given up, with those that were taken and not acknowledged, if the broker has
        responded within 2 s. Raises nothing. Interrupted (Ctrl-C), it leaves all the same. Idempotent: another call
        does not forget a closed session; in a child process it does nothing.
        """
        arguments.flag(forget, "forget")
        if os.getpid() != self._pid:
            return 0  # it is the parent's
        given_up: int | None = None
        consumer = self._consumer
        forget = consumer is not None and not self._closed and (forget or not self._named)
        try:
            if consumer is not None and forget:
                given_up = consumer.forget(LEAVE_S)
        finally:
            # Each call first makes its end certain, so that an interrupt only costs the wait.
            try:
                self._producer.close()
            finally:
                if consumer is not None:
                    consumer.close()
                if not self._closed and not forget and self._named and self._same is not None:
                    identity_cache.leave(self._data_dir, self.name, self._same)
                self._closed = True
        return given_up or 0

    @property
    def name(self) -> str:
        """The program's name on the bus."""
        return self._consumer.name if self._consumer is not None else self._guest

    @property
    def session_id(self) -> str | None:
        """Its session id; None: a guest has none."""
        return self._session_id

    # --- sending

    @overload
    def send(
        self, target: str, body: Any, *, reply_to: str | None = None, wait: Literal[True] = True, timeout: float = ...
    ) -> Receipt: ...

    @overload
    def send(
        self, target: str, body: Any, *, reply_to: str | None = None, wait: Literal[False], timeout: float = ...
    ) -> Future[Receipt]: ...

    def send(
        self, target: str, body: Any, *, reply_to: str | None = None, wait: bool = True, timeout: float = CONFIRM_S
    ) -> Receipt | Future[Receipt]:
        """Sends to one session.

        Guarantee: a `Receipt` that says `delivered` means that the receiver's program or listener has taken the
        message; `queued`, that it is safe in the mailbox. Messages of one bus to one receiver arrive in order.
        `wait=False` returns the future of the receipt at once, so that many messages can be under way. `timeout`: s.

        Raises (or the future does) `UnknownPeer`, `Ambiguous`, `RateLimited` (its mailbox is full), `TextTooLong`,
        `InvalidPayload`; `Timeout` if no broker confirms it within `timeout` seconds, and then it may still arrive;
        `Overloaded` at once when 100,000 are open.
        """
        scope, name = scope_and_target(target)
        timeout = arguments.seconds(timeout)
        arguments.flag(wait, "wait")
        if reply_to is not None:
            arguments.message_id(reply_to)
        if isinstance(body, str):
            bodies.check_not_empty(body)
        _, future = self._producer.send(scope, name, *encode(body), reply_to)
        if wait:
            receipt: Receipt = self._confirmed(future, timeout)
            return receipt
        future.bus = self
        return future

    def broadcast(
        self, body: Any, *, topic: str | None = None, project: bool | str = False, timeout: float = CONFIRM_S
    ) -> BroadcastReceipt:
        """Sends to every session, those that joined a topic, or those of a project (True: this one; or its path, as in
        `sessions`); waits for the receipt, `timeout` s at most.

        Guarantee: it reaches every session that was connected or away when it was accepted, once each; `full` in the
        receipt names those that had no room. Raises `RateLimited` over 60 a minute, `TextTooLong` over 256 KiB, and as
        `send`.
        """
        timeout = arguments.seconds(timeout)
        if not isinstance(project, bool | str):
            raise InvalidArgument(f"project is True, False or a project's path, not {arguments.shown(project)}")
        if topic is not None and project is not False:
            raise InvalidArgument("a broadcast goes to a topic or to the project, not to both")
        scope, target = Scope.ALL, ""
        if topic is not None:
            scope, target = Scope.TOPIC, arguments.name(topic, "topic")
        elif project is not False:
            scope, target = Scope.PROJECT, where_am_i().project if project is True else shown_path(project)
            if not target:
                raise InvalidArgument(NO_DIRECTORY if project is True else "the path of the project is empty")
        if isinstance(body, str):
            bodies.check_not_empty(body)
        _, future = self._producer.send(scope, target, *encode(body, to_many=True))
        receipt: BroadcastReceipt = self._confirmed(future, timeout)
        return receipt

    def reply(self, message: Message, body: Any, *, timeout: float = CONFIRM_S) -> Receipt:
        """Answers a message. A sender that waits (`ask`) gets the answer there; otherwise it comes as a message with
        `reply_to`. Raises as `send`."""
        check_message(message)
        timeout = arguments.seconds(timeout)
        _, future = self._producer.send(Scope.SESSION, message.sender_id, *encode(body), message.msg_id)
        receipt: Receipt = self._confirmed(future, timeout)
        return receipt

    # --- asking

    def request(self, target: str, body: Any, *, timeout: float | None = None, wait: bool = True) -> Reply:
        """Sends a request; returns the future of its answer, a `Message`.

        Guarantee: the future ends. With the answer (exactly one, even if the broker or a worker dies meanwhile); with
        `RemoteError` if the handler failed; with `Timeout` after `timeout` seconds; with the error that keeps the
        request from its receiver; with `NotConnected` when the bus is closed. `cancel()` withdraws the request.

        `@group` hands it to the least loaded member; if that dies, another member gets it, up to three times
        (`Poisoned`). A group without members makes it wait for one, until the deadline; with `wait=False` that is
        `UnknownPeer` at once. Raises `InvalidArgument`, `InvalidPayload`, `TextTooLong`, `Overloaded`.
        """
        scope, name = scope_and_target(target)
        timeout = arguments.seconds_or_none(timeout)
        patient = arguments.flag(wait, "wait")
        fmt, payload = encode(body)
        reply = self._producer.ask(scope, name, fmt, payload, timeout, patient=patient)
        reply.bus = self  # so that the bus is not collected while an answer is awaited
        return reply

    def ask(self, target: str, body: Any, *, timeout: float | None = 120.0) -> Message:
        """Sends a request and waits for the answer, up to `timeout` seconds. Raises what `request`'s future does.
        Interrupted (Ctrl-C), it withdraws the request."""
        reply = self.request(target, body, timeout=timeout)
        try:
            return reply.result()
        except BaseException:
            reply.cancel()
            raise

    def scatter(
        self, targets: Iterable[str], body: Any, *, timeout: float | None = None, progress: bool = False
    ) -> list[Reply]:
        """Sends a request to each of several targets; returns the futures of their answers in the order of `targets`,
        each with its `target`.

        `as_completed` yields them as they end. Each ends by itself, as `request`'s does: a failure concerns no other.
        """
        arguments.flag(progress, "progress")
        replies: list[Reply] = []
        try:
            for target in arguments.targets(targets):
                replies.append(self.request(target, body, timeout=timeout))
        except BaseException:  # the caller does not get these futures
            for reply in replies:
                reply.cancel()
            raise
        if progress and replies:
            watch(replies, "scatter")
        return replies

    def map(
        self, target: str, items: Iterable[Any], *, timeout: float | None = None, progress: bool = False
    ) -> Iterator[Message]:
        """Sends `target` (mostly a group) a request for each item; yields the answers in the order of the items.

        Up to 512 requests are under way; `items` is read as answers come, so it may be endless. The first failure is
        raised here, as is the deadline, `timeout` seconds from the call; open requests are withdrawn then, and also
        when the iterator is closed or collected. The error has its item as `item`, and the item's number as `index`.
        """
        scope, name = scope_and_target(target)
        return map_over(
            lambda some, left_s: self._producer.ask_all(scope, name, [encode(item) for item in some], left_s),
            arguments.items(items),
            arguments.seconds_or_none(timeout),
            progress=arguments.flag(progress, "progress"),
            what=f"map over {target}",
        )

    # --- receiving

    def serve(self, handler: Handler, *, concurrency: int = 1, stop: threading.Event | None = None) -> None:
        """Answers the requests of this program's groups, and the messages to this program, with what `handler` returns
        for each `Message`; for a message, None is no reply.

        `concurrency` handlers run at a time: in threads, or as coroutines if the handler is one. Any exception
        (`sys.exit` included) is an answer, too: it reaches the caller as `RemoteError`, and the worker goes on. The
        requests of a worker whose process ends go to another one.

        Returns when the bus is closed or `stop` is set, within 0.2 s, after finishing the requests that it has. Also
        returns with Ctrl-C: handlers in threads finish, one in the main thread and coroutines are interrupted, and
        unanswered requests go to another worker. Raises `NotConnected` for a guest.
        """
        check_handler(handler, concurrency)
        if stop is not None and not callable(getattr(stop, "is_set", None)):
            raise InvalidArgument(f"stop is a threading.Event, not {arguments.shown(stop)}")
        consumer = self._member("serve()")
        Worker(consumer, self._producer, handler, concurrency, self._log_path).run(stop or threading.Event())

    def messages(self, timeout: float | None = None) -> Iterator[Message]:
        """Yields messages as they come, oldest first; ends when none has come for `timeout` seconds (None: never).

        Guarantee: each once, in the order of each sender. A message is acknowledged when it is yielded, or by its
        `ack()` if the bus was opened with `ack="manual"`: until then it comes again after a crash, to the next program
        of this name. Raises `NotConnected` for a guest, and when the bus ends.
        """
        return self._messages(self._member("messages()"), arguments.patience_or_none(timeout))

    def _messages(self, consumer: Consumer, timeout_s: float | None) -> Iterator[Message]:
        while (message := consumer.next_message(timeout_s)) is not None:
            yield message

    def next_message(self, timeout: float | None = None) -> Message | None:
        """Returns the next message, as `messages` yields it; None when none has come for `timeout` seconds."""
        return self._member("messages()").next_message(arguments.patience_or_none(timeout))

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher`, from a thread of the bus, whenever messages or notices have come or the bus has ended: for
        event loops. It must not block. Does nothing for a guest, which has no mailbox."""
        if not callable(watcher):
            raise InvalidArgument(f"a watcher is a function without arguments, not {arguments.shown(watcher)}")
        if self._consumer is not None:
            self._consumer.watch(watcher)

    def notices(self, timeout: float | None = None) -> Iterator[Notice]:
        """Yields what happens to sessions, as it happens, for a bus that joined `sys.sessions` or `sys.state` (`topics`
        of `connect`); ends when nothing has for `timeout` seconds (None: never).

        Guarantee: the last state of each session is told, within 2 s; what comes in between may be summed up, since at
        most one notice a second is published for each session and topic. Notices are ephemeral: those of the time
        before the bus was opened, or while it had no connection, do not come, and only the newest 1,000 wait here.
        Raises `NotConnected` for a guest, and when the bus ends; `InvalidArgument` if it joined neither topic.
        """
        return self._notices(self._noticing(), arguments.patience_or_none(timeout))

    def _notices(self, consumer: Consumer, timeout_s: float | None) -> Iterator[Notice]:
        while (notice := consumer.next_notice(timeout_s)) is not None:
            yield notice

    def next_notice(self, timeout: float | None = None) -> Notice | None:
        """Returns the next notice, as `notices` yields it; None when none has come for `timeout` seconds."""
        return self._noticing().next_notice(arguments.patience_or_none(timeout))

    # --- looking, renaming

    def sessions(self, *, away: bool = False, timeout: float = CONFIRM_S) -> list[Session]:
        """Returns the connected sessions; with `away` also those that are not connected. Raises `Timeout` after
        `timeout` seconds, `NotConnected`."""
        arguments.flag(away, "away")
        timeout = arguments.seconds(timeout)
        rows: list[Session] = []
        after = ""
        while True:
            page = self._confirmed(self._producer.call(partial(_list, away, after)), timeout)
            assert isinstance(page, verbs.Sessions)
            rows += [Session._make(row) for row in page.rows]
            if not page.more:
                return sorted(rows, key=lambda row: row.name)
            after = rows[-1].session_id

    def set_state(self, state: str, detail: str = "", *, timeout: float = CONFIRM_S) -> None:
        """Tells what this program does: "working", "blocked" (it waits for a person; `detail`: what for, of which 200
        characters are kept), "idle", "gone", "unknown". `sessions`, `zmqbus list` and `zmqbus wait` then say so.

        Guarantee: when it returns, the broker knows; a later broker is told again. Raises `InvalidArgument`, `Timeout`
        after `timeout` seconds, `NotConnected` for a guest.
        """
        consumer = self._member("set_state()")
        state, detail = arguments.agent_state(state, detail)
        timeout = arguments.seconds(timeout)
        told = consumer.keep_state(state, detail)
        self._confirmed(self._producer.call(lambda ref: told._replace(ref=ref)), timeout)

    def rename(self, name: str, *, timeout: float = CONFIRM_S) -> None:
        """Changes the session's name. Raises `InvalidName`, `NameTaken`, `NotConnected` for a guest."""
        self._member("rename()")
        arguments.name(name)
        timeout = arguments.seconds(timeout)
        self._confirmed(self._producer.call(lambda ref: verbs.Rename(ref, name)), timeout)

    # --- inside

    def _member(self, what: str) -> Consumer:
        if self._consumer is None:
            raise NotConnected(f"{what} needs a session of its own; open the bus with zmqbus.connect(name)")
        return self._consumer

    def _noticing(self) -> Consumer:
        consumer = self._member("notices()")
        if not consumer.has_notices:
            raise InvalidArgument('notices() needs a topic of the bus: zmqbus.connect(…, topics=["sys.state"])')
        return consumer

    def _confirmed(self, future: Future[Any], timeout_s: float) -> Any:
        try:
            return future.result(timeout_s)
        except (NotDone, TimeoutError) as error:  # one class, from python 3.11 on
            if isinstance(error, Timeout):
                raise  # it came from the broker
            raise not_confirmed(timeout_s) from error


def not_confirmed(timeout_s: float) -> Timeout:
    """Returns the error of a call that no broker has answered."""
    return Timeout(
        f"no broker has confirmed this within {timeout_s:g} s; it may still be carried out: see zmqbus broker --status"
    )


def _list(away: bool, after: str, ref: str) -> verbs.List:
    return verbs.List(ref, away, after)
