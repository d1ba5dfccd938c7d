"""The identities of closed sessions, for programs that open their bus again.

A name belongs to the process, not to one `Bus`: a program that closes its bus and opens it again under the same name is
the same session, finds its mailbox as it was, and remembers which messages it has taken, since its last
acknowledgements may still be under way. The session's token is a secret, and is not written to any file (another
process of that name is another session; the broker gives it the mail of one that has died). So it is kept in a table of
this module, the only one of its kind in this package, for as long as the process lives. A forked child has a copy of
the table, whose entries belong to its parent.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from zmqbus.client.seen import SeenIds
from zmqbus.wire import verbs

#: Closed sessions that are remembered, the newest ones. Each may hold 10,000 ids, a megabyte.
REMEMBERED_SESSIONS = 100


class CachedIdentity(NamedTuple):
    """The identity of a session, and the messages that it has taken."""

    session_id: str
    token: str
    taken: SeenIds

    @classmethod
    def new(cls) -> CachedIdentity:
        """Makes the identity of a new session."""
        return cls(verbs.new_session_id(), verbs.new_token(), SeenIds())


#: (process, data directory, name) → the last session closed under that name; the oldest first. Each use is one call of
#: a dictionary method, so that threads need no lock.
_left: dict[tuple[int, str, str], CachedIdentity] = {}


def take(data_dir: str, name: str) -> CachedIdentity | None:
    """Removes and returns the session that this process has closed under the name, None if there is none."""
    return _left.pop((os.getpid(), data_dir, name), None)


def leave(data_dir: str, name: str, past: CachedIdentity) -> None:
    """Keeps a session that was closed under the name, to be opened again."""
    key = (os.getpid(), data_dir, name)
    _left.pop(key, None)
    _left[key] = past
    for oldest in list(_left)[:-REMEMBERED_SESSIONS]:
        _left.pop(oldest, None)
