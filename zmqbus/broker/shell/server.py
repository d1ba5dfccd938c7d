"""The broker's shell: sockets, files and the loop. It turns received messages into events, and effects into I/O.

One thread and one `zmq.Poller`. Each wake runs the same steps, and their order is the guarantee:

1. drain the sockets, up to a bound, so that timers and the other sockets get their turn;
2. let the core decide;
3. write the records of this wake to the journal, in one write;
4. commit the store, in one transaction;
5. send: all envelopes for one peer go as one message.

If none of the effects depends on 3 and 4, they are sent first (`core.may_speak_first`), such as a lone request to a
worker.

A broker that dies before 4 has confirmed nothing; one that dies after it has confirmed nothing that is not on record.
With durability `process` the kernel has both writes by then, and it outlives every process; with `power` they are on
disk, the journal's first.

The broker never waits for more messages: a lone one passes through all five steps at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

import zmq

import zmqbus
from zmqbus.broker import core, events
from zmqbus.broker.shell import endpoints
from zmqbus.broker.shell.compaction import Compaction
from zmqbus.broker.shell.indexer import IndexerLauncher
from zmqbus.broker.shell.log import Log
from zmqbus.broker.shell.pressure import MemoryPressure
from zmqbus.broker.shell.spool_reader import WAKE_BYTES, SpoolReader
from zmqbus.broker.storage.api import StoreError
from zmqbus.broker.storage.sqlite import SqliteStore
from zmqbus.errors import BrokerUnavailable, PortHeld, ProtocolError, ZmqbusError
from zmqbus.journal.reader import recent
from zmqbus.journal.record import Earlier, JournalError, Records, SplicedLine, encode_all
from zmqbus.journal.writer import Journal
from zmqbus.process import Process, has_ended
from zmqbus.security.keys import broker_keys
from zmqbus.security.zap import ZapHandler
from zmqbus.settings import DEFAULT_PORT, Settings
from zmqbus.system import descriptors
from zmqbus.system.port_holder import holder_of
from zmqbus.wire import codec, sockets, verbs
from zmqbus.wire.wakeup import Wakeup

#: ZeroMQ messages taken from one socket in a wake,
DRAIN_MESSAGES = 200
#: and seconds for it. Messages that are drained together are written and sent together, so in a stream the receiver
#: waits for all of them; and the other socket and the timers need their turn. (At 20 ms sender, broker and receiver
#: took turns to work; below 1 ms the rate is no higher.)
DRAIN_S = 0.001
#: Least interval of `Tick`s: under load there are thousands of wakes a second.
TICK_S = 0.05
#: Records that are searched for a repeated message. A sender has at most 1,000 unconfirmed messages, so the last 20,000
#: records hold all of 20 senders at full tilt. The bytes bound the time if bodies are large.
REPEATABLE = 20_000
REPEATABLE_BYTES = 128 * 1024 * 1024
#: Memory that a message in flight takes beside its body, and a connection with its session and both sockets.
MESSAGE_BYTES = 1_000
CONNECTION_BYTES = 100_000
#: Greatest timeout of poll(), a C int. A longer one, such as ten idle years, just wakes the loop once more.
MAX_POLL_MS = 2**31 - 1
#: Files that the broker itself opens, with some to spare: sockets, database, journal, its segments and the index.
OWN_DESCRIPTORS = 48
#: Connections for 1,000 sessions, two each. With a lower limit the broker gives a notice, as others could not connect.
WANTED_DESCRIPTORS = OWN_DESCRIPTORS + 2 * 1_000
#: A clock that cannot be set, and that includes sleep if the system has such a one.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _elapsed_s() -> float:
    return time.clock_gettime(_CLOCK)


def _owner_lives(owner: str) -> bool:
    """Whether the owner that a HELLO named may still run.

    A process that cannot be seen from here, in another PID namespace or on another machine, may.
    """
    process = Process.parse(owner)
    return process is None or not has_ended(process)


class Server:
    """Binds, serves and closes. `daemon` creates it, and holds the election's lock as long as it lives."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self.port = settings.port  #: of the ROUTER; another one if that is held and nobody has chosen it
        self._log = log
        self._closing = ExitStack()
        self._stop_reason: str | None = None
        self._outbox: dict[bytes, list[verbs.Envelope]] = {}
        self._channels: list[events.Publish] = []
        self._records: list[Records | SplicedLine] = []
        self._decoder = codec.Decoder(from_broker=False)
        self._idle_since_s = 0.0
        self._ticked_s = 0.0
        self._began = time.time() - _elapsed_s()
        self._commit_failure = ""  # the failure that was logged last
        self._earlier: dict[str, Earlier] | None = None

    def __repr__(self) -> str:
        return f"<Server on port {self.port}: {self._core!r}>"

    # --- life

    def open(self) -> None:
        """Opens journal, store and both sockets.

        Raises `BrokerUnavailable` if another program holds the port, and `Unauthorized` if keys or files are not
        private.
        """
        descriptors.reserve(OWN_DESCRIPTORS, "the broker")
        keys = broker_keys(self._settings.data_dir)
        paths = self._settings.paths
        self._journal = Journal(paths.log)
        self._closing.callback(self._journal.close)
        begun = not os.path.lexists(paths.database)
        self._store = SqliteStore(paths.database, paths.log, durability=self._settings.durability)
        self._closing.callback(self._store.close)
        self._spools = SpoolReader(paths.spool)  # before any client is welcomed that might use it
        self._closing.callback(self._spools.close)
        last_id = next(iter(recent(paths.log, records=1, limit_bytes=REPEATABLE_BYTES)), "")
        if begun and last_id:
            self._store.notices.append(
                f"{paths.database} was gone and was created again: its sessions and unread messages are lost; "
                "the texts of all messages are still in messages.log"
            )
        self._indexer = IndexerLauncher(self._settings, self._log.warning)
        self._closing.callback(self._indexer.close)
        context = endpoints.new_context()
        self._closing.callback(context.term)
        self._zap = ZapHandler(context, keys.allowed_clients)
        self._closing.callback(self._zap.close)
        self._router = endpoints.router(context, keys)
        self._closing.callback(self._router.close)
        self._publisher = endpoints.publisher(context, keys)
        self._closing.callback(self._publisher.close)
        self._bind_router()
        self._core = core.BrokerCore(
            epoch=verbs.new_token()[:16],
            release=zmqbus.__version__,
            store=self._store,
            new_token=verbs.new_token,
            pub_port=endpoints.bind_any(self._publisher),
            sent_before=self._sent_before,
            owner_lives=_owner_lives,
            last_id=last_id,
            read_spooled=self._spools.read,
        )
        self._core.directory.shell_figures = lambda: (
            ("handshakes_refused", self._zap.refused),
            ("connections_closed", self._pressure.closed),
            ("log_kept_bytes", self._compaction.kept_bytes),
        )
        self._compaction = Compaction(self._journal, self._store, self._core, self._log.warning)
        self._pressure = MemoryPressure(self.port, self._core.pub_port)
        self._closing.callback(self._pressure.close)
        self._pressure.start()
        self._do(self._core.recover(self._now()))
        self._poller = zmq.Poller()
        for socket_ in (self._router, self._publisher, *self._zap.sockets):
            self._poller.register(socket_, zmq.POLLIN)
        self._note_damage()
        self._note_limit()
        self._idle_since_s = time.monotonic()

    def _note_limit(self) -> None:
        limit = os.sysconf("SC_OPEN_MAX")
        if limit < WANTED_DESCRIPTORS:
            sessions = (limit - OWN_DESCRIPTORS) // 2
            notice = (
                f"this broker may have {limit} files open, which is enough for about {sessions} sessions; for more, "
                "raise the hard limit (ulimit -Hn) and restart it: zmqbus broker --stop"
            )
            self._log.warning(notice)
            self._core.directory.notice(notice)

    def _bind_router(self) -> None:
        """Binds the port of the settings, or another one if that is held and only the default."""
        port = self._settings.port
        try:
            self._router.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise BrokerUnavailable(f"cannot bind port {port}: {error}; choose another one with --port") from None
            holder = holder_of(port)
            if port != DEFAULT_PORT:
                raise PortHeld(port, holder) from None
            self.port = endpoints.bind_any(self._router)
            self._store.notices.append(
                f"port {port} is held by {holder or 'another program'}, so the bus is on port {self.port} until its "
                "broker ends; commands and sessions find it by themselves"
            )
            self._log.warning(self._store.notices[-1])

    @property
    def notices(self) -> list[str]:
        """Sentences about damage found since the start, for the user who has started this broker."""
        return self._core.directory.notices

    def close(self) -> None:
        """Sends the messages that are ready, and closes. Idempotent."""
        self._closing.close()

    def run(self) -> str:
        """Serves until it is stopped or has been idle for the idle time; returns the reason."""
        with Wakeup() as wakeup:
            self._poller.register(wakeup.fd, zmq.POLLIN)
            self._log.info(f"release {self._core.release} serves port {self.port}, broadcasts on {self._core.pub_port}")
            while self._stop_reason is None:
                ready = self._wait()
                if wakeup.caught is not None:
                    self._stop(f"got {wakeup.caught.name}")
                self._wake(ready)
        self._log.info(f"ends: {self._stop_reason}")
        return self._stop_reason

    def _stop(self, reason: str) -> None:
        self._stop_reason = reason

    # --- the loop

    def _timeout_ms(self) -> int | None:
        tick_s = self._core.next_tick_s()
        if tick_s is not None:
            return int(tick_s * 1000)
        if not self._settings.idle_shutdown_s:
            return None
        left_s = self._idle_since_s + self._settings.idle_shutdown_s - time.monotonic()
        return min(max(0, int(left_s * 1000) + 1), MAX_POLL_MS)

    def _wait(self) -> dict[object, int]:
        """Sleeps until a socket is ready or the time is over, and returns the ready sockets.

        Looks at memory pressure meanwhile: bytes that grow the process need not wake it.
        """
        timeout_ms = self._timeout_ms()
        until_s = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while True:
            step_s = self._pressure.wait_s
            step_ms = timeout_ms if step_s is None else int(step_s * 1000)
            if until_s is not None:
                left_ms = max(0, int((until_s - time.monotonic()) * 1000 + 0.999))
                step_ms = left_ms if step_ms is None else min(step_ms, left_ms)
            ready: dict[object, int] = dict(self._poller.poll(step_ms))
            if ready or (until_s is not None and time.monotonic() >= until_s):
                return ready
            self._relieve_pressure(time.monotonic())

    def _relieve_pressure(self, now_s: float) -> None:
        for line in self._pressure.look(now_s, self._kept_bytes):
            self._log.warning(line)

    def _kept_bytes(self) -> int:
        """Memory that the broker itself keeps, which has bounds of its own."""
        messages, under_way_bytes = self._core.delivery.under_way()
        connections = len(self._core.registry.connections)
        kept_bytes = self._core.requests.kept_bytes + under_way_bytes + messages * MESSAGE_BYTES
        return 2 * kept_bytes + connections * CONNECTION_BYTES

    def _now(self) -> events.Instant:
        return events.Instant(time.monotonic(), time.time(), self._began + _elapsed_s())

    def _wake(self, ready: dict[object, int]) -> None:
        if not ready.keys().isdisjoint(self._zap.sockets):
            self._zap.handle()
        now = self._now()
        self._relieve_pressure(now.mono_s)
        self._spools.read_bytes = 0
        if self._publisher in ready:
            self._drain_subscriptions(now)
        if self._router in ready:
            self._drain_router(now)
        if now.mono_s - self._ticked_s >= TICK_S:
            self._ticked_s = now.mono_s
            self._do(self._core.handle(now, events.Tick()))
            self._indexer.tick(now.mono_s)
            self._renew_zap(now)
        if self._records and self._core.may_speak_first:
            self._send_all(now)
        self._write_journal(now)
        self._commit(now)
        self._send_all(now)
        if self._ticked_s == now.mono_s:
            self._compaction.tick(now.mono_s)
        if not self._spools.is_empty and (self._ticked_s == now.mono_s or not self._core.registry.connections):
            self._spools.sweep(self._core.registry.connections)
        self._look_idle(now)

    def _renew_zap(self, now: events.Instant) -> None:
        before = self._zap.sockets
        if self._zap.renew(now.mono_s):
            for socket in before:
                self._poller.unregister(socket)
            for socket in self._zap.sockets:
                self._poller.register(socket, zmq.POLLIN)

    def _drain_router(self, now: events.Instant) -> None:
        for _ in range(DRAIN_MESSAGES):
            if time.monotonic() - now.mono_s > DRAIN_S or self._spools.read_bytes >= WAKE_BYTES:
                return
            parts = sockets.receive(self._router)
            if parts is None:
                return
            route, *parts = parts
            try:
                event: events.Event = events.Received(route, self._decoder.decode(parts))
            except ProtocolError as error:
                event = events.Malformed(route, str(error))
            self._do(self._core.handle(now, event))

    def _drain_subscriptions(self, now: events.Instant) -> None:
        for _ in range(DRAIN_MESSAGES):
            parts = sockets.receive(self._publisher)
            if parts is None:
                return
            change, topic = parts[0][:1], parts[0][1:]
            # Only presence subscriptions mean something to the broker; all others are filters or junk.
            if len(parts) == 1 and change in (b"\0", b"\1") and topic[:1] == verbs.MARK and topic.endswith(b"\0"):
                lease = topic[1:-1].decode("ascii", "replace")
                self._do(self._core.handle(now, events.Marked(lease) if change == b"\1" else events.Unmarked(lease)))

    def _do(self, effects: list[events.Effect]) -> None:
        outbox, records = self._outbox, self._records
        for effect in effects:
            kind = effect.__class__  # nearly all are of the next two kinds
            if kind is events.Reply:
                route, envelope = effect  # type: ignore[misc]
                if route in outbox:
                    outbox[route].append(envelope)
                else:
                    outbox[route] = [envelope]
                continue
            if kind is events.Append:
                records.append(effect.records)  # type: ignore[union-attr]
                continue
            match effect:
                case events.Publish():
                    self._channels.append(effect)
                case events.Note(text):
                    self._log.info(text)
                case events.Halt():
                    self._stop("asked to stop")

    def _write_journal(self, now: events.Instant) -> None:
        if not self._records:
            return
        records, self._records = self._records, []
        try:
            pointers = self._journal.append(encode_all(records), oldest_needed=self._core.oldest_segment)
        except ZmqbusError as error:
            self._log.error(str(error))
            self._do(self._core.handle(now, events.JournalFailed(str(error))))
        else:
            self._do(self._core.handle(now, events.Journaled(pointers)))

    def _commit(self, now: events.Instant) -> None:
        """Commits the changes of the store, so that senders may hear of them."""
        if not self._store.pending and not self._core.delivery.waits_for_commit:
            return
        try:
            if self._settings.durability == "power":
                # guards: durability
                self._journal.sync()  # first: the store's rows point into it
            self._store.commit()  # guards: durability
        except (StoreError, JournalError) as error:
            if self._commit_failure != str(error):
                self._commit_failure = str(error)
                self._log.error(str(error))
            self._do(self._core.handle(now, events.CommitFailed(str(error))))
        else:
            if self._commit_failure:
                self._commit_failure = ""
                self._log.info("can write the mailboxes again")
            self._do(self._core.handle(now, events.Committed()))
        self._note_damage()

    def _note_damage(self) -> None:
        """Passes notices about damage on to the log and to STATUS."""
        found, self._store.notices = self._store.notices, []
        if self._journal.recovered:
            found.append(f"messages.log: {self._journal.recovered}")
            self._journal.recovered = None
        for notice in found:
            self._log.error(notice)
            self._core.directory.notice(notice)

    def _sent_before(self, msg_id: str) -> Earlier | None:
        if self._earlier is None:
            # Once, and only if a sender repeats a message: takes 10 ms for the journal of an earlier broker.
            self._earlier = recent(self._settings.paths.log, records=REPEATABLE, limit_bytes=REPEATABLE_BYTES)
        return self._earlier.get(msg_id)

    def _send_all(self, now: events.Instant) -> None:
        """Sends the wake's effects. An unreachable peer may cause new ones, for others."""
        while self._outbox or self._channels:
            outbox, self._outbox = self._outbox, {}
            if self._channels:
                self._publish()
            for route, replies in outbox.items():
                try:
                    for batch in codec.batches(replies) if len(replies) > 1 else (replies,):
                        sockets.send(self._router, (route, *codec.encode(batch)))
                except zmq.ZMQError as error:
                    if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                        raise
                    self._do(self._core.handle(now, events.Unreachable(route)))
            self._commit(now)

    def _publish(self) -> None:
        channels, self._channels = self._channels, []
        for channel, envelopes in _by_channel(channels):
            for batch in codec.batches(envelopes):
                sockets.send(self._publisher, (channel, *codec.encode(batch)))

    def _look_idle(self, now: events.Instant) -> None:
        if not self._core.idle:
            self._idle_since_s = now.mono_s
        elif self._settings.idle_shutdown_s and now.mono_s - self._idle_since_s >= self._settings.idle_shutdown_s:
            self._stop(f"idle for {self._settings.idle_shutdown_s / 60:g} min")


def _by_channel(published: list[events.Publish]) -> Iterator[tuple[bytes, list[verbs.Envelope]]]:
    """Groups neighbours on one channel; only neighbours, so that a subscriber of two channels sees their order."""
    run: list[verbs.Envelope] = []
    for number, (channel, envelope) in enumerate(published):
        run.append(envelope)
        if number + 1 == len(published) or published[number + 1].channel != channel:
            yield channel, run
            run = []
