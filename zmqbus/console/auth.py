"""Authentication of the page: one-time links, and the keys that pages derive from them.

Theory of operation
===================

*A link* carries a token after its `#`, which browsers send to no server. The token has two parts: a public head (a
random number, the time of expiry, a flag) and a secret, the HMAC of the head under the running console's key
(`lockfile`). Processes that can read the console's lock file, which are the user's, can make further links.

*Signing in.* The page removes the token from its address and proves that it knows the secret: it sends the head, a
nonce and an HMAC of the nonce under the secret. The console answers with the id of a new visitor and an HMAC of its
own, which proves to the page that the console knows the secret as well. Both derive the visitor's key from the secret,
the nonce and the id. Neither the secret nor the key is ever sent. A used link is remembered until it would have
expired.

*Each request* carries the visitor's id, a nonce, and an HMAC of the nonce, the method and the target under the
visitor's key; each response carries another HMAC of the same under the same key. So a program that answers in place of
the console (another user's, which takes the port when the console has ended) learns nothing that gives access, and the
page shows nothing that it sends.

There are no cookies: browsers send cookies by themselves, and to every port of a host.

Pure: clocks are passed in.
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

#: Lifetime of a link: long enough to switch to the browser, too short for one found in a terminal's scrollback.
LINK_S = 300
#: Signed-in browsers. A person has two or three; one more signs the first out.
MAX_VISITORS = 16
#: How long a browser stays signed in: over a weekend; the console itself seldom runs longer.
VISIT_S = 7 * 24 * 3600.0

#: Sizes of nonces and of keys.
NONCE_BYTES, SECRET_BYTES = 16, 32
_UNTIL_BYTES, _FLAG_BYTES = 8, 1
_HEAD_BYTES = NONCE_BYTES + _UNTIL_BYTES + _FLAG_BYTES
#: Nonces are chosen by the page and put into HMACs, so they must not contain a separator.
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)

Verdict: TypeAlias = Literal["good", "used", "expired", "unknown", "elsewhere"]


def encode(data: bytes) -> str:
    """Encodes bytes as URL-safe Base64 without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str, length: int) -> bytes | None:
    """Decodes `length` bytes that `encode` has encoded; None for any other text."""
    if len(text) > 100 or not text.isascii():
        return None
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (NotBase64, ValueError):
        return None
    return data if len(data) == length and encode(data) == text else None


def sign(key: bytes, *parts: str) -> str:
    """Returns the HMAC-SHA256 of these parts; none of them may contain a line end."""
    return encode(hmac.new(key, "\n".join(parts).encode("utf-8", "replace"), sha256).digest())


def _equal(one: str, other: str) -> bool:
    # As bytes: `compare_digest` refuses texts with non-ASCII characters, which a header may hold.
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def mint(secret: bytes, now_s: float, nonce: bytes | None = None, *, same_user: bool = False) -> str:
    """Makes the token of a link that expires `LINK_S` after `now_s` (Unix time in s).

    `same_user`: valid only on connections that are this user's, as the kernel says (`peers`).
    """
    until = int(now_s + LINK_S).to_bytes(_UNTIL_BYTES, "big")
    head = (nonce or secrets.token_bytes(NONCE_BYTES)) + until + bytes([same_user])
    return f"{encode(head)}.{encode(_link_secret(secret, head))}"


def link(authority: str, token: str) -> str:
    """Returns the URL that opens the page with this token."""
    return f"http://{authority}/#link={token}"


def _link_secret(secret: bytes, head: bytes) -> bytes:
    return hmac.new(secret, b"link\0" + head, sha256).digest()  # guards: console access [head => head[:-_FLAG_BYTES]]


@dataclass(slots=True)
class Visitor:
    """A signed-in browser."""

    id: str
    key: bytes
    since_s: float  # monotonic clock

    def request_proof(self, nonce: str, method: str, target: str) -> str:
        """Returns the MAC that this visitor's request carries."""
        return sign(self.key, "request", nonce, method, target)  # guards: console access [, method, target =>]

    def answer_proof(self, nonce: str, method: str, target: str) -> str:
        """Returns the MAC that the response to that request carries."""
        return sign(self.key, "answer", nonce, method, target)


class Visitors:
    """The signed-in browsers; kept in memory, so the end of the console signs all out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._visitors)

    def add(self, visitor_id: str, key: bytes) -> Visitor:
        """Signs a browser in; over `MAX_VISITORS`, signs the first one out."""
        visitor = Visitor(visitor_id, key, self._clock())
        self._visitors[visitor_id] = visitor
        while len(self._visitors) > MAX_VISITORS:
            self._visitors.popitem(last=False)
        return visitor

    def find(self, proof: str, method: str, target: str) -> tuple[Visitor, str] | None:
        """Returns the visitor whose request carries this proof (`id.nonce.mac`), and the proof for the response.

        None for an invalid proof.
        """
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
class Redemption:
    """The outcome of redeeming a link: the verdict and, if good, the visitor's id and the console's proof."""

    verdict: Verdict
    visitor: str = ""
    proof: str = ""


class Links:
    """Redeems the links of one console."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock
        self._used: OrderedDict[bytes, float] = OrderedDict()  # random number of a used link → its expiry

    @property
    def used_count(self) -> int:
        """Number of used links that are remembered."""
        return len(self._used)

    def redeem(self, visitors: Visitors, head: str, nonce: str, proof: str, *, same_user: bool = False) -> Redemption:
        """Signs a visitor in with a link, once, if `proof` shows that the page knows the link's secret.

        `nonce`: chosen by the page. `same_user`: the kernel says that the connection is this user's.
        """
        now_s = self._clock()
        while self._used and next(iter(self._used.values())) < now_s - LINK_S:
            self._used.popitem(last=False)
        known = decode(head, _HEAD_BYTES)
        if known is None or not _NONCE.fullmatch(nonce):
            return Redemption("unknown")
        secret = _link_secret(self._secret, known)
        if not _equal(proof, sign(secret, "enter", nonce)):  # guards: console access
            return Redemption("unknown")
        number, until_s = known[:NONCE_BYTES], int.from_bytes(known[NONCE_BYTES:-_FLAG_BYTES], "big")
        if number in self._used:
            return Redemption("used")
        if now_s > until_s:
            return Redemption("expired")
        if known[-1] and not same_user:  # guards: console access: all users can read the process list [off]
            return Redemption("elsewhere")  # not used up: it stays valid for its user
        self._used[number] = until_s  # guards: console access: a link opens the console once
        visitor = encode(secrets.token_bytes(NONCE_BYTES))
        visitors.add(visitor, page_key(secret, nonce, visitor))
        return Redemption("good", visitor, sign(secret, "welcome", nonce, visitor))


def page_key(secret: bytes, nonce: str, visitor: str) -> bytes:
    """Returns the visitor's key, which page and console derive from the link's secret."""
    return hmac.new(secret, "\n".join(("key", nonce, visitor)).encode(), sha256).digest()


def split(token: str) -> tuple[str, bytes] | None:
    """Splits a token into head and secret, as the page does; None for an invalid one."""
    head, _, text = token.partition(".")
    secret = decode(text, SECRET_BYTES)
    return None if secret is None else (head, secret)
