"""What makes a program the same session when it opens its bus anew.

A name is the process's, not that of one `Bus`: a program that closes its bus and opens it again under the same name is
the same session, finds its mailbox as it has left it, and knows what it has taken, for its last acknowledgements may
still be under way. The token of that session is a secret, and is written nowhere (another process of that name is
another session; the broker gives it the mail of one that has died). So it is kept here, in the module, for as long as
the process lives: there is no object that lives so long, short of the interpreter itself. It is the one such table of
this package. Child processes that were forked have a copy of it, and find nothing in it that would be theirs.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from zmqbus.client.seen import TakenIds
from zmqbus.wire import verbs

#: Closed sessions that are remembered; the oldest goes first. Each may hold 10,000 ids, a megabyte.
REMEMBERED_SESSIONS = 100


class CachedIdentity(NamedTuple):
    """What makes a program the same session as before."""

    session_id: str
    token: str
    taken: TakenIds  #: what it has taken

    @classmethod
    def new(cls) -> CachedIdentity:
        """That of a session that has never been."""
        return cls(verbs.new_session_id(), verbs.new_token(), TakenIds())


#: (process, data directory, name) → the session that was closed last under the name; the oldest first. Each step on it
#: is one call of a dictionary's, so that threads need no lock.
_left: dict[tuple[int, str, str], CachedIdentity] = {}


def take(data_dir: str, name: str) -> CachedIdentity | None:
    """The session that this process has closed under the name, if any; nobody else gets it until it is left again."""
    return _left.pop((os.getpid(), data_dir, name), None)


def leave(data_dir: str, name: str, past: CachedIdentity) -> None:
    """This session is closed, and may be opened again under the name."""
    key = (os.getpid(), data_dir, name)
    _left.pop(key, None)
    _left[key] = past
    for oldest in list(_left)[:-REMEMBERED_SESSIONS]:
        _left.pop(oldest, None)
