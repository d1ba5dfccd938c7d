"""Links and browsers: good once, good for a while, and nobody else's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.console.tickets import KEY_S, LINK_S, MAX_VISITORS, VISIT_S, Links, Visitors, mint

SECRET = b"s" * 32


class Clock:
    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def test_a_link_is_good_once() -> None:
    clock = Clock()
    links = Links(SECRET, clock)
    token = mint(SECRET, clock())
    assert links.redeem(token) == "good"
    assert links.redeem(token) == "used"
    assert links.redeem(mint(SECRET, clock())) == "good"


def test_a_link_is_good_for_a_while() -> None:
    clock = Clock()
    links = Links(SECRET, clock)
    first, second = mint(SECRET, clock()), mint(SECRET, clock())
    clock.now_s += LINK_S
    assert links.redeem(first) == "good"
    clock.now_s += 1
    assert links.redeem(second) == "expired"


def test_what_was_used_is_never_good_again_however_long_one_waits() -> None:
    clock = Clock()
    links = Links(SECRET, clock)
    token = mint(SECRET, clock())
    assert links.redeem(token) == "good"
    for _ in range(20):
        clock.now_s += LINK_S / 4
        assert links.redeem(token) in ("used", "expired")
    links.redeem(mint(SECRET, clock()))
    assert len(links._used) == 1, "what has run out is forgotten"


def test_another_console_has_other_links() -> None:
    assert Links(SECRET).redeem(mint(b"t" * 32, 1_800_000_000.0)) == "unknown"


@given(st.text(max_size=300) | st.binary(max_size=120).map(lambda data: data.decode("latin-1")))
def test_what_is_no_token_is_unknown(token: str) -> None:
    assert Links(SECRET).redeem(token) == "unknown"


@given(st.integers(0, 74), st.characters(codec="ascii"))
def test_a_token_that_was_changed_is_none(at: int, other: str) -> None:
    clock = Clock()
    token = mint(SECRET, clock(), b"n" * 16)
    changed = token[:at] + other + token[at + 1 :]
    verdict = Links(SECRET, clock).redeem(changed)
    # The last character carries two bits that mean nothing; characters outside of base64 are passed over by no one.
    assert verdict == "unknown" or changed[:-1] == token[:-1]


def test_tokens_are_all_different_and_long() -> None:
    tokens = {mint(SECRET, 1.0) for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) >= 43 for token in tokens)


def test_a_browser_is_known_by_its_cookie() -> None:
    visitors = Visitors()
    one, other = visitors.admit(), visitors.admit()
    assert visitors.find(one.cookie) is one
    assert visitors.find(other.cookie) is other
    for wrong in (
        None,
        "",
        "x",
        one.cookie[:-1],
        one.cookie + "x",
        one.key,
        "ü",
        "\udc80".encode("utf-8", "replace").decode(),
    ):
        assert visitors.find(wrong) is None
    assert Visitors.fits(one, one.key)
    for wrong in (None, "", other.key, one.cookie, "ü"):
        assert not Visitors.fits(one, wrong)


def test_the_key_is_given_out_only_at_first() -> None:
    clock = Clock()
    visitors = Visitors(clock)
    visitor = visitors.admit()
    assert visitors.claim_key(visitor) == visitor.key
    clock.now_s += KEY_S
    assert visitors.claim_key(visitor) == visitor.key, "a reload while the page loads"
    clock.now_s += 0.1
    assert visitors.claim_key(visitor) is None


def test_visits_end() -> None:
    clock = Clock()
    visitors = Visitors(clock)
    visitor = visitors.admit()
    clock.now_s += VISIT_S
    assert visitors.find(visitor.cookie) is visitor
    clock.now_s += 1
    assert visitors.find(visitor.cookie) is None


def test_there_is_room_for_so_many_and_the_first_makes_room() -> None:
    visitors = Visitors()
    first, *others = [visitors.admit() for _ in range(MAX_VISITORS + 1)]
    assert len(visitors) == MAX_VISITORS
    assert visitors.find(first.cookie) is None
    assert all(visitors.find(one.cookie) is one for one in others)


@pytest.mark.parametrize("token", ["A" * 100_000, "=" * 50, "", "é" * 40])
def test_odd_tokens_cost_nothing(token: str) -> None:
    assert Links(SECRET).redeem(token) == "unknown"
