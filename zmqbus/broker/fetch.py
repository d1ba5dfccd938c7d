"""Commands that read a session's mailbox in place of its listener: all of it (FETCH), or its beginning (PREVIEW).

*FETCH* (`zmqbus inbox`) delivers every unread message, with its whole body.

The listener may hold messages that it has not shown. So the broker asks it to return them (RECALL) before the command
gets anything; after a second without an answer the command goes on without it. While the command reads, it is the only
consumer of the mailbox; when it ends, in whatever way, the mailbox goes back to the listener.

A stopped listener reads RECALL late, perhaps after the command has ended. It then returns all messages that it got
before RECALL; those that follow on the DEALER are its own again. A broadcast on the SUB may overtake RECALL and be
returned with them, unnoticed by the broker. So nothing is published to a listener with an unanswered RECALL.

*PREVIEW* (the hooks) has a bounded cost: a number of messages, and a number of bytes of each body. It serves only
sessions without a listener. The messages stay in the mailbox until MARKREAD names those that were shown.

A PREVIEW that waits (the waiter of a session without a monitor) is answered once there is something to show, or once
the session is no longer away: its listener has connected, or it has left. Either change is stored, so each commit is
followed by a look at the sessions with such a PREVIEW; this also covers mail that a session takes over from another.
The session stays away meanwhile, and its senders hear `queued`.
"""

from __future__ import annotations

from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import ReplyRouting
from zmqbus.broker.sessions import Connection, Fetching, Session, SessionState
from zmqbus.errors import ProtocolError, RateLimited
from zmqbus.wire import verbs
from zmqbus.wire.handlers import handles

#: How long a listener has to return the messages that it holds, before a FETCH goes on without it.
RECALL_S = 1.0
#: FETCHes of one connection: each peek sends a full window again, and the client may not have read the last one.
MAX_FETCHES = 4
#: PREVIEWs and MARKREADs of one connection: each reads up to a MiB of the store.
MAX_PREVIEWS = 16
#: Messages in one PREVIEWS, or one MARKREAD: more than a hook has room to show.
PREVIEW_MESSAGES = 250
#: Bytes of each body in PREVIEWS: a line shows 400 characters of at most four bytes, and removed control characters may
#: take as much again.
PREVIEW_HEAD_BYTES = 4096


class Fetches:
    """Commands that read a mailbox, or wait for its listener to return messages."""

    def __init__(self, registry: Registry, delivery: Delivery, reply_routing: ReplyRouting, out: Outbox) -> None:
        self._registry = registry
        self._delivery = delivery
        self._reply_routing = reply_routing
        self._out = out
        self._readers: dict[str, Connection] = {}  # by session id
        self._waiting: dict[Connection, verbs.Preview] = {}

    def __repr__(self) -> str:
        return f"<Fetches: {len(self._readers)} mailboxes>"

    @handles(verbs.Fetch)
    def fetch(self, now: Instant, who: Connection, fetch: verbs.Fetch) -> None:
        """Starts to deliver the session's unread messages to a command."""
        session = who.session
        assert session is not None
        if who.fetching is not None:
            raise ProtocolError("one FETCH at a time")
        if who.fetches >= MAX_FETCHES:
            raise RateLimited(f"a connection may read the inbox {MAX_FETCHES} times; repeat the command")
        if session.session_id in self._readers:
            raise RateLimited("another command reads this inbox; retry when it has ended")
        who.fetching = Fetching(fetch.ref, fetch.peek, session, now.mono_s + RECALL_S)
        who.fetches += 1
        self._readers[session.session_id] = who
        # guards: reading: the listener first returns its messages [is not None => is None]
        if session.conn is not None and session.mailbox.window:
            session.recalls += 1
            session.conn.recalling = True  # guards: reading
            session.mailbox.open = False  # the listener would show what follows RECALL, and the command again
            self._out.reply(session.conn.route, verbs.Recall(session.recalls, session.mailbox.owed()))
        else:
            self._begin(now, who)

    @handles(verbs.Preview)
    def preview(self, now: Instant, who: Connection, preview: verbs.Preview) -> None:
        """Sends a command the beginning of its session's unread messages, and leaves them unread."""
        if preview.wait and not self._has_news(who):
            if who in self._waiting:
                raise ProtocolError("one PREVIEW that waits at a time")
            self._waiting[who] = preview
            return
        mailbox = self._unattended(who)
        limit = max(0, min(preview.messages, PREVIEW_MESSAGES))
        found = mailbox.oldest(limit) if mailbox is not None else []
        head_bytes = max(0, min(preview.head_bytes, PREVIEW_HEAD_BYTES))
        rows = tuple(
            verbs.Previewed(
                entry.msg_id,
                *entry.header,
                max(0, int(now.steady_s - entry.accepted_s)),
                entry.pointer,
                entry.size_bytes,
                entry.body[:head_bytes],
            )
            for _, entry in found
        )
        assert who.session is not None
        self._out.reply(who.route, verbs.Previews(preview.ref, rows, who.session.mailbox.total - len(rows)))

    def _has_news(self, who: Connection) -> bool:
        """Whether a PREVIEW that waits is to be answered: there is something to show, or the session is not away."""
        session = who.session
        assert session is not None
        if session.state is not SessionState.AWAY:  # guards: waiter [session.state is not SessionState.AWAY => False]
            return True
        # While another command reads the mailbox, what waits there may leave it.
        # guards: waiter [and self._delivery.consumer(session.mailbox) is None =>]
        return session.mailbox.total > 0 and self._delivery.consumer(session.mailbox) is None

    def committed(self, now: Instant) -> None:
        """Answers the PREVIEWs that wait and have something to show by now."""
        for who in [who for who in self._waiting if self._has_news(who)]:
            self.preview(now, who, self._waiting.pop(who))

    def forget(self, who: Connection) -> None:
        """Drops the PREVIEW that waits on a connection which has ended."""
        self._waiting.pop(who, None)  # guards: waiter

    @handles(verbs.MarkRead)
    def mark_read(self, now: Instant, who: Connection, mark: verbs.MarkRead) -> None:
        """Removes the messages that a command has shown.

        If a listener has connected meanwhile, they are in flight to it; the command has recorded their ids, so the
        listener skips them.
        """
        if len(mark.msg_ids) > PREVIEW_MESSAGES:
            raise ProtocolError(f"more than {PREVIEW_MESSAGES} messages in one MARKREAD")
        mailbox = self._unattended(who)
        if mailbox is not None:
            shown = frozenset(mark.msg_ids)
            read = [(seq, entry) for seq, entry in mailbox.oldest(len(shown)) if entry.msg_id in shown]
            mailbox.discard(read)
            self._out.counts.taken += len(read)
        self._out.reply(who.route, verbs.Done(mark.ref, ""))

    def _unattended(self, who: Connection) -> Mailbox | None:
        """Returns the mailbox of the connection's session; None while a listener or another command consumes it."""
        session = who.session
        assert session is not None
        if who.previews >= MAX_PREVIEWS:
            raise RateLimited(f"a connection may look at the inbox {MAX_PREVIEWS} times; repeat the command")
        who.previews += 1
        taken = session.conn is not None or self._delivery.consumer(session.mailbox) is not None
        return None if taken else session.mailbox  # guards: reading [None if taken else =>]

    @handles(verbs.Recalled)
    def recalled(self, now: Instant, who: Connection, recalled: verbs.Recalled) -> None:
        """Handles a listener's return of the messages that it had not shown."""
        session = who.session
        assert session is not None
        if recalled.generation != session.recalls:
            return
        who.recalling = False  # guards: reading
        if not self._begin_waiting(now, session) and (
            self._delivery.consumer(session.mailbox) is who and not session.mailbox.open
        ):
            # The command has ended meanwhile: deliver the returned messages to the listener again.
            self._delivery.detach(session.mailbox)
            self._delivery.attach(now, session.mailbox, who)

    def advance(self, now: Instant, who: Connection) -> None:
        """Ends a FETCH when all messages are acknowledged; a peek, which acknowledges none, after one window."""
        fetching = who.fetching
        if fetching is None or not fetching.started or who.mailbox is None:
            return
        left = who.mailbox.backlog
        if fetching.peek or (not who.mailbox.window and not left):
            self._out.reply(who.route, verbs.Fetched(fetching.ref, fetching.count, left))
            self.end(now, who)

    def end(self, now: Instant, who: Connection) -> None:
        """Ends a FETCH, and returns the mailbox to the session's own process, if that is connected."""
        fetching = who.fetching
        if fetching is None:
            return
        who.fetching = None
        session = fetching.session
        del self._readers[session.session_id]
        if fetching.started and self._delivery.consumer(session.mailbox) is who:
            self._delivery.detach(session.mailbox)
            who.mailbox = None
            if who.waits and self._registry.connections.get(who.route) is who:
                self._reply_routing.open_answers(now, who)
        if session.conn is not None and self._delivery.consumer(session.mailbox) is None:
            self._delivery.attach(now, session.mailbox, session.conn)
        self.committed(now)  # what this command has left unread

    def parted(self, now: Instant, session: Session) -> None:
        """Starts the FETCH that waited for this session's own connection, which has ended, to return its messages."""
        self._begin_waiting(now, session)

    def tick(self, now: Instant) -> None:
        """Starts each FETCH whose listener has not answered RECALL in time."""
        for reader in list(self._readers.values()):
            fetching = reader.fetching
            if fetching is not None and not fetching.started and now.mono_s >= fetching.deadline_s:
                self._begin(now, reader)

    def hand_back(self, now: Instant, who: Connection, mailbox: Mailbox) -> None:
        """Moves answers that a command has not acknowledged to its session's mailbox; a guest has none."""
        for entry in mailbox.drain():
            if who.session is not None:
                self._delivery.put_back(now, who.session, entry)
            else:
                self._out.note(f"answer {entry.msg_id} to {who.guest} was not taken")

    def _begin_waiting(self, now: Instant, session: Session) -> bool:
        reader = self._readers.get(session.session_id)
        if reader is None or reader.fetching is None or reader.fetching.started:
            return False
        self._begin(now, reader)
        return True

    def _begin(self, now: Instant, who: Connection) -> None:
        fetching = who.fetching
        assert fetching is not None
        mailbox = fetching.session.mailbox
        if self._delivery.consumer(mailbox) is not None:
            self._delivery.detach(mailbox)
        fetching.started = True
        own = who.mailbox
        if own is not None and own is not mailbox:
            # Answers awaited on this connection go to the session's mailbox first, and are delivered from there.
            self._delivery.detach(own)
            self.hand_back(now, who, own)
        self._delivery.attach(now, mailbox, who)
        self.advance(now, who)
