"""Broadcasts that travel in one piece: each is accepted, refused, counted and delivered as it would be by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.saidkit import Said, both, messages, refused
from zmqbus.broker import admission, events, mailbox
from zmqbus.broker.delivery import BEAT_AFTER_S
from zmqbus.journal.record import decode_record
from zmqbus.testing import session_id_of
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Format, Scope

GOOD = messages(b"1", "zwei ü".encode(), b'3\n"\\', b"")
IDS = [msg_id for msg_id, _ in GOOD]
BODIES = [body for _, body in GOOD]


def take_all(said: Said) -> None:
    for member in said.members:
        member.take_all()
    said.net.settle()


def bodies(said: Said, member: int) -> list[bytes]:
    return [message.body for message in said.members[member].history]


def test_they_are_published_once_for_all_and_each_is_counted():
    def play(said: Said) -> None:
        carol = said.session("carol")
        said.to_all(GOOD)
        assert said.bob.bodies == carol.bodies == BODIES and said.told == []
        assert said.in_one_piece == ([1] * 4 if said.way == "alone" else [4])
        said.bob.take(2)
        said.net.settle()
        carol.take(3)
        said.net.settle()
        assert said.told == [(msg_id, "2 and 0") for msg_id in IDS[:2]]
        take_all(said)

    said = both(play)
    assert said.told == [(msg_id, "2 and 0") for msg_id in IDS]
    assert said.alice.history == []
    for line, (msg_id, body) in zip(said.net.journal, GOOD, strict=True):
        record = decode_record(line)
        assert (record.msg_id, record.body, record.kind, record.to) == (msg_id, body, "broadcast", "all")
        assert record.to_session_id is None


@pytest.mark.parametrize("fmt", [Format.MSGPACK, Format.BYTES, 3])
def test_another_format_is_passed_on_or_refused_each(fmt):
    said = both(lambda said: said.say("", GOOD, fmt, scope=Scope.ALL))
    assert set(said.in_one_piece) <= {1}
    assert refused(said, *IDS) == ["protocol"] * 4 if fmt == 3 else said.bob.bodies == BODIES


def test_topics_and_projects_have_their_own_receivers():
    def play(said: Said) -> None:
        carol = said.session("carol", topics=("deploys",), project="/p/q")
        said.say("deploys", messages(b"1", b"2"), scope=Scope.TOPIC)
        said.say("/p", messages(b"3", b"4", first=2), scope=Scope.PROJECT)
        assert (said.bob.bodies, carol.bodies) == ([b"3", b"4"], [b"1", b"2"])
        said.to_all(messages(b"5", b"6", first=4))  # on another channel: not before those are taken
        take_all(said)
        said.to_all(messages(b"7", b"8", first=6))
        take_all(said)

    said = both(play)
    assert {count for _, count in said.told} == {"1 and 0", "2 and 0"}
    assert bodies(said, 1) == [b"3", b"4", b"5", b"6", b"7", b"8"]
    assert [(message.header.scope, message.header.target) for message in said.bob.history[:3]] == [
        (2, "/p"),
        (2, "/p"),
        (1, ""),
    ]
    assert said.in_one_piece == [2, 2]


@pytest.mark.parametrize(("scope", "target"), [(Scope.TOPIC, "no such name!"), (Scope.TOPIC, ""), (7, "x")])
def test_a_target_that_is_none_refuses_each(scope, target):
    said = both(lambda said: said.say(target, GOOD, scope=scope))
    assert len(set(refused(said, *IDS))) == 1 and said.told[0][1].count(":")
    assert said.bob.bodies == []


def test_to_a_group_each_finds_its_own_member():
    def play(said: Said) -> None:
        said.session("carol", groups=("workers",))
        said.session("dave", groups=("workers",))
        said.say("workers", messages(b"1", b"2", b"3", b"4"), scope=Scope.GROUP)
        take_all(said)

    said = both(play)
    assert sorted(bodies(said, 2) + bodies(said, 3)) == [b"1", b"2", b"3", b"4"]
    assert len(bodies(said, 2)) == len(bodies(said, 3)) == 2


def test_with_nobody_else_they_are_for_nobody():
    def play(said: Said) -> None:
        said.say("empty", GOOD, scope=Scope.TOPIC)

    said = both(play)
    assert said.told == [(msg_id, "0 and 0") for msg_id in IDS]
    assert len(said.net.journal) == 4 and said.published == []


def test_what_a_helper_or_a_guest_says_is_not_for_its_own_session():
    def play(said: Said) -> None:
        helper, guest = said.net.helper(said.alice), said.net.guest("script")
        said.listen_in(helper)
        said.listen_in(guest)
        said.put("", messages(b"1", b"2"), by=helper, scope=Scope.ALL)
        said.net.settle()
        take_all(said)
        said.put("", messages(b"3", b"4", first=2), by=guest, scope=Scope.ALL)
        said.net.settle()
        take_all(said)

    said = both(play)
    assert (bodies(said, 0), bodies(said, 1)) == ([b"3", b"4"], [b"1", b"2", b"3", b"4"])
    assert [count for _, count in said.told] == ["1 and 0"] * 2 + ["2 and 0"] * 2


def test_a_guest_is_no_receiver_and_an_observer_may_not():
    said = Said("run")
    observer = said.net.observer()
    said.listen_in(observer)
    said.put("", GOOD, by=observer, scope=Scope.ALL)
    said.net.settle()
    assert said.bob.bodies == []
    assert [(ref, why.partition(":")[0]) for ref, why in said.told] == [(ref, "protocol") for ref, _ in GOOD]


# --- one of the receivers cannot take them that way


@pytest.mark.parametrize("why", ["mail", "unmarked", "away", "credit", "bytes", "reading"])
def test_whoever_cannot_take_them_that_way_gets_each_in_its_place(monkeypatch, why):
    def play(said: Said) -> None:
        carol = said.session("carol")
        if why == "mail":
            said.alice.raw(codec.encode([verbs.Send.one("directed0001", 0, "carol", 0, None, False, b"0")]))
        elif why == "unmarked":  # her SUB is not in force yet
            connection = said.net.broker.registry.sessions[session_id_of("carol")].conn
            assert connection is not None
            connection.subscribed = False
            carol.filters = []
        elif why == "away":
            carol.bye()
        elif why == "credit":
            monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 3)
        elif why == "bytes":
            monkeypatch.setattr(mailbox, "CREDIT_BYTES", 700)  # each weighs 200 and its body
        elif why == "reading":
            carol.stopped = True
            said.net.store.fails = None
        said.net.settle()
        said.to_all(GOOD)
        said.alice.raw(codec.encode([verbs.Send.one("directed0002", 0, "carol", 0, None, False, b"5")]))
        said.net.settle()
        carol.stopped = False
        for _ in range(8):
            take_all(said)

    said = both(play)
    assert bodies(said, 1) == BODIES
    if why == "away":
        assert bodies(said, 2) == [] and said.net.store.total() == 5
        assert said.told[:4] == [(msg_id, "1 and 1") for msg_id in IDS] or ("message0000", "1 and 1") in said.told
    else:
        assert bodies(said, 2) == [b"0"] * (why == "mail") + [*BODIES, b"5"]


def test_a_receiver_that_comes_back_gets_what_is_owed_to_it():
    def play(said: Said) -> None:
        carol = said.session("carol")
        said.to_all(GOOD)
        carol.take(1)
        said.net.settle()
        carol.disconnect()
        said.net.settle()
        carol.connect()
        said.net.settle()
        take_all(said)

    said = both(play)
    assert bodies(said, 2)[-3:] == BODIES[1:]
    assert dict(said.told)["message0000"] == "2 and 0"


@pytest.mark.parametrize("lost", ["all", "first", "to one"])
def test_what_the_pub_loses_is_sent_again(lost):
    """The run that is lost is as many broadcasts that are."""

    def play(said: Said) -> None:
        carol = said.session("carol")
        if lost == "first":
            said.to_all(messages(b"before", first=50))
            take_all(said)
        said.put("", GOOD, scope=Scope.ALL)
        said.net.wake()
        carol.published.clear()
        if lost == "all":
            said.bob.published.clear()
        said.net.settle()
        if lost == "first":
            said.to_all(messages(b"behind", first=60))  # which shows the gap; else it is the beat that does
        said.net.advance(2 * BEAT_AFTER_S, step_s=0.1)
        take_all(said)

    said = both(play)
    behind = [b"behind"] if lost == "first" else []
    assert bodies(said, 2)[-5:] == [*([b"before"] if behind else []), *BODIES, *behind][-5:]
    assert {count for _, count in said.told} == {"2 and 0"}
    assert said.net.broker._out.counts.broadcasts_resent == (8 if lost == "all" else 4)


def test_a_directed_message_behind_a_lost_run_waits_for_it():
    def play(said: Said) -> None:
        said.put("", GOOD, scope=Scope.ALL)
        said.net.wake()
        said.bob.published.clear()
        said.alice.raw(codec.encode([verbs.Send.one("directed0001", 0, "bob", 0, None, False, b"5")]))
        said.net.settle()
        assert said.bob.bodies == []
        said.net.advance(2 * BEAT_AFTER_S, step_s=0.1)
        take_all(said)

    said = both(play)
    assert bodies(said, 1) == [*BODIES, b"5"]


def test_whoever_is_busy_for_a_second_is_counted_as_one_where_they_wait():
    def play(said: Said) -> None:
        said.session("carol")
        said.to_all(GOOD)
        said.bob.take_all()
        said.net.advance(1.5)
        assert said.told == [(msg_id, "1 and 1") for msg_id in IDS]
        take_all(said)

    said = both(play)
    assert bodies(said, 2) == BODIES and said.net.store.total() == 0


# --- limits


@pytest.mark.parametrize("before", [0, 1, 30, 57, 58, 60])
def test_what_goes_over_the_rate_is_refused_and_the_rest_is_not(before):
    count = 70 - before if before else 61

    def play(said: Said) -> None:
        for number in range(before):
            said.to_all(messages(b"before", first=100 + number))
            take_all(said)
        said.to_all(messages(*[b"%d" % number for number in range(count)]))
        take_all(said)
        said.net.advance(admission.MINUTE_S + 1)
        said.to_all(messages(b"next", b"minute", first=500))
        take_all(said)

    said = both(play)
    allowed = admission.BROADCASTS_PER_MINUTE - before
    assert bodies(said, 1)[before:] == [*(b"%d" % number for number in range(allowed)), b"next", b"minute"]
    over = [f"message{number:04d}" for number in range(allowed, count)]
    assert refused(said, *over) == ["rate_limited"] * len(over)


def test_the_last_that_the_rate_allows_may_come_as_a_run():
    def play(said: Said) -> None:
        said.to_all(messages(*[b"x"] * 30))
        take_all(said)
        said.to_all(messages(*[b"y"] * 30, first=30))
        take_all(said)
        said.to_all(messages(b"z", first=60))

    said = both(play)
    assert said.in_one_piece == [30, 30]
    assert refused(said, "message0060") == ["rate_limited"]


def test_a_full_mailbox_goes_without_and_keeps_nothing_from_the_others(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 3)

    def play(said: Said) -> None:
        said.session("carol")
        said.to_all(messages(b"1"))
        said.bob.take_all()
        said.net.settle()
        said.to_all(messages(b"2", b"3", b"4", first=1))  # she has room for two of them
        take_all(said)

    said = both(play)
    assert (bodies(said, 1), bodies(said, 2)) == ([b"1", b"2", b"3", b"4"], [b"1", b"2", b"3"])
    assert dict(said.told)["message0003"] == "1 and 0 without carol"


def test_room_is_kept_for_what_is_on_its_way_to_the_journal(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 3)

    def play(said: Said) -> None:
        said.put("", messages(b"1", b"2"), scope=Scope.ALL)
        said.put("", messages(b"3", b"4", first=2), scope=Scope.ALL)
        said.net.settle()
        take_all(said)

    said = both(play)
    assert bodies(said, 1) == [b"1", b"2", b"3"]
    assert dict(said.told)["message0003"] == "0 and 0 without bob"


@pytest.mark.parametrize("bad", [b"\xff", b"ok \xc3"])
def test_a_text_that_is_none_is_refused_and_the_others_go_on(bad):
    said = both(lambda said: said.to_all(messages(b"1", bad, b"3")))
    assert refused(said, "message0001") == ["invalid_payload"] and said.bob.bodies == [b"1", b"3"]


# --- mishaps


def test_what_the_journal_does_not_take_is_refused_each_and_leaves_nothing():
    def play(said: Said) -> None:
        said.session("carol")
        said.net.journal_fails = "no space"
        said.to_all(GOOD)
        said.net.journal_fails = None
        said.to_all(GOOD)  # a refusal is final
        said.to_all(messages(b"later", b"too", first=9))
        take_all(said)

    said = both(play)
    assert [why for msg_id, why in said.told if msg_id in IDS] == ["broker_unavailable: no space"] * 8
    assert bodies(said, 1) == bodies(said, 2) == [b"later", b"too"]
    assert said.net.broker.delivery.bcast == 2


def test_what_cannot_be_stored_after_a_second_is_not_called_queued():
    def play(said: Said) -> None:
        said.session("carol")
        said.to_all(GOOD)
        said.net.store.fails = "full"
        said.bob.take_all()
        said.net.advance(2)
        assert said.told == []
        said.members[2].take(2)
        said.net.settle()
        assert said.told == [(msg_id, "2 and 0") for msg_id in IDS[:2]]
        said.net.store.fails = None
        said.net.advance(1)
        take_all(said)

    said = both(play)
    assert said.told[2:] == [(msg_id, "1 and 1") for msg_id in IDS[2:]]
    assert bodies(said, 2) == BODIES and said.net.store.total() == 0


@pytest.mark.parametrize("what", ["under way", "in part taken", "settled", "late"])
def test_said_again_each_is_answered_where_it_was_said_last_and_comes_once(what):
    def play(said: Said) -> None:
        said.session("carol")
        said.to_all(GOOD)
        if what == "in part taken":
            said.bob.take(2)
        elif what == "settled":
            take_all(said)
        elif what == "late":
            said.net.advance(1.5)
        said.net.settle()
        said.heard.clear()
        helper = said.net.helper(said.alice)
        said.listen_in(helper)
        again = [verbs.Send.one(msg_id, 1, "", 0, None, True, body) for msg_id, body in GOOD[1:]]
        helper.raw(codec.encode(again))
        said.net.settle()
        take_all(said)

    said = both(play)
    assert bodies(said, 1) == bodies(said, 2) == BODIES
    count = "0 and 2" if what == "late" else "2 and 0"
    assert [one for one in said.told if one[0] != "message0000"] == [(msg_id, count) for msg_id in IDS[1:]]


def test_said_again_as_a_run_it_is_answered_and_only_what_is_new_goes_out():
    def play(said: Said) -> None:
        said.to_all(GOOD[:2])
        take_all(said)
        said.to_all(GOOD)
        take_all(said)

    said = both(play)
    assert bodies(said, 1) == BODIES
    assert [msg_id for msg_id, _ in said.told] == [*IDS[:2], *IDS[:2], *IDS[2:]]


def test_a_broker_that_dies_under_them_loses_none_and_shows_none_twice():
    """What its sender has heard nothing of is said again, each by itself, to the next one."""
    for taken in range(5):
        said = Said("run")
        carol = said.session("carol")
        sent = said.alice.send_all("", BODIES, scope=Scope.ALL)
        said.net.settle()
        assert said.in_one_piece == [4]
        said.bob.take(taken)
        said.net.kill_broker()
        said.net.settle()
        take_all(said)
        said.net.advance(2)
        for member in (said.bob, carol):
            member.take_all()
            said.net.settle()
            shown = list(dict.fromkeys(message.msg_id for message in member.history))
            assert shown == sent
        assert all(isinstance(said.alice.answers[msg_id], verbs.Tally) for msg_id in sent)


def test_a_connection_that_lingers_is_spared(monkeypatch):
    """Its SUB would take what has to wait behind its mailbox."""
    said = Said("run")
    carol = said.session("carol")
    published: list[verbs.Broadcast] = []
    put = said.net.broker.delivery._out.put

    def putting(effect: events.Effect) -> None:
        if isinstance(effect, events.Publish) and isinstance(effect.envelope, verbs.Broadcast):
            published.append(effect.envelope)
        put(effect)

    monkeypatch.setattr(said.net.broker.delivery._out, "put", putting)
    connection = said.net.broker.registry.sessions[session_id_of("carol")].conn
    assert connection is not None
    peer, mine = connection.peer, said.net.broker.registry.sessions[session_id_of("alice")].conn
    assert mine is not None
    said.net.broker.delivery._lingering["lease"] = peer
    said.say("", GOOD, scope=Scope.ALL)
    (broadcasts,) = published
    assert broadcasts.spared == (mine.peer, peer)
    assert carol.bodies == []


NUMBERS = st.integers(0, 14)
TEXTS = st.sampled_from((b"", b"x", "ü".encode(), b"\n", b"\xff", bytes(300)))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.lists(st.tuples(NUMBERS, TEXTS), min_size=1, max_size=6)),
        st.tuples(
            st.sampled_from(("all", "all", "topic", "project", "bob", "lost")), st.lists(TEXTS, min_size=1, max_size=6)
        ),
        st.tuples(st.sampled_from(("take", "carol takes", "drop", "wait", "fail", "full", "bye")), st.integers(1, 4)),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_is_broadcast_in_runs_is_what_is_broadcast_one_by_one(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "CREDIT_MESSAGES", 5)
        patch.setattr(mailbox, "CREDIT_BYTES", 1400)
        patch.setattr(mailbox, "MAX_MESSAGES", 9)
        patch.setattr(admission, "BROADCASTS_PER_MINUTE", 20)

        def play(said: Said) -> None:
            carol = said.session("carol", topics=("deploys",))
            fresh = 100
            for step, what in steps:
                if isinstance(what, list) and step != "say":
                    scope, target = {"topic": (3, "deploys"), "project": (2, "/p"), "bob": (0, "bob")}.get(
                        step, (1, "")
                    )
                    said.put(target, messages(*what, first=fresh), scope=scope)
                    fresh += len(what)
                    if step == "lost":
                        said.net.wake()
                        said.bob.published.clear()
                elif step == "say":
                    said.put("", [(f"message{one:04d}", body) for one, body in what], scope=1)
                elif step == "carol takes":
                    carol.take(what)
                elif step == "full":
                    said.net.store.fails = "no room" if what > 2 else None
                else:
                    said.befall(step, what)
                said.net.settle()

        both(play)
