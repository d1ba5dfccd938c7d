"""SEND, from its arrival until it is in the journal: is it well made, who gets it, may its sender send it?

Between being staged here and the journal's answer a message is nowhere else, so nothing has to be undone if the journal
cannot be written: the senders are refused, and that is all.

A run (SENDS) is staged, journaled and passed on as one if there is nothing at all to be said against any message in it.
Otherwise each is taken by itself, as if it had come so: that one is refused and another not, is for `send` to find out.

A sender that was not answered says a message again, perhaps to another broker than the first time. If it was accepted
then (the journal knows, and only for such a message it is asked), it is for whoever it was for: a prefix may fit
somebody else by now, and another member of a group be the least loaded. Nor are limits a reason to refuse it now.

An answer is for the command that awaits it, if there is one (`awaits`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from zmqbus.broker.body_checks import Spooled, check_body, spooled_body
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.in_flight import Run
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.pending import Several, Single, Staged, StagedRun, entry_of, gathered, run_of
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import Awaits, Expected
from zmqbus.broker.sessions import Connection, Session
from zmqbus.broker.storage.api import Entry
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import (
    BrokerUnavailable,
    ProtocolError,
    RateLimited,
    UnknownPeer,
    ZmqbusError,
)
from zmqbus.journal.large_record import check_escaped
from zmqbus.journal.record import Earlier, Record, Records, SplicedLine, splice_line
from zmqbus.tuples import NamedTuple
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import FORMAT_WORDS, Format, Pointer, Scope

#: Broadcasts of a session within a minute, whatever helpers it uses.
BROADCASTS_PER_MINUTE = 60
MINUTE_S = 60.0
#: Broadcasts of all guests together within a minute: a guest's name costs nothing, and each broadcast is a row for each
#: session that is away.
GUEST_BROADCASTS_PER_MINUTE = 120
#: As integers: to look a member of an enum up costs more than to compare it.
_TEXT = int(Format.TEXT)
_SESSION, _ALL = int(Scope.SESSION), int(Scope.ALL)


class _Before(NamedTuple):
    """What the journal knows of a message that is said again."""

    receiver: Session | None  # None: it was to many, or nobody is left of that id
    place: int  # its order among all messages, when it was accepted first


class Intake:
    """The door for messages."""

    def __init__(
        self,
        registry: Registry,
        delivery: Delivery,
        awaits: Awaits,
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
        self._awaits = awaits
        self._takeover = takeover
        self._out = out
        self._staged: list[Staged | StagedRun] = []
        self._places: dict[str, int] = {}  # message id → its place in `_staged`
        self._sent_before = sent_before
        self._guest_broadcasts: dict[str, deque[float]] = {}
        self.accepted = 0  #: messages, since the start
        self._last_id = last_id
        self._read_spooled = read_spooled

    def __repr__(self) -> str:
        return f"<Intake: {len(self._staged)} staged, {self.accepted} accepted>"

    @property
    def last_id(self) -> str:
        """Id of the last message whose receivers have been found: who comes now is not among them."""
        if not self._staged:
            return self._last_id
        last = self._staged[-1]
        return last.sends.msg_ids[-1] if isinstance(last, StagedRun) else last.send.msg_id

    # --- SEND

    def send(self, now: Instant, who: Connection, send: verbs.Send) -> None:
        """Stages messages, or refuses them."""
        count = len(send.msg_ids)
        if count > 1 and (send.reply_to is not None or send.again or send.file is not None):
            raise ProtocolError("a SEND with reply_to, again or file holds one message")
        scope, target, fmt, reply_to, again, _, _, msg_ids, bodies = send
        if count == 1:
            self.send_one(now, who, Single(msg_ids[0], scope, target, fmt, reply_to, again, bodies[0]), send)
        else:
            self.send_all(now, who, Several(scope, target, fmt, msg_ids, bodies))

    def send_one(self, now: Instant, who: Connection, send: Single, envelope: verbs.Send | None = None) -> None:
        """Stages a message, or refuses it. Raises `ProtocolError` if its id cannot be its own."""
        if not verbs.is_msg_id(send.msg_id):
            raise ProtocolError("a message id is 8 to 12 lower-case letters and digits")
        # guards: dedup [self._delivery.said_before(who, send.msg_id) or =>]
        # guards: dedup [or self._staged_before(who, send.msg_id) =>]
        if self._delivery.said_before(who, send.msg_id) or self._staged_before(who, send.msg_id):
            return
        try:
            spooled = spooled_body(envelope) if envelope is not None else None
            self._stage(now, who, send, spooled)
        except ZmqbusError as error:
            self._delivery.refuse(who, verbs.Refused(send.msg_id, error.code, str(error)))

    def send_all(self, now: Instant, who: Connection, sends: Several) -> None:
        """Stages messages that are alike in one piece; or, if there is anything that one of them may be refused for or
        that tells them apart, each by itself. Raises `ProtocolError` if they are no messages."""
        msg_ids, bodies = sends.msg_ids, sends.bodies
        size_bytes = sum(map(len, bodies))
        found = self._receivers_of_run(now, who, sends, size_bytes)
        if found is None:
            for msg_id, body in zip(msg_ids, bodies, strict=True):
                one = Single(msg_id, sends.scope, sends.target, sends.fmt, None, False, body)
                try:
                    self.send_one(now, who, one)
                except ProtocolError as error:
                    # guards: admission [=> raise]
                    self._out.refuse(who.route, msg_id[: verbs.FIELD_CHARS["ref"]], error)
            return
        receivers, to = found
        to_many = sends.scope != _SESSION
        record = Records(
            now.wall_s,
            msg_ids,
            "broadcast" if to_many else "message",
            who.sender_id,
            who.sender_name,
            who.session.label if who.session else None,
            to,
            None if to_many else receivers[0].session_id,
            bodies,
        )
        for session in receivers:
            session.mailbox.reserve(size_bytes, len(bodies))  # guards: admission [size_bytes, len(bodies) => 0, 0]
        self._places.update(dict.fromkeys(msg_ids, len(self._staged)))
        self._staged.append(StagedRun(who, sends, record, receivers, size_bytes))
        self._out.append_all(record)

    def _receivers_of_run(
        self, now: Instant, who: Connection, sends: Several, size_bytes: int
    ) -> tuple[list[Session], str] | None:
        """Who gets all of them, and how the log calls them, if nothing at all is to be said against any."""
        _, target, fmt, msg_ids, bodies = sends
        to_many = sends.scope in verbs.TO_MANY
        # guards: admission [fmt != _TEXT or =>]
        # guards: broadcasts [or not (to_many or sends.scope == _SESSION) =>]
        if fmt != _TEXT or not (to_many or sends.scope == _SESSION) or not verbs.are_msg_ids(msg_ids):
            return None
        # guards: admission [not self._delivery.all_new(msg_ids) or =>]
        # guards: admission [or not self._places.keys().isdisjoint(msg_ids) =>]
        if not self._delivery.all_new(msg_ids) or not self._places.keys().isdisjoint(msg_ids):
            return None
        try:
            if not all(map(bytes.isascii, bodies)):  # guards: admission [off]
                for body in bodies:
                    body.decode()
            receivers, _, to = self._address(now, who, sends.scope, target, None, None)
        except (UnicodeDecodeError, ZmqbusError):
            return None
        if any(session.mailbox.full(size_bytes, len(bodies)) for session in receivers):  # guards: admission [off]
            return None
        if to_many:
            recent = self._recent_broadcasts(now, who)
            if len(recent) + len(bodies) > BROADCASTS_PER_MINUTE:  # guards: rate limits
                return None
            if who.session is None and self._guests_room(now) < len(bodies):
                return None
            recent.extend([now.mono_s] * len(bodies))  # guards: rate limits
        return receivers, to

    def _stage(self, now: Instant, who: Connection, send: Single, spooled: Spooled | None) -> None:
        _, scope, target, fmt, reply_to, again, body = send
        size_bytes = len(body) if spooled is None else spooled.size_bytes
        if reply_to is not None and not verbs.is_msg_id(reply_to):
            raise ProtocolError("what a message answers is a message id: 8 to 12 lower-case letters and digits")
        to_many = scope in verbs.TO_MANY
        check_body(fmt, body, to_many=to_many)
        if spooled is not None:
            verbs.check_size(size_bytes, to_many=to_many)
        before = self._before(who, send) if again else None
        receivers, waiter, to = self._address(now, who, scope, target, reply_to, before)
        full: list[Session] = []
        if before is not None:
            # It has passed these checks.
            # guards: dedup: a repeat goes to the original receivers [not self._is_newcomer(session, before) => True]
            receivers = [session for session in receivers if not to_many or not self._is_newcomer(session, before)]
        elif to_many:
            self._count_broadcast(now, who)
            # One who does not read must not keep a broadcast from all the others; the sender is told who goes without.
            full = [session for session in receivers if session.mailbox.full(size_bytes)]
            receivers = [session for session in receivers if session not in full]
        else:
            if waiter is None:
                mailbox: Mailbox | None = receivers[0].mailbox
                name = receivers[0].name
            else:
                mailbox, name = waiter.mailbox, waiter.sender_name
            if mailbox is not None and mailbox.full(size_bytes):
                raise RateLimited(f"the mailbox of '{name}' is full of unread messages; retry when it has read some")
        to_session_id = None
        if not to_many:
            to_session_id = waiter.sender_id if waiter is not None else receivers[0].session_id
        record = Record(
            now.wall_s,
            send.msg_id,
            "broadcast" if to_many else "message",
            who.sender_id,
            who.sender_name,
            who.session.label if who.session else None,
            to,
            to_session_id,
            reply_to,
            FORMAT_WORDS[fmt],
            body,
        )
        line: Record | SplicedLine = record
        if spooled is not None:
            # Last: nothing is read for a message that is refused.
            piece = self._read_spooled(who.route, spooled)
            check_escaped(record.fmt, piece, spooled.size_bytes, spooled.crc)  # guards: spool files
            line = splice_line(record, piece, spooled.crc)
        for session in receivers:
            session.mailbox.reserve(size_bytes)  # guards: mailbox limits
        self._places[send.msg_id] = len(self._staged)
        self._staged.append(Staged(who, send, record, receivers, full, waiter, size_bytes))
        self._out.append(line)

    def _staged_before(self, who: Connection, msg_id: str) -> bool:
        place = self._places.get(msg_id)
        if place is None:
            return False
        if who.sender_id != self._staged[place].record.from_session:
            raise ProtocolError("a message id that another session has used")
        # Said again within one wake: over a new connection, which is the one that has to hear of it.
        self._staged[place] = self._staged[place]._replace(sender=who)
        return True

    def _address(
        self, now: Instant, who: Connection, scope: int, target: str, reply_to: str | None, before: _Before | None
    ) -> tuple[list[Session], Connection | Expected | None, str]:
        """Who gets it: sessions, or the connection that waits for this very answer; and how the log calls them."""
        # guards: dedup: a repeat goes to the original receiver [before.receiver if before is not None else =>]
        first = before.receiver if before is not None else None
        if scope == _SESSION:
            waiter = self._awaits.waiter(reply_to) if reply_to else None
            if waiter is not None and target in (waiter.sender_name, waiter.sender_id) and waiter is not who:
                return [], waiter, waiter.sender_name
            session = first or self._resolve(now, target)
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
                    "may have got it; see who is there before you send it anew: zmqbus list"
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

    def _resolve(self, now: Instant, target: str) -> Session:
        session = self._registry.resolve(target)
        if session.conn is None and self._takeover.settle(now, session):
            return self._registry.resolve(target)  # it has died: somebody else has its mail now, or nobody had any
        return session

    def _before(self, who: Connection, send: Single) -> _Before | None:
        """What became of this message when it was said before; None: it never got as far as the journal."""
        found = self._sent_before(send.msg_id)
        if found is None:
            return None
        if found.from_session != who.sender_id:
            raise ProtocolError("a message id that another session has used")
        return _Before(self._registry.known(found.to_session_id or ""), found.place)

    def _is_newcomer(self, session: Session, before: _Before) -> bool:
        """Whether a session has come since a message was accepted first: then it may have younger ones already."""
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

    def _count_broadcast(self, now: Instant, who: Connection) -> None:
        recent = self._recent_broadcasts(now, who)
        if len(recent) >= BROADCASTS_PER_MINUTE:
            retry_s = recent[0] + MINUTE_S - now.mono_s
            raise RateLimited(
                f"{BROADCASTS_PER_MINUTE} broadcasts within a minute is the limit of a session; "
                f"retry in {retry_s:.0f} s"
            )
        if who.session is None and self._guests_room(now) < 1:  # guards: rate limits [off]
            raise RateLimited(
                f"{GUEST_BROADCASTS_PER_MINUTE} broadcasts within a minute is the limit of all who speak without a "
                "session; retry in a minute, or connect first"
            )
        recent.append(now.mono_s)  # guards: rate limits

    def _guests_room(self, now: Instant) -> int:
        """How many more broadcasts guests may make at this moment."""
        young = (at > now.mono_s - MINUTE_S for recent in self._guest_broadcasts.values() for at in recent)
        return GUEST_BROADCASTS_PER_MINUTE - sum(young)

    # --- the journal's answer

    @property
    def waits_for_journal(self) -> bool:
        """Whether anything is staged."""
        return bool(self._staged)

    def journaled(self, now: Instant, pointers: Sequence[Pointer]) -> None:
        """What was staged is in the log, at these places, and goes out."""
        place = 0
        staged = self._unstage()
        for message in staged if len(staged) == 1 else gathered(staged):
            if isinstance(message, StagedRun):
                msg_ids = message.sends.msg_ids
                self.accepted += len(msg_ids)
                self._out.counts.accepted_bytes += message.size_bytes
                self._last_id = msg_ids[-1]
                self._dispatch_run(now, message, run_of(now, message, pointers[place : place + len(msg_ids)]))
                place += len(msg_ids)  # guards: admission [+= => =]
                continue
            self.accepted += 1
            self._out.counts.accepted_bytes += message.size_bytes
            self._last_id = message.send.msg_id
            self._dispatch(now, message, entry_of(now, message, pointers[place]))
            place += 1

    def journal_failed(self, reason: str) -> None:
        """What was staged is not in the log: it has never been."""
        for message in self._unstage():
            msg_ids = message.sends.msg_ids if isinstance(message, StagedRun) else (message.send.msg_id,)
            for msg_id in msg_ids:
                self._delivery.refuse(message.sender, verbs.Refused(msg_id, BrokerUnavailable.code, reason))

    def _unstage(self) -> list[Staged | StagedRun]:
        staged, self._staged = self._staged, []
        self._places.clear()
        for message in staged:
            if isinstance(message, StagedRun):
                for session in message.receivers:
                    session.mailbox.release(message.size_bytes, len(message.sends.msg_ids))  # guards: admission
                continue
            for session in message.receivers:
                session.mailbox.release(message.size_bytes)
        return staged

    def _dispatch(self, now: Instant, message: Staged, entry: Entry) -> None:
        route = message.sender.route
        waiter = message.waiter
        if entry.scope in verbs.TO_MANY:
            self._delivery.to_many(now, message.receivers, entry, message.sender, message.full)
        elif waiter is None:
            self._delivery.to_one(now, message.receivers[0], entry, route)
        else:
            self._awaits.pass_on(now, waiter, entry, route)

    def _dispatch_run(self, now: Instant, message: StagedRun, run: Run) -> None:
        if message.sends.scope == _SESSION:
            self._delivery.run_to_one(now, message.receivers[0], run)
        elif not self._delivery.run_to_many(now, message.receivers, run, message.sender):
            for entry in run.entries():  # guards: broadcasts
                self._delivery.to_many(now, message.receivers, entry, message.sender, [])

    def tick(self, now: Instant) -> None:
        """Forgets the broadcasts of guests long gone."""
        for name, recent in list(self._guest_broadcasts.items()):
            if not recent or recent[-1] <= now.mono_s - MINUTE_S:
                del self._guest_broadcasts[name]
