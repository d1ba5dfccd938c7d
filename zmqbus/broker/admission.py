"""Admits messages: checks each SEND, finds its receivers, and keeps its messages until they are in the journal.

A message that is pending here is nowhere else, so nothing has to be undone if the journal cannot be written: its sender
is refused, and that is all.

A SEND of several messages is accepted in one piece, or not at all (`_accept`). If one of its messages would be refused,
or treated differently from the others, each is admitted by itself in the same way: so that one is refused, and the
others are accepted.

A sender repeats a message that was not answered, perhaps to another broker than the first time. Only for such a message
the journal is asked. If it has the message, that was accepted, and goes to its first receivers: its target may mean
another session by now, and another member of the group may be the least loaded. No limit is applied to it. Of a
broadcast, the audience is that of now, without the sessions that have come since (`_is_newcomer`): they may have got
younger messages of the sender already.

A broker does not know a session that came while the store of the earlier one could not be written, until its process
reconnects, which may be after a sender has repeated a message to it. So in its first seconds a broker holds a repeated
message whose receiver it cannot find, and what its sender sends after it, which must not overtake it (`_hold`).

An answer goes to the command that awaits it, if there is one (`reply_routing`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from zmqbus.broker.body_checks import Spooled, check_bodies, spooled_body
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.in_flight import Batch
from zmqbus.broker.pending import Pending, merged
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import Expected, ReplyRouting
from zmqbus.broker.sessions import RETURN_S, Connection, Session
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import (
    BrokerUnavailable,
    ProtocolError,
    RateLimited,
    UnknownPeer,
    ZmqbusError,
)
from zmqbus.journal.large_record import check_escaped
from zmqbus.journal.record import Earlier, Records, Route, splice_line
from zmqbus.tuples import NamedTuple
from zmqbus.wire import naming, verbs
from zmqbus.wire.handlers import handles
from zmqbus.wire.verbs import FORMAT_WORDS, TO_MANY, Format, Header, Pointer, Scope

#: Broadcasts of a session within a minute, whatever helpers it uses.
BROADCASTS_PER_MINUTE = 60
MINUTE_S = 60.0
#: Broadcasts of all guests together within a minute: a guest's name costs nothing, and each broadcast is a row for each
#: session that is away.
GUEST_BROADCASTS_PER_MINUTE = 120
#: The most messages that are held for receivers that are expected back (`RETURN_S`), as many as one client has
#: unconfirmed, and their bodies.
MAX_HELD = 1_000
MAX_HELD_BYTES = 4 << 20
#: As integers: to look a member of an enum up costs more than to compare it.
_TEXT = int(Format.TEXT)
_SESSION, _ALL = int(Scope.SESSION), int(Scope.ALL)
#: Scopes that say all there is to say of whom a message is for.
_WITHOUT_TARGET = (_SESSION, _ALL)


class _Uneven(Exception):
    """The messages of one SEND have to be admitted each by itself."""


class _Unreturned(Exception):
    """The receiver of a repeated message is not known to this broker yet, and may be about to reconnect."""


class _Before(NamedTuple):
    """What the journal knows of a message that is repeated."""

    receiver: Session | None  # its first receiver, or the heir; None: it was to many, or that session is forgotten
    place: int  # order among the records of the journal


class Admission:
    """All messages that are accepted and not yet in the journal."""

    def __init__(
        self,
        registry: Registry,
        delivery: Delivery,
        reply_routing: ReplyRouting,
        takeover: Takeover,
        out: Outbox,
        sent_before: Callable[[str], Earlier | None],
        last_id: str,
        read_spooled: Callable[[bytes, Spooled], bytes],
    ) -> None:
        """`sent_before` looks a message up in the journal, whose last one is `last_id`. `read_spooled` reads what the
        sender of that route has put down, or raises why it cannot."""
        self._registry = registry
        self._delivery = delivery
        self._reply_routing = reply_routing
        self._takeover = takeover
        self._out = out
        self._pending: list[Pending] = []
        self._places: dict[str, int] = {}  # message id → its index in `_pending`
        self._held: dict[str, tuple[Connection, verbs.Send]] = {}  # by message id, in the order of arrival
        self._held_bytes = 0
        self._holds_until_s = -math.inf  # monotonic
        # The last one, so that neighbours share one object, and what it was made of.
        self._header = Header("", "", None, 0, "", 0, None, 0.0)
        self._header_key: tuple[object, ...] = ()
        self._sent_before = sent_before
        self._guest_broadcasts: dict[str, deque[float]] = {}
        self.accepted = 0  #: messages, since the start
        self._last_id = last_id
        self._read_spooled = read_spooled

    def __repr__(self) -> str:
        return f"<Admission: {len(self._pending)} pending, {self.accepted} accepted>"

    @property
    def last_id(self) -> str:
        """Id of the last message whose receivers have been found. A session that connects now is not among them."""
        return self._pending[-1].msg_ids[-1] if self._pending else self._last_id

    # --- SEND

    @handles(verbs.Send)
    def send(self, now: Instant, who: Connection, send: verbs.Send) -> None:
        """Accepts messages, or refuses them. Raises `ProtocolError` for those whose ids cannot be their own."""
        count = len(send.msg_ids)
        if count > 1:
            if send.reply_to is not None or send.again or send.file is not None:
                raise ProtocolError("a SEND with reply_to, again or file holds one message")
            if not self._accept_all(now, who, send):
                for one in send.apart():
                    self._send_one(now, who, one)
            return
        (msg_id,) = send.msg_ids
        if not verbs.is_msg_id(msg_id):
            raise ProtocolError("a message id is 8 to 12 lower-case letters and digits")
        # guards: dedup [self._delivery.said_before(who, msg_id) or =>]
        # guards: dedup [or self._pending_before(who, msg_id) =>]
        if self._delivery.said_before(who, msg_id) or self._pending_before(who, msg_id):
            return
        # guards: order: nothing overtakes a held message [off]
        if self._held and any(one.sender_id == who.sender_id for one, _ in self._held.values()):
            self._hold(who, send)
            return
        try:
            self._accept(now, who, send)
        except _Unreturned:
            self._hold(who, send)
        except ZmqbusError as error:
            self._delivery.refuse(who, verbs.Refused(msg_id, error.code, str(error)))

    def _send_one(self, now: Instant, who: Connection, one: verbs.Send) -> None:
        try:
            self.send(now, who, one)
        except ProtocolError as error:
            # guards: admission [=> raise]
            self._out.refuse_all(who.route, verbs.refs_of(verbs.Send, one), error)

    def _accept_all(self, now: Instant, who: Connection, send: verbs.Send) -> bool:
        """Accepts several messages in one piece. False, and nothing is done, if anything is to be said against one of
        them, or if they fare differently."""
        # Of a group, each finds its own member; only texts are journaled together.
        # guards: admission [send.fmt != _TEXT or =>]
        # guards: broadcasts [send.scope == Scope.GROUP or =>]
        if send.fmt != _TEXT or send.scope == Scope.GROUP or not verbs.are_msg_ids(send.msg_ids):
            return False
        if self._held:  # guards: order: nothing overtakes a held message [off]
            return False
        # guards: admission [not self._delivery.all_new(send.msg_ids) or =>]
        # guards: admission [or not self._places.keys().isdisjoint(send.msg_ids) =>]
        if not self._delivery.all_new(send.msg_ids) or not self._places.keys().isdisjoint(send.msg_ids):
            return False
        try:
            self._accept(now, who, send)
        except (ZmqbusError, _Uneven):
            return False
        return True

    def _accept(self, now: Instant, who: Connection, send: verbs.Send) -> None:
        """Makes messages pending, all of them. Raises the error to refuse them with, or `_Uneven` if some have to be
        treated in another way than others; then nothing is done."""
        scope, target, fmt, reply_to, again, file, _, msg_ids, bodies = send
        if reply_to is not None and not verbs.is_msg_id(reply_to):
            raise ProtocolError("what a message answers is a message id: 8 to 12 lower-case letters and digits")
        to_many = scope in TO_MANY
        count = len(bodies)
        size_bytes = sum(map(len, bodies))
        check_bodies(fmt, bodies, size_bytes, to_many=to_many)
        spooled = spooled_body(send) if file is not None else None
        if spooled is not None:
            size_bytes = spooled.size_bytes
            verbs.check_size(size_bytes, to_many=to_many)
        if count > 1 and size_bytes > verbs.SPILL_BYTES and max(map(len, bodies)) > verbs.SPILL_BYTES:
            raise _Uneven
        before = self._before(who, msg_ids[0]) if again else None
        receivers, waiter, to = self._address(now, who, scope, target, reply_to, before, again=again)
        full: list[Session] = []
        if before is not None:
            # It has passed the checks of limits.
            # guards: dedup: a repeat goes to the original receivers [not self._is_newcomer(session, before) => True]
            receivers = [session for session in receivers if not to_many or not self._is_newcomer(session, before)]
        elif to_many:
            # A session that does not read must not keep a broadcast from the others; the tally names it to the sender.
            full = [session for session in receivers if session.mailbox.full(size_bytes, count)]
            if full:
                if count > 1:
                    raise _Uneven
                receivers = [session for session in receivers if session not in full]
            self._count_broadcasts(now, who, count)
        else:
            self._check_room(waiter or receivers[0], size_bytes, count)
        header = self._shared_header(now, who, send)
        receiver_id = None
        if not to_many:
            receiver_id = waiter.sender_id if waiter is not None else receivers[0].session_id
        self._journal(who, header, to, receiver_id, send, spooled)
        for session in receivers:
            session.mailbox.reserve(size_bytes, count)  # guards: mailbox limits
        place = len(self._pending)
        for msg_id in msg_ids:
            self._places[msg_id] = place
        self._pending.append(Pending(who, header, msg_ids, bodies, size_bytes, again, receivers, full, waiter))

    def _check_room(self, receiver: Session | Connection | Expected, size_bytes: int, count: int) -> None:
        mailbox = receiver.mailbox
        if mailbox is not None and mailbox.full(size_bytes, count):  # guards: admission [off]
            name = receiver.name if isinstance(receiver, Session) else receiver.sender_name
            raise RateLimited(f"the mailbox of '{name}' is full of unread messages; retry when it has read some")

    def _shared_header(self, now: Instant, who: Connection, send: verbs.Send) -> Header:
        """Returns the header of these messages: that of the ones before, if they have the same."""
        session = who.session
        name, label = (session.name, session.label) if session is not None else (who.guest, None)
        key = (who, name, label, now.wall_s, send[:4])
        if key != self._header_key:
            scope, target, fmt, reply_to = send[:4]
            target = "" if scope in _WITHOUT_TARGET else target
            self._header_key = key
            self._header = Header(who.sender_id, name, label, scope, target, fmt, reply_to, now.wall_s)
        return self._header

    def _journal(
        self,
        who: Connection,
        header: Header,
        to: str,
        receiver_id: str | None,
        send: verbs.Send,
        spooled: Spooled | None,
    ) -> None:
        """Has messages written, which may be refused up to here."""
        kind: Literal["message", "broadcast"] = "message" if receiver_id is not None else "broadcast"
        sender_id, name, label, _, _, fmt, reply_to, ts = header
        word = FORMAT_WORDS[fmt]
        route = Route(kind, sender_id, name, label, to, receiver_id)
        records = Records(ts, route, reply_to, word, send.msg_ids, send.bodies)
        if spooled is None:
            self._out.append(records)
            return
        # Last: nothing is read for a message that is refused.
        piece = self._read_spooled(who.route, spooled)
        check_escaped(word, piece, spooled.size_bytes, spooled.crc)  # guards: spool files
        self._out.append(splice_line(records, piece, spooled.crc))

    def _pending_before(self, who: Connection, msg_id: str) -> bool:
        """Whether a message of this id is pending: then its sender gets the outcome over its latest connection."""
        place = self._places.get(msg_id)
        if place is None:
            return False
        if who.sender_id != self._pending[place].header.from_session:
            raise ProtocolError("a message id that another session has used")
        self._pending[place] = self._pending[place]._replace(sender=who)
        return True

    def _address(
        self,
        now: Instant,
        who: Connection,
        scope: int,
        target: str,
        reply_to: str | None,
        before: _Before | None,
        *,
        again: bool,
    ) -> tuple[list[Session], Connection | Expected | None, str]:
        """Returns the receiving sessions, or the connection that awaits this very answer, and the target as the journal
        has it. `before`: what the journal knows of it, if it is a repeat."""
        # guards: dedup: a repeat goes to the original receiver [before.receiver if before is not None else =>]
        first = before.receiver if before is not None else None
        if scope == _SESSION:
            waiter = self._reply_routing.waiter(reply_to) if reply_to else None
            if waiter is not None and target in (waiter.sender_name, waiter.sender_id) and waiter is not who:
                return [], waiter, waiter.sender_name
            session = first or self._receiver(now, target, before, again=again)
            if session is who.session:  # guards: admission [off]
                raise UnknownPeer(f"'{session.name}' is this session itself; a message needs another receiver")
            return [session], None, session.name
        if scope == Scope.GROUP:
            naming.check_name(target, "group")
            if first is not None:
                return [first], None, f"@{target}"
            if before is not None:
                # It may have got it (what was known of it went with that broker), and one of a group is one.
                raise UnknownPeer(
                    f"the member of '{target}' that an earlier broker has accepted this for is not known any more, and "
                    "may have got it; see who is there before you send it again: zmqbus list"
                )
            members = [session for session in self._registry.members(target) if session is not who.session]
            if not members:
                raise UnknownPeer(f"no connected session has joined the group '{target}'; see: zmqbus list")
            # The least loaded, and among those the one that was least recently given something.
            least = min(members, key=lambda session: (session.mailbox.load, session.mailbox.last_append_s))
            return [least], None, f"@{target}"
        if scope == _ALL:
            to = "all"
        elif scope == Scope.PROJECT:
            to = f"%{naming.project_name(target)}"
        elif scope == Scope.TOPIC:
            naming.check_name(target, "topic")
            to = f"#{target}"
        else:
            raise ProtocolError(f"unknown scope {scope}")
        self._takeover.settle_shared(now)
        return [s for s in self._registry.audience(scope, target) if s is not who.session], None, to

    def _receiver(self, now: Instant, target: str, before: _Before | None, *, again: bool) -> Session:
        """Returns the session that a message is for. Raises `_Unreturned` if it is a repeat, and its receiver may be
        one that this broker does not know yet."""
        waits = again and now.mono_s < self._holds_until_s
        # guards: dedup: a repeat goes to the original receiver [and waits =>]
        if before is not None and waits:
            raise _Unreturned  # the name may be another session's by now
        try:
            return self.resolve(now, target)
        except UnknownPeer:
            if waits:  # guards: dedup [off]
                raise _Unreturned from None
            if before is None:
                raise
            raise UnknownPeer(
                f"the session that an earlier broker has accepted this for ('{target}') is not known any more, and may "
                "have got it; see who is there before you send it again: zmqbus list --all"
            ) from None

    def resolve(self, now: Instant, target: str) -> Session:
        """Returns the session that a target names. Raises `UnknownPeer` or `Ambiguous`."""
        session = self._registry.resolve(target)
        if session.conn is None and self._takeover.settle(now, session):
            return self._registry.resolve(target)  # it has died: somebody else has its mail now, or nobody had any
        return session

    def _before(self, who: Connection, msg_id: str) -> _Before | None:
        """Returns what the journal knows of a message that is repeated; None: it was never journaled."""
        found = self._sent_before(msg_id)
        if found is None:
            return None
        if found.from_session != who.sender_id:
            raise ProtocolError("a message id that another session has used")
        return _Before(self._registry.known(found.to_session_id or ""), found.place)

    def _is_newcomer(self, session: Session, before: _Before) -> bool:
        """Whether a session has come since a message was first accepted: it may have younger ones already."""
        if not session.restored:
            return True
        last = self._sent_before(session.entered_after)
        return last is not None and last.place >= before.place

    def _recent_broadcasts(self, now: Instant, who: Connection) -> deque[float]:
        """When the session has made those of the last minute."""
        if who.session is None:
            recent = self._guest_broadcasts.setdefault(who.sender_name, deque())
        else:
            if who.session.broadcasts is None:
                who.session.broadcasts = deque()
            recent = who.session.broadcasts
        while recent and recent[0] <= now.mono_s - MINUTE_S:
            recent.popleft()
        return recent

    def _count_broadcasts(self, now: Instant, who: Connection, count: int) -> None:
        """Counts broadcasts against the limits. Raises `RateLimited` if not all of them may be made."""
        recent = self._recent_broadcasts(now, who)
        if len(recent) + count > BROADCASTS_PER_MINUTE:
            retry_s = recent[0] + MINUTE_S - now.mono_s if recent else MINUTE_S
            raise RateLimited(
                f"{BROADCASTS_PER_MINUTE} broadcasts within a minute is the limit of a session; "
                f"retry in {retry_s:.0f} s"
            )
        if who.session is None and self._guests_room(now) < count:  # guards: rate limits [off]
            raise RateLimited(
                f"{GUEST_BROADCASTS_PER_MINUTE} broadcasts within a minute is the limit of all who speak without a "
                "session; retry in a minute, or connect first"
            )
        recent.extend([now.mono_s] * count)  # guards: rate limits

    def _guests_room(self, now: Instant) -> int:
        """How many more broadcasts guests may make at this moment."""
        young = (at > now.mono_s - MINUTE_S for recent in self._guest_broadcasts.values() for at in recent)
        return GUEST_BROADCASTS_PER_MINUTE - sum(young)

    # --- receivers that are not back yet

    def recover(self, now: Instant) -> None:
        """Begins the time in which repeated messages may wait for their receivers to reconnect."""
        self._holds_until_s = now.mono_s + RETURN_S

    def _hold(self, who: Connection, send: verbs.Send) -> None:
        (msg_id,) = send.msg_ids
        if msg_id in self._held:
            if self._held[msg_id][0].sender_id == who.sender_id:
                self._held[msg_id] = who, self._held[msg_id][1]  # its outcome goes to the latest connection
            return
        size_bytes = len(send.bodies[0])
        if len(self._held) >= MAX_HELD or self._held_bytes + size_bytes > MAX_HELD_BYTES:
            busy = "the broker has just started, and waits for sessions to reconnect; retry in a few seconds"
            self._delivery.refuse(who, verbs.Refused(msg_id, RateLimited.code, busy))
            return
        self._held[msg_id] = who, send
        self._held_bytes += size_bytes

    def retry_held(self, now: Instant) -> None:
        """Sends the held messages once more, in their order, since a session has connected or the time is over."""
        if not self._held:
            return
        held, self._held, self._held_bytes = self._held, {}, 0
        for who, send in held.values():
            self._send_one(now, who, send)

    # --- the journal's answer

    @property
    def waits_for_journal(self) -> bool:
        """Whether any message is pending."""
        return bool(self._pending)

    def journaled(self, now: Instant, pointers: Sequence[Pointer]) -> None:
        """The pending messages are in the journal, at these places, and go out."""
        place = 0
        pending = self._release()
        for message in pending if len(pending) == 1 else merged(pending):
            count = len(message.msg_ids)
            self.accepted += count
            self._out.counts.accepted_bytes += message.size_bytes
            self._last_id = message.msg_ids[-1]
            self._dispatch(now, message, message.batch(now, pointers[place : place + count]))
            place += count  # guards: admission [+= => =]

    def journal_failed(self, reason: str) -> None:
        """The pending messages are not in the journal: they are refused, and nothing of them stays."""
        for message in self._release():
            for msg_id in message.msg_ids:
                self._delivery.refuse(message.sender, verbs.Refused(msg_id, BrokerUnavailable.code, reason))

    def _release(self) -> list[Pending]:
        """Removes all pending messages, and their reservations."""
        pending, self._pending = self._pending, []
        self._places.clear()
        for message in pending:
            for session in message.receivers:
                session.mailbox.release(message.size_bytes, len(message.msg_ids))  # guards: admission
        return pending

    def _dispatch(self, now: Instant, message: Pending, batch: Batch) -> None:
        if batch.header.scope in TO_MANY:
            self._delivery.to_many(now, message.receivers, batch, message.sender, message.full)
        elif message.waiter is None:
            self._delivery.to_one(now, message.receivers[0], batch)
        else:
            self._reply_routing.pass_on(now, message.waiter, batch)

    def tick(self, now: Instant) -> None:
        """Forgets the broadcasts of guests long gone, and ends the wait for receivers."""
        if self._held and now.mono_s >= self._holds_until_s:
            self.retry_held(now)
        for name, recent in list(self._guest_broadcasts.items()):
            if not recent or recent[-1] <= now.mono_s - MINUTE_S:
                del self._guest_broadcasts[name]
