"""Who may see the page: links that are good for once, and the browsers that came in with one.

Theory of operation
===================

*A link* holds a token: a random number, the time until which it is good, and a signature over both. The key of the
signature belongs to the console that runs (`lease`), and whoever can read its file, which is the user, can make
another link. Each is good for one use: what was used is remembered for as long as it would have been good.

*A browser* that used one gets two secrets. The cookie comes first; it is `HttpOnly`, so no script reads it, and
`SameSite=Strict`. But cookies know nothing of ports: a browser sends them to whatever listens on another port of this
machine, and that may be another user's. So the page fetches a second secret, the key, right after it has been let in,
keeps it where only pages of its own origin (port included) can read, and sends it in a header. A request needs both.
The key is handed out for some seconds after the link was used, and then never again.

Pure: clock and randomness are handed in.
"""

from __future__ import annotations

import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, TypeAlias

#: Long enough to change over to the browser, short enough that one in a terminal's scrollback opens nothing.
LINK_S = 300
#: Browsers that may be in at a time. A person has two or three; the one that came first has to make room.
MAX_VISITORS = 16
#: The page asks for its key as its first act. A reload in the middle of that may ask again.
KEY_S = 20.0
#: Someone who comes back after a weekend has not gone; the console itself seldom lives longer.
VISIT_S = 7 * 24 * 3600.0

NONCE_BYTES, SECRET_BYTES = 16, 32
_UNTIL_BYTES = 8

Verdict: TypeAlias = Literal["good", "used", "expired", "unknown"]


def mint(secret: bytes, now_s: float, nonce: bytes | None = None) -> str:
    """A token for one link, good for `LINK_S` from `now_s` (wall clock, s) on."""
    head = (nonce or secrets.token_bytes(NONCE_BYTES)) + int(now_s + LINK_S).to_bytes(_UNTIL_BYTES, "big")
    return urlsafe_b64encode(head + _sign(secret, head)).rstrip(b"=").decode()


def _sign(secret: bytes, head: bytes) -> bytes:
    return hmac.new(secret, b"link\0" + head, sha256).digest()


class Links:
    """What came of the links of one console."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock
        self._used: OrderedDict[bytes, float] = OrderedDict()  # nonce → good until

    def redeem(self, token: str) -> Verdict:
        """What this token is good for, and from now on no more."""
        now_s = self._clock()
        while self._used and next(iter(self._used.values())) < now_s - LINK_S:
            self._used.popitem(last=False)
        if len(token) > 200 or not token.isascii():
            return "unknown"
        try:
            content = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (NotBase64, ValueError):
            return "unknown"
        head, signature = content[: NONCE_BYTES + _UNTIL_BYTES], content[NONCE_BYTES + _UNTIL_BYTES :]
        if not hmac.compare_digest(signature, _sign(self._secret, head)):
            return "unknown"
        nonce, until_s = head[:NONCE_BYTES], int.from_bytes(head[NONCE_BYTES:], "big")
        if nonce in self._used:
            return "used"
        if now_s > until_s:
            return "expired"
        self._used[nonce] = until_s
        return "good"


@dataclass(slots=True)
class Visitor:
    """A browser that was let in."""

    cookie: str
    key: str
    since_s: float  # steady clock


class Visitors:
    """The browsers that were let in; in memory only, so they end with the console."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._visitors: list[Visitor] = []

    def __len__(self) -> int:
        return len(self._visitors)

    def admit(self) -> Visitor:
        """Lets one in; the one that came first goes where there are too many."""
        visitor = Visitor(secrets.token_urlsafe(SECRET_BYTES), secrets.token_urlsafe(SECRET_BYTES), self._clock())
        self._visitors = [*self._visitors[-(MAX_VISITORS - 1) :], visitor]
        return visitor

    def find(self, cookie: str | None) -> Visitor | None:
        """The one with this cookie. Takes the same time for every cookie that is wrong."""
        found = None
        now_s = self._clock()
        for visitor in self._visitors:
            # As bytes: a header may hold characters that a comparison of texts refuses.
            if hmac.compare_digest(visitor.cookie.encode(), (cookie or "").encode()):
                found = visitor
        return found if found is not None and now_s - found.since_s <= VISIT_S else None

    def claim_key(self, visitor: Visitor) -> str | None:
        """The key for the page that has just been let in; None when it is too late to ask for it."""
        return visitor.key if self._clock() - visitor.since_s <= KEY_S else None

    @staticmethod
    def fits(visitor: Visitor, key: str | None) -> bool:
        """Whether this is the visitor's key."""
        return hmac.compare_digest(visitor.key.encode(), (key or "").encode())
