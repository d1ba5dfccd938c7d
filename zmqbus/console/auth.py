"""Authentication of the page: links that are good for one use, and the keys that pages derive from them.

Theory of operation
===================

*A link* carries a token behind its `#`, which browsers do not send to any server. The token has two parts: a public
head (a random number, the time until which the link is good, a flag) and a secret, the HMAC of the head under the key
of the console that runs (`lease`). Whoever can read the console's file, which is the user, can make another link.

*Entering.* The page takes the token out of its address and proves that it knows the secret: it sends the head, a nonce
and an HMAC of the nonce under the secret. The console answers with the id of a new visitor and with an HMAC of its own,
which proves to the page that it has the secret, too. Both then derive the visitor's key from the secret, the nonce and
the id. Neither the secret nor the key is ever sent. A link that was used is remembered for as long as it would have
been good.

*Each request* carries the visitor's id, a nonce and an HMAC, under the key, of the nonce, the method and the target;
each answer carries an HMAC of the same under the same key. So whoever answers in place of the console (another user's
program that takes the port when the console has ended) learns nothing that opens anything, and the page shows nothing
that it says.

There are no cookies: browsers send these by themselves, and to every port of a host.

Pure: clock and randomness are handed in.
"""

from __future__ import annotations

import hmac
import re
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
#: Someone who comes back after a weekend has not gone; the console itself seldom lives longer.
VISIT_S = 7 * 24 * 3600.0

#: Of random numbers, and of keys.
NONCE_BYTES, SECRET_BYTES = 16, 32
_UNTIL_BYTES, _FLAG_BYTES = 8, 1
_HEAD_BYTES = NONCE_BYTES + _UNTIL_BYTES + _FLAG_BYTES
#: What the other side chooses, and what is put into HMACs: no separator can occur in it.
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)

Verdict: TypeAlias = Literal["good", "used", "expired", "unknown", "elsewhere"]


def encode(data: bytes) -> str:
    """Base64 for addresses and headers, without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str, length: int) -> bytes | None:
    """The inverse of `encode`; None where the text is not that, of `length` bytes."""
    if len(text) > 100 or not text.isascii():
        return None
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (NotBase64, ValueError):
        return None
    return data if len(data) == length and encode(data) == text else None


def sign(key: bytes, *parts: str) -> str:
    """An HMAC-SHA256 of these parts, none of which contains a line end."""
    return encode(hmac.new(key, "\n".join(parts).encode("utf-8", "replace"), sha256).digest())


def _equal(one: str, other: str) -> bool:
    # As bytes: a header may hold characters that a comparison of texts refuses.
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def mint(secret: bytes, now_s: float, nonce: bytes | None = None, *, same_user: bool = False) -> str:
    """A token for one link, good for `LINK_S` from `now_s` (wall clock, s) on.

    `same_user`: only for connections of which the kernel says that they are this user's (`peers`).
    """
    until = int(now_s + LINK_S).to_bytes(_UNTIL_BYTES, "big")
    head = (nonce or secrets.token_bytes(NONCE_BYTES)) + until + bytes([same_user])
    return f"{encode(head)}.{encode(_link_secret(secret, head))}"


def link(authority: str, token: str) -> str:
    """The address that opens the page."""
    return f"http://{authority}/#link={token}"


def _link_secret(secret: bytes, head: bytes) -> bytes:
    return hmac.new(secret, b"link\0" + head, sha256).digest()  # guards: console access [head => head[:-_FLAG_BYTES]]


@dataclass(slots=True)
class Visitor:
    """A browser that was let in."""

    id: str
    key: bytes
    since_s: float  # steady clock

    def request_proof(self, nonce: str, method: str, target: str) -> str:
        """What a request of this visitor carries."""
        return sign(self.key, "request", nonce, method, target)  # guards: console access [, method, target =>]

    def answer_proof(self, nonce: str, method: str, target: str) -> str:
        """What the answer to it carries."""
        return sign(self.key, "answer", nonce, method, target)


class Visitors:
    """The browsers that were let in; in memory only, so they end with the console."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._visitors)

    def admit(self, visitor_id: str, key: bytes) -> Visitor:
        """Lets one in; the one that came first goes where there are too many."""
        visitor = Visitor(visitor_id, key, self._clock())
        self._visitors[visitor_id] = visitor
        while len(self._visitors) > MAX_VISITORS:
            self._visitors.popitem(last=False)
        return visitor

    def find(self, proof: str, method: str, target: str) -> tuple[Visitor, str] | None:
        """Whose request carries this proof (`id.nonce.mac`), and the proof for the answer; None: nobody's."""
        visitor_id, _, rest = proof.partition(".")
        nonce, _, mac = rest.partition(".")
        visitor = self._visitors.get(visitor_id)
        if visitor is None or not _NONCE.fullmatch(nonce) or self._clock() - visitor.since_s > VISIT_S:
            return None
        # guards: console access: a session id alone is no proof
        if not _equal(mac, visitor.request_proof(nonce, method, target)):
            return None
        return visitor, visitor.answer_proof(nonce, method, target)


@dataclass(frozen=True, slots=True)
class Entry:
    """What came of a link: the verdict; where it is good, the visitor's id and the console's proof for the page."""

    verdict: Verdict
    visitor: str = ""
    proof: str = ""


class Links:
    """What came of the links of one console."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock
        self._used: OrderedDict[bytes, float] = OrderedDict()  # nonce → good until

    def redeem(self, visitors: Visitors, head: str, nonce: str, proof: str, *, same_user: bool = False) -> Entry:
        """Uses the link with this head up, for one visitor, if `proof` shows that its secret is known.

        `nonce`: of the page. `same_user`: the kernel says that the connection is this user's.
        """
        now_s = self._clock()
        while self._used and next(iter(self._used.values())) < now_s - LINK_S:
            self._used.popitem(last=False)
        known = decode(head, _HEAD_BYTES)
        if known is None or not _NONCE.fullmatch(nonce):
            return Entry("unknown")
        secret = _link_secret(self._secret, known)
        if not _equal(proof, sign(secret, "enter", nonce)):  # guards: console access
            return Entry("unknown")
        number, until_s = known[:NONCE_BYTES], int.from_bytes(known[NONCE_BYTES:-_FLAG_BYTES], "big")
        if number in self._used:
            return Entry("used")
        if now_s > until_s:
            return Entry("expired")
        if known[-1] and not same_user:  # guards: console access: all users can read the process list [off]
            return Entry("elsewhere")  # and it stays good, for the one it was made for
        self._used[number] = until_s  # guards: console access: a link opens the console once
        visitor = encode(secrets.token_bytes(NONCE_BYTES))
        visitors.admit(visitor, page_key(secret, nonce, visitor))
        return Entry("good", visitor, sign(secret, "welcome", nonce, visitor))


def page_key(secret: bytes, nonce: str, visitor: str) -> bytes:
    """The key that page and console derive from the secret of the link."""
    return hmac.new(secret, "\n".join(("key", nonce, visitor)).encode(), sha256).digest()


def split(token: str) -> tuple[str, bytes] | None:
    """Head and secret of a token, as a page takes it apart; None where it is none."""
    head, _, text = token.partition(".")
    secret = decode(text, SECRET_BYTES)
    return None if secret is None else (head, secret)
