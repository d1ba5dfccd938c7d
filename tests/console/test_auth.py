"""Links and visitors: links work once and expire, proofs belong to one visitor and one request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.console.conftest import entering, new_nonce, proof_of
from zmqbus.console.auth import (
    LINK_S,
    MAX_VISITORS,
    SECRET_BYTES,
    VISIT_S,
    Links,
    Redemption,
    Visitor,
    Visitors,
    decode,
    encode,
    link,
    mint,
    sign,
    split,
)

SECRET = b"s" * SECRET_BYTES


class Clock:
    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def redeem(links: Links, token: str, *, same_user: bool = False) -> str:
    return _use(links, Visitors(), token, same_user=same_user)[0].verdict


def _use(links: Links, visitors: Visitors, token: str, *, same_user: bool = False) -> tuple[Redemption, Visitor | None]:
    body, welcome = entering(token)
    entry = links.redeem(visitors, body["link"], body["nonce"], body["proof"], same_user=same_user)
    return entry, welcome({"visitor": entry.visitor, "proof": entry.proof}) if entry.verdict == "good" else None


class TestLinks:
    def test_link_works_once(self) -> None:
        clock = Clock()
        links = Links(SECRET, clock)
        token = mint(SECRET, clock())
        assert redeem(links, token) == "good"
        assert redeem(links, token) == "used"
        assert redeem(links, mint(SECRET, clock())) == "good"

    def test_link_expires(self) -> None:
        clock = Clock()
        links = Links(SECRET, clock)
        first, second = mint(SECRET, clock()), mint(SECRET, clock())
        clock.now_s += LINK_S
        assert redeem(links, first) == "good"
        clock.now_s += 1
        assert redeem(links, second) == "expired"

    def test_used_link_never_works_again(self) -> None:
        clock = Clock()
        links = Links(SECRET, clock)
        token = mint(SECRET, clock())
        assert redeem(links, token) == "good"
        for _ in range(20):
            clock.now_s += LINK_S / 4
            assert redeem(links, token) in ("used", "expired")
        redeem(links, mint(SECRET, clock()))
        assert links.used_count == 1, "expired links are forgotten"

    def test_link_of_another_console_is_unknown(self) -> None:
        assert redeem(Links(SECRET), mint(b"t" * SECRET_BYTES, 1_800_000_000.0)) == "unknown"

    def test_same_user_link(self) -> None:
        clock = Clock()
        links = Links(SECRET, clock)
        token = mint(SECRET, clock(), same_user=True)
        assert redeem(links, token) == "elsewhere"
        assert redeem(links, token, same_user=True) == "good", "the refused attempt did not use it up"
        assert redeem(links, token, same_user=True) == "used"
        # The flag cannot be removed, since the secret depends on it.
        head, secret = split(mint(SECRET, clock(), same_user=True)) or ("", b"")
        plain = encode((decode(head, 25) or b"")[:-1] + b"\0")
        nonce = new_nonce()
        assert links.redeem(Visitors(), plain, nonce, sign(secret, "enter", nonce)).verdict == "unknown"

    def test_head_of_a_link_without_its_secret_is_refused(self) -> None:
        """Only the head is sent, with a proof; together they give an eavesdropper no access."""
        clock = Clock()
        links, visitors = Links(SECRET, clock), Visitors()
        body, _ = entering(mint(SECRET, clock()))
        for nonce, proof in (
            (new_nonce(), body["proof"]),
            (body["nonce"], ""),
            (body["nonce"], "é"),
            ("", body["proof"]),
        ):
            assert links.redeem(visitors, body["link"], nonce, proof).verdict == "unknown"
        assert len(visitors) == 0
        assert links.redeem(visitors, body["link"], body["nonce"], body["proof"]).verdict == "good"
        # A replay is refused.
        assert links.redeem(visitors, body["link"], body["nonce"], body["proof"]).verdict == "used"

    @given(st.text(max_size=300) | st.binary(max_size=120).map(lambda data: data.decode("latin-1")))
    def test_malformed_link_is_unknown(self, text: str) -> None:
        for head, nonce, proof in ((text, new_nonce(), "x"), ("A" * 34, text, "x"), ("A" * 34, new_nonce(), text)):
            assert Links(SECRET).redeem(Visitors(), head, nonce, proof).verdict == "unknown"

    @given(st.integers(0, 77), st.characters(codec="ascii"))
    def test_changed_token_is_refused(self, at: int, other: str) -> None:
        clock = Clock()
        token = mint(SECRET, clock(), b"n" * 16)
        changed = token[:at] + other + token[at + 1 :]
        assert changed == token or split(changed) is None or redeem(Links(SECRET, clock), changed) == "unknown"

    def test_tokens_differ_and_are_in_the_fragment(self) -> None:
        tokens = {mint(SECRET, 1.0) for _ in range(100)}
        assert len(tokens) == 100
        assert all(len(token) == 78 for token in tokens)
        token = tokens.pop()
        assert link("name.localhost:1", token) == f"http://name.localhost:1/#link={token}"


@pytest.fixture
def visitor() -> Visitor:
    return Visitor("v" * 22, b"k" * 32, 0.0)


class TestVisitors:
    def test_page_and_console_derive_the_same_unsent_key(self) -> None:
        clock = Clock()
        visitors = Visitors()
        token = mint(SECRET, clock())
        entry, visitor = _use(Links(SECRET, clock), visitors, token)
        assert visitor is not None
        found = visitors.find(proof_of(visitor, "GET", "/api/events"), "GET", "/api/events")
        assert found is not None and found[0].key == visitor.key
        sent = f"{entry.visitor}{entry.proof}{proof_of(visitor, 'GET', '/')}"
        assert encode(visitor.key) not in sent and token.partition(".")[2] not in sent

    def test_request_and_response_proofs(self) -> None:
        visitors = Visitors()
        one, other = visitors.add("one", b"1" * 32), visitors.add("other", b"2" * 32)
        proof = proof_of(one, "GET", "/api/messages?limit=1")
        found = visitors.find(proof, "GET", "/api/messages?limit=1")
        assert found is not None and found[0] is one
        nonce = proof.split(".")[1]
        assert found[1] == one.answer_proof(nonce, "GET", "/api/messages?limit=1") != proof.split(".")[2]
        for method, target in (("POST", "/api/messages?limit=1"), ("GET", "/api/messages"), ("GET", "/api/events")):
            assert visitors.find(proof, method, target) is None
        mac = proof.split(".")[2]
        for wrong in (
            "",
            ".",
            "..",
            proof[:-1],
            proof + "x",
            f"other.{nonce}.{mac}",
            f"nobody.{nonce}.{mac}",
            f"one.{new_nonce()}.{mac}",
            f"one..{mac}",
            f"one.{nonce}.",
            f"one.{nonce}.{found[1]}",
            f"one.{nonce}.é",
            f"one.{nonce}é.{mac}",
            f"one.{nonce}\n.{mac}",
            proof_of(Visitor("one", other.key, 0.0), "GET", "/api/messages?limit=1"),
        ):
            assert visitors.find(wrong, "GET", "/api/messages?limit=1") is None, wrong

    def test_visitor_is_signed_out_after_a_week(self) -> None:
        clock = Clock()
        visitors = Visitors(clock)
        visitor = visitors.add("one", b"1" * 32)
        clock.now_s += VISIT_S
        assert visitors.find(proof_of(visitor, "GET", "/"), "GET", "/") is not None
        clock.now_s += 1
        assert visitors.find(proof_of(visitor, "GET", "/"), "GET", "/") is None

    def test_oldest_visitor_is_signed_out_when_there_are_too_many(self) -> None:
        visitors = Visitors()
        first, *others = [visitors.add(f"v{number}", bytes([number]) * 32) for number in range(MAX_VISITORS + 1)]
        assert len(visitors) == MAX_VISITORS
        assert visitors.find(proof_of(first, "GET", "/"), "GET", "/") is None
        assert all(visitors.find(proof_of(one, "GET", "/"), "GET", "/") for one in others)

    @pytest.mark.parametrize("text", ["A" * 100_000, "=" * 50, "", "é" * 40, "A" * 34 + "=", "A" * 33, "A" * 33 + "B"])
    def test_decode_refuses_other_texts(self, text: str) -> None:
        assert decode(text, 25) is None
        assert decode(encode(b"x" * 25), 25) == b"x" * 25
