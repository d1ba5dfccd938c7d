"""Callers: connections that send requests, and those that were lost and may come back for the answers.

A caller whose connection is lost is expected back for `RETURN_S`. It repeats its requests over the new connection, and
receives their outcomes. After that time its unassigned requests are withdrawn: it may send them again. Assigned
ones are kept as long as its process lives, or a caller that is merely busy would have them done twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zmqbus.broker.events import Instant
from zmqbus.broker.groups.ledger import Ledger
from zmqbus.broker.groups.model import Caller, Request, Stage
from zmqbus.broker.sessions import RETURN_S, Connection
from zmqbus.errors import ProtocolError

#: Unanswered requests of one connection: as many as its unconfirmed messages may be.
MAX_UNANSWERED = 1_000
#: Requests of all lost callers; beyond that the oldest of these callers are given up early.
MAX_ORPHANS = 10_000


class Callers:
    """All callers with unanswered requests."""

    def __init__(self, ledger: Ledger, owner_lives: Callable[[str], bool]) -> None:
        self._ledger = ledger
        self._owner_lives = owner_lives
        self._connected: dict[Connection, Caller] = {}
        self._lost: deque[Caller] = deque()  # callers without a connection, the first to be given up first
        self._orphans = 0  # their requests, at the time of the loss
        self._late: dict[Caller, None] = {}  # callers that are late, but some of whose requests are assigned

    def __repr__(self) -> str:
        return f"<Callers: {len(self._connected)} connected, {len(self._lost)} lost, {len(self._late)} late>"

    @property
    def needs_tick(self) -> bool:
        """Whether time alone may change something here."""
        return bool(self._lost or self._late)

    def of(self, who: Connection) -> Caller:
        """The caller of a connection, which may be new."""
        caller = self._connected.get(who)
        if caller is None:
            caller = self._connected[who] = Caller(who)
        return caller

    def check_room(self, caller: Caller) -> None:
        """Raises `ProtocolError` if the connection may not have another unanswered request."""
        if len(caller.requests) >= MAX_UNANSWERED:
            raise ProtocolError(f"a connection may have {MAX_UNANSWERED:,} requests unanswered, and has")

    def adopt(self, caller: Caller, request: Request) -> bool:
        """Moves a repeated request to the connection that has repeated it; false if that has it already.

        Raises `ProtocolError` if another session has sent it first.
        """
        before = request.caller
        if before.sender_id != caller.sender_id:
            raise ProtocolError("a request id that another session has used")
        if before is caller:
            return False
        self.check_room(caller)
        del before.requests[request.msg_id]
        caller.requests[request.msg_id] = request
        request.caller = caller
        return True

    def withdraw(self, who: Connection, msg_ids: tuple[str, ...]) -> None:
        """Withdraws those of these requests that are the connection's own."""
        caller = self._connected.get(who)
        if caller is not None:
            self._ledger.withdraw([caller.requests[one] for one in dict.fromkeys(msg_ids) if one in caller.requests])

    def returned(self, lease: str) -> None:
        """Notes that the client that had this lease has reconnected, and repeats the requests that it still wants."""
        for caller in (*self._lost, *self._late):
            if caller.lease == lease:
                caller.returned = True
                if caller.late:
                    caller.until_s = 0.0
                return

    def parted(self, now: Instant, who: Connection, *, gone: bool) -> None:
        """Handles the end of a connection. `gone` means that it has sent BYE, so that its requests are withdrawn."""
        caller = self._connected.pop(who, None)
        if caller is None or not caller.requests:
            return
        caller.conn = None
        if gone:
            self._ledger.withdraw(caller.requests.values())
            return
        caller.until_s = now.mono_s + RETURN_S
        caller.lost = len(caller.requests)
        caller.returned = False
        self._lost.append(caller)
        self._orphans += caller.lost
        while self._orphans > MAX_ORPHANS:
            self._give_up()

    def _give_up(self) -> None:
        """Withdraws the unassigned requests of the caller that was lost first; all of them if it will not be back."""
        caller = self._lost.popleft()
        self._orphans -= caller.lost
        caller.late = True
        if caller.returned or not self._owner_lives(caller.owner):  # guards: failover [on]
            self._ledger.withdraw(caller.requests.values())
            return
        self._ledger.withdraw(
            [one for one in caller.requests.values() if one.worker is None and one.stage is not Stage.ANSWERED]
        )
        if caller.requests:
            self._late[caller] = None

    def tick(self, now: Instant) -> None:
        """Gives up the callers whose time is over."""
        while self._lost and now.mono_s >= self._lost[0].until_s:  # guards: failover
            self._give_up()

    def check_owners(self, now: Instant) -> None:
        """Withdraws the assigned requests of late callers that have ended, or that do not want them any more."""
        for caller in list(self._late):
            if caller.requests and caller.returned and not caller.until_s:
                caller.until_s = now.mono_s + RETURN_S  # it is repeating its requests
            elif (caller.returned and now.mono_s >= caller.until_s) or not self._owner_lives(caller.owner):
                self._ledger.withdraw(caller.requests.values())
            if not caller.requests:
                del self._late[caller]
