"""A command reads a session's mailbox in its listener's place: whole (FETCH), or the beginning of it (PREVIEW).

*FETCH* (`zmqbus inbox`) hands out all that is unread, and all of it.

The listener may hold messages that it has not shown. So it is asked to give them back (RECALL) before the command gets
anything, and only if it does not answer within a second does the command go on without it. While the command reads, the
mailbox is open towards it alone; afterwards, however it ends, it goes back to the listener.

*PREVIEW* (the hooks) costs the same whatever waits: so many messages, and so much of each body. It is for sessions that
have no listener, and shows nothing of others. The messages stay where they are until MARKREAD names those that were
shown.
"""

from __future__ import annotations

from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.mailbox import Mailbox
from zmqbus.broker.registry import Registry
from zmqbus.broker.reply_routing import ReplyRouting
from zmqbus.broker.sessions import Connection, Fetching, Session
from zmqbus.errors import ProtocolError, RateLimited
from zmqbus.wire import verbs

#: How long a listener has to give back what it holds, before a FETCH goes on without it.
RECALL_S = 1.0
#: How often one connection may read: each peek sends what credit allows anew, and nobody may have read the last one.
MAX_FETCHES = 4
#: How often one connection may say PREVIEW and MARKREAD: each reads up to a MiB of the store.
MAX_PREVIEWS = 16
#: Messages in one PREVIEWS, or one MARKREAD: more than a hook has room to show.
PREVIEW_MESSAGES = 250
#: Of each body; a line shows 400 characters, of four bytes at most, and as much again may be taken out of it.
PREVIEW_HEAD_BYTES = 4096


class Fetches:
    """The commands that read, or are about to."""

    def __init__(self, registry: Registry, delivery: Delivery, reply_routing: ReplyRouting, out: Outbox) -> None:
        self._registry = registry
        self._delivery = delivery
        self._reply_routing = reply_routing
        self._out = out
        self._readers: dict[str, Connection] = {}  # by session id

    def __repr__(self) -> str:
        return f"<Fetches: {len(self._readers)} mailboxes>"

    def fetch(self, now: Instant, who: Connection, fetch: verbs.Fetch) -> None:
        """A command wants the unread messages of its session."""
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
            session.mailbox.open = False  # what comes behind RECALL would be shown there, and by the command again
            self._out.reply(session.conn.route, verbs.Recall(session.recalls, session.mailbox.owed()))
        else:
            self._begin(now, who)

    def preview(self, now: Instant, who: Connection, preview: verbs.Preview) -> None:
        """A command wants to see what waits for its session, without taking it."""
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

    def mark_read(self, now: Instant, who: Connection, mark: verbs.MarkRead) -> None:
        """A command has shown these messages. Where a listener has come meanwhile, they are on their way to it, and the
        ids that the command has noted down tell it so."""
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
        """The mailbox of the connection's session; None if somebody is being shown what is in it."""
        session = who.session
        assert session is not None
        if who.previews >= MAX_PREVIEWS:
            raise RateLimited(f"a connection may look at the inbox {MAX_PREVIEWS} times; repeat the command")
        who.previews += 1
        taken = session.conn is not None or self._delivery.consumer(session.mailbox) is not None
        return None if taken else session.mailbox  # guards: reading [None if taken else =>]

    def recalled(self, now: Instant, who: Connection, recalled: verbs.Recalled) -> None:
        """A listener has given back what it had not shown."""
        session = who.session
        assert session is not None
        if recalled.generation != session.recalls:
            return
        if not self._begin_waiting(now, session) and (
            self._delivery.consumer(session.mailbox) is who and not session.mailbox.open
        ):
            # The command has gone meanwhile: the listener gets back what it gave.
            self._delivery.detach(session.mailbox)
            self._delivery.attach(now, session.mailbox, who)

    def advance(self, now: Instant, who: Connection) -> None:
        """Ends a FETCH when all has been taken; a peek shows what credit allows, since nothing is acknowledged."""
        fetching = who.fetching
        if fetching is None or not fetching.started or who.mailbox is None:
            return
        left = who.mailbox.backlog
        if fetching.peek or (not who.mailbox.window and not left):
            self._out.reply(who.route, verbs.Fetched(fetching.ref, fetching.count, left))
            self.end(now, who)

    def end(self, now: Instant, who: Connection) -> None:
        """The mailbox goes back to the session's own process, if there is one."""
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

    def parted(self, now: Instant, session: Session) -> None:
        """A session's own connection has ended: whoever waited for it to give back what it held may begin."""
        self._begin_waiting(now, session)

    def tick(self, now: Instant) -> None:
        """Listeners that do not answer do not keep their inbox shut."""
        for reader in list(self._readers.values()):
            fetching = reader.fetching
            if fetching is not None and not fetching.started and now.mono_s >= fetching.deadline_s:
                self._begin(now, reader)

    def hand_back(self, now: Instant, who: Connection, mailbox: Mailbox) -> None:
        """Answers that a command waited for and did not take go to the session's mailbox; a guest has none."""
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
            # It has waited for answers on this connection: they come first, through the mailbox they belong to.
            self._delivery.detach(own)
            self.hand_back(now, who, own)
        self._delivery.attach(now, mailbox, who)
        self.advance(now, who)
