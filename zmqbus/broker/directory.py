"""Requests for information: who is on the bus (LIST), and how the broker stands (STATUS). Pure.

Both answers are large for the size of their questions, and answers to a client that does not read them would pile up.
So a connection may ask for so many lists at once and so many bytes of answers, and for more as time passes.
"""

from __future__ import annotations

from collections.abc import Callable

from zmqbus.broker.admission import Admission
from zmqbus.broker.agent_states import AgentStates
from zmqbus.broker.delivery import Delivery
from zmqbus.broker.events import Instant, Outbox
from zmqbus.broker.groups.requests import RequestBroker
from zmqbus.broker.registry import Registry
from zmqbus.broker.sessions import Connection, Session
from zmqbus.broker.takeover import Takeover
from zmqbus.errors import RateLimited
from zmqbus.wire import verbs
from zmqbus.wire.handlers import handles

#: A session that has not acknowledged its messages for this long is listed as `busy`.
BUSY_STATE_S = 5.0
#: Notices that the status includes, the first ones; broker.log has them all.
MAX_NOTICES = 20
#: Lists that one connection may ask for at once, and per second after that.
LISTS_AT_ONCE = 50
LISTS_A_SECOND = 10
#: Bytes of lists and figures for one connection at once, and per second after that: enough to list 10,000 sessions.
ANSWERS_AT_ONCE_BYTES = 4 * 1024 * 1024
ANSWERS_A_SECOND_BYTES = 1024 * 1024
#: Size at which a page of a list ends, if not at `LIST_PAGE` rows: the paths of two hundred sessions may be 1.6 MB.
PAGE_BYTES = 64 * 1024
#: Bytes counted for an answer with figures, and for a row of a list besides its strings.
HEALTH_BYTES = 2_000
ROW_BYTES = 80


def _is_busy(now: Instant, session: Session) -> bool:
    """Whether a connected session is silent, or has not acknowledged a message for `BUSY_STATE_S`."""
    if session.conn is not None and session.conn.silent:
        return True
    oldest_s = session.mailbox.oldest_s()
    return oldest_s is not None and now.mono_s - oldest_s >= BUSY_STATE_S


class Directory:
    """Answers LIST and STATUS. Not thread-safe."""

    def __init__(
        self,
        out: Outbox,
        registry: Registry,
        delivery: Delivery,
        admission: Admission,
        requests: RequestBroker,
        takeover: Takeover,
        agent_states: AgentStates,
        *,
        epoch: str,
        release: str,
    ) -> None:
        self.shell_figures: Callable[[], tuple[tuple[str, int], ...]] = tuple  #: figures of the shell
        self.notices: list[str] = []  #: damaged or quarantined data, the first `MAX_NOTICES`
        self._out = out
        self._registry = registry
        self._delivery = delivery
        self._admission = admission
        self._requests = requests
        self._takeover = takeover
        self._agent_states = agent_states
        self._epoch = epoch
        self._release = release
        self._started: Instant | None = None

    def start(self, now: Instant) -> None:
        """Notes when the broker began, for its uptime."""
        self._started = now

    def notice(self, text: str) -> None:
        """Adds a notice of damaged or quarantined data to the status."""
        if len(self.notices) < MAX_NOTICES:
            self.notices.append(text)

    @handles(verbs.List)
    def _list(self, now: Instant, who: Connection, wanted: verbs.List) -> None:
        self._count_bulky(now, who)
        if who.requests >= LISTS_AT_ONCE:  # guards: rate limits [off]
            raise RateLimited(
                f"{LISTS_AT_ONCE} lists at once, and {LISTS_A_SECOND} a second, are the limit; retry in 1 s"
            )
        who.requests += 1
        if wanted.everyone:
            self._takeover.settle_shared(now)
        sessions = self._registry.reachable() if wanted.everyone else self._registry.live()
        ordered = sorted(sessions, key=lambda session: session.session_id)
        page = []
        size_bytes = 0
        for session in ordered:
            if session.session_id > wanted.after:
                page.append(session)
                size_bytes += ROW_BYTES + len(session.cwd) + len(session.project) + len(session.label or "")
                if len(page) >= verbs.LIST_PAGE or size_bytes >= PAGE_BYTES:
                    break
        who.answered_bytes += size_bytes
        more = bool(page) and page[-1] is not ordered[-1]
        rows = tuple(tuple(self._row(now, session)) for session in page)
        self._out.reply(who.route, verbs.Sessions(wanted.ref, rows, more))

    @handles(verbs.Status)
    def _status(self, now: Instant, who: Connection, status: verbs.Status) -> None:
        assert self._started is not None
        self._count_bulky(now, who)
        who.answered_bytes += HEALTH_BYTES
        boxes = [session.mailbox for session in self._registry.sessions.values()]
        under_way, under_way_bytes = self._delivery.under_way()
        figures = (
            ("release", self._release),
            ("protocol", verbs.VERSION),
            ("epoch", self._epoch),
            ("uptime_s", int(now.mono_s - self._started.mono_s)),
            ("sessions", sum(1 for _ in self._registry.live())),
            ("busy", sum(_is_busy(now, session) for session in self._registry.live())),
            ("away", sum(1 for s in self._registry.reachable() if s.conn is None)),
            ("connections", len(self._registry.connections)),
            ("accepted", self._admission.accepted),
            ("unread", sum(box.total for box in boxes)),
            ("unread_bytes", sum(box.total_bytes for box in boxes)),
            ("longest_mailbox", max((box.total for box in boxes), default=0)),
            ("under_way", under_way),
            ("under_way_bytes", under_way_bytes),
            ("untold", self._delivery.unsettled),
            ("broadcasts", self._delivery.bcast),
            *self._requests.figures(),
            *self._out.counts.figures(),
            *self.shell_figures(),
            *((("notices", "; ".join(self.notices)),) if self.notices else ()),
        )
        self._out.reply(who.route, verbs.Health(status.ref, figures))

    def _count_bulky(self, now: Instant, who: Connection) -> None:
        """Raises `RateLimited` if a connection has asked for more lists and figures than it can have read."""
        passed_s = now.mono_s - who.requested_s
        who.requested_s = now.mono_s
        who.requests = max(0.0, who.requests - passed_s * LISTS_A_SECOND)
        who.answered_bytes = max(0.0, who.answered_bytes - passed_s * ANSWERS_A_SECOND_BYTES)
        if who.answered_bytes >= ANSWERS_AT_ONCE_BYTES:  # guards: rate limits [off]
            raise RateLimited(
                f"{ANSWERS_AT_ONCE_BYTES >> 20} MiB of lists and figures at once, and "
                f"{ANSWERS_A_SECOND_BYTES >> 20} MiB a second, are the limit; retry in 1 s"
            )

    def _row(self, now: Instant, session: Session) -> verbs.Session:
        state = "away" if session.conn is None else "busy" if _is_busy(now, session) else "live"
        return verbs.Session(
            session.name,
            session.label,
            session.project,
            session.cwd,
            state,
            session.since_ts,
            session.session_id,
            session.pid,
            session.mailbox.total,
            max(0, int(now.steady_s - session.away_since_s)) if session.conn is None else 0,
            self._agent_states.state_of(now, session),
            max(0, int(now.wall_s - session.agent_since_ts)) if session.agent_since_ts else 0,
            session.agent_detail if session.agent == "blocked" else "",
        )
