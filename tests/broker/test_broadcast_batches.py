"""Batches of broadcasts are accepted, refused, counted and delivered like single broadcasts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.send_ways import SendBus, in_each_way, messages, refused
from zmqbus.broker import admission, events, mailbox
from zmqbus.broker.delivery import BEAT_AFTER_S
from zmqbus.journal.record import decode_record
from zmqbus.testing import session_id_of
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Format, Scope

GOOD = messages(b"1", "zwei ü".encode(), b'3\n"\\', b"")
IDS = [msg_id for msg_id, _ in GOOD]
BODIES = [body for _, body in GOOD]


def take_all(bus: SendBus) -> None:
    for member in bus.members:
        member.take_all()
    bus.net.settle()


def bodies(bus: SendBus, member: int) -> list[bytes]:
    return [message.body for message in bus.members[member].history]


def test_batch_is_published_once_and_each_message_is_counted():
    def scenario(bus: SendBus) -> None:
        carol = bus.session("carol")
        bus.to_all(GOOD)
        assert bus.bob.bodies == carol.bodies == BODIES and bus.outcomes == []
        assert bus.batch_sizes == ([1] * 4 if bus.way == "alone" else [4])
        bus.bob.take(2)
        bus.net.settle()
        carol.take(3)
        bus.net.settle()
        assert bus.outcomes == [(msg_id, "2 and 0") for msg_id in IDS[:2]]
        take_all(bus)

    bus = in_each_way(scenario)
    assert bus.outcomes == [(msg_id, "2 and 0") for msg_id in IDS]
    assert bus.alice.history == []
    for line, (msg_id, body) in zip(bus.net.journal, GOOD, strict=True):
        record = decode_record(line)
        assert (record.msg_id, record.body, record.kind, record.to) == (msg_id, body, "broadcast", "all")
        assert record.to_session_id is None


@pytest.mark.parametrize("fmt", [Format.MSGPACK, Format.BYTES, 3])
def test_other_formats_are_published_or_refused(fmt):
    bus = in_each_way(lambda bus: bus.send("", GOOD, fmt, scope=Scope.ALL))
    assert set(bus.batch_sizes) <= {1}
    assert refused(bus, *IDS) == ["protocol"] * 4 if fmt == 3 else bus.bob.bodies == BODIES


def test_topics_and_projects_have_their_own_receivers():
    def scenario(bus: SendBus) -> None:
        carol = bus.session("carol", topics=("deploys",), project="/p/q")
        bus.send("deploys", messages(b"1", b"2"), scope=Scope.TOPIC)
        bus.send("/p", messages(b"3", b"4", first=2), scope=Scope.PROJECT)
        assert (bus.bob.bodies, carol.bodies) == ([b"3", b"4"], [b"1", b"2"])
        bus.to_all(messages(b"5", b"6", first=4))  # on another channel: not before those are taken
        take_all(bus)
        bus.to_all(messages(b"7", b"8", first=6))
        take_all(bus)

    bus = in_each_way(scenario)
    assert {count for _, count in bus.outcomes} == {"1 and 0", "2 and 0"}
    assert bodies(bus, 1) == [b"3", b"4", b"5", b"6", b"7", b"8"]
    assert [(message.header.scope, message.header.target) for message in bus.bob.history[:3]] == [
        (2, "/p"),
        (2, "/p"),
        (1, ""),
    ]
    assert bus.batch_sizes == [2, 2]


@pytest.mark.parametrize(("scope", "target"), [(Scope.TOPIC, "no such name!"), (Scope.TOPIC, ""), (7, "x")])
def test_invalid_target_is_refused(scope, target):
    bus = in_each_way(lambda bus: bus.send(target, GOOD, scope=scope))
    assert len(set(refused(bus, *IDS))) == 1 and bus.outcomes[0][1].count(":")
    assert bus.bob.bodies == []


def test_each_group_message_finds_its_own_member():
    def scenario(bus: SendBus) -> None:
        bus.session("carol", groups=("workers",))
        bus.session("dave", groups=("workers",))
        bus.send("workers", messages(b"1", b"2", b"3", b"4"), scope=Scope.GROUP)
        take_all(bus)

    bus = in_each_way(scenario)
    assert sorted(bodies(bus, 2) + bodies(bus, 3)) == [b"1", b"2", b"3", b"4"]
    assert len(bodies(bus, 2)) == len(bodies(bus, 3)) == 2


def test_batch_without_other_sessions():
    def scenario(bus: SendBus) -> None:
        bus.send("empty", GOOD, scope=Scope.TOPIC)

    bus = in_each_way(scenario)
    assert bus.outcomes == [(msg_id, "0 and 0") for msg_id in IDS]
    assert len(bus.net.journal) == 4 and bus.published == []


def test_broadcast_of_a_helper_is_not_for_its_own_session():
    def scenario(bus: SendBus) -> None:
        helper, guest = bus.net.helper(bus.alice), bus.net.guest("script")
        bus.listen_in(helper)
        bus.listen_in(guest)
        bus.send_unread("", messages(b"1", b"2"), by=helper, scope=Scope.ALL)
        bus.net.settle()
        take_all(bus)
        bus.send_unread("", messages(b"3", b"4", first=2), by=guest, scope=Scope.ALL)
        bus.net.settle()
        take_all(bus)

    bus = in_each_way(scenario)
    assert (bodies(bus, 0), bodies(bus, 1)) == ([b"3", b"4"], [b"1", b"2", b"3", b"4"])
    assert [count for _, count in bus.outcomes] == ["1 and 0"] * 2 + ["2 and 0"] * 2


def test_guest_receives_no_broadcast_and_observer_sends_none():
    bus = SendBus("batch")
    observer = bus.net.observer()
    bus.listen_in(observer)
    bus.send_unread("", GOOD, by=observer, scope=Scope.ALL)
    bus.net.settle()
    assert bus.bob.bodies == []
    assert [(ref, why.partition(":")[0]) for ref, why in bus.outcomes] == [(ref, "protocol") for ref, _ in GOOD]


# --- one of the receivers cannot take them that way


@pytest.mark.parametrize("why", ["mail", "unmarked", "away", "credit", "bytes", "reading"])
def test_receiver_not_ready_for_the_pub_gets_each_by_the_dealer(monkeypatch, why):
    def scenario(bus: SendBus) -> None:
        carol = bus.session("carol")
        if why == "mail":
            bus.alice.raw(codec.encode([verbs.Send.one("directed0001", 0, "carol", 0, None, False, b"0")]))
        elif why == "unmarked":  # her SUB is not in force yet
            connection = bus.net.broker.registry.sessions[session_id_of("carol")].conn
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
            bus.net.store.fails = None
        bus.net.settle()
        bus.to_all(GOOD)
        bus.alice.raw(codec.encode([verbs.Send.one("directed0002", 0, "carol", 0, None, False, b"5")]))
        bus.net.settle()
        carol.stopped = False
        for _ in range(8):
            take_all(bus)

    bus = in_each_way(scenario)
    assert bodies(bus, 1) == BODIES
    if why == "away":
        assert bodies(bus, 2) == [] and bus.net.store.total() == 5
        assert bus.outcomes[:4] == [(msg_id, "1 and 1") for msg_id in IDS] or ("message0000", "1 and 1") in bus.outcomes
    else:
        assert bodies(bus, 2) == [b"0"] * (why == "mail") + [*BODIES, b"5"]


def test_returning_receiver_gets_owed_broadcasts():
    def scenario(bus: SendBus) -> None:
        carol = bus.session("carol")
        bus.to_all(GOOD)
        carol.take(1)
        bus.net.settle()
        carol.disconnect()
        bus.net.settle()
        carol.connect()
        bus.net.settle()
        take_all(bus)

    bus = in_each_way(scenario)
    assert bodies(bus, 2)[-3:] == BODIES[1:]
    assert dict(bus.outcomes)["message0000"] == "2 and 0"


@pytest.mark.parametrize("lost", ["all", "first", "to one"])
def test_lost_batch_is_retransmitted(lost):
    """A lost batch counts as that many lost broadcasts."""

    def scenario(bus: SendBus) -> None:
        carol = bus.session("carol")
        if lost == "first":
            bus.to_all(messages(b"before", first=50))
            take_all(bus)
        bus.send_unread("", GOOD, scope=Scope.ALL)
        bus.net.wake()
        carol.published.clear()
        if lost == "all":
            bus.bob.published.clear()
        bus.net.settle()
        if lost == "first":
            bus.to_all(messages(b"behind", first=60))  # which shows the gap; else it is the beat that does
        bus.net.advance(2 * BEAT_AFTER_S, step_s=0.1)
        take_all(bus)

    bus = in_each_way(scenario)
    behind = [b"behind"] if lost == "first" else []
    assert bodies(bus, 2)[-5:] == [*([b"before"] if behind else []), *BODIES, *behind][-5:]
    assert {count for _, count in bus.outcomes} == {"2 and 0"}
    assert bus.net.broker._out.counts.broadcasts_resent == (8 if lost == "all" else 4)


def test_directed_message_waits_for_a_lost_batch():
    def scenario(bus: SendBus) -> None:
        bus.send_unread("", GOOD, scope=Scope.ALL)
        bus.net.wake()
        bus.bob.published.clear()
        bus.alice.raw(codec.encode([verbs.Send.one("directed0001", 0, "bob", 0, None, False, b"5")]))
        bus.net.settle()
        assert bus.bob.bodies == []
        bus.net.advance(2 * BEAT_AFTER_S, step_s=0.1)
        take_all(bus)

    bus = in_each_way(scenario)
    assert bodies(bus, 1) == [*BODIES, b"5"]


def test_busy_receiver_is_counted_as_queued():
    def scenario(bus: SendBus) -> None:
        bus.session("carol")
        bus.to_all(GOOD)
        bus.bob.take_all()
        bus.net.advance(1.5)
        assert bus.outcomes == [(msg_id, "1 and 1") for msg_id in IDS]
        take_all(bus)

    bus = in_each_way(scenario)
    assert bodies(bus, 2) == BODIES and bus.net.store.total() == 0


# --- limits


@pytest.mark.parametrize("before", [0, 1, 30, 57, 58, 60])
def test_messages_over_the_rate_are_refused_alone(before):
    count = 70 - before if before else 61

    def scenario(bus: SendBus) -> None:
        for number in range(before):
            bus.to_all(messages(b"before", first=100 + number))
            take_all(bus)
        bus.to_all(messages(*[b"%d" % number for number in range(count)]))
        take_all(bus)
        bus.net.advance(admission.MINUTE_S + 1)
        bus.to_all(messages(b"next", b"minute", first=500))
        take_all(bus)

    bus = in_each_way(scenario)
    allowed = admission.BROADCASTS_PER_MINUTE - before
    assert bodies(bus, 1)[before:] == [*(b"%d" % number for number in range(allowed)), b"next", b"minute"]
    over = [f"message{number:04d}" for number in range(allowed, count)]
    assert refused(bus, *over) == ["rate_limited"] * len(over)


def test_last_messages_within_the_rate_may_be_a_batch():
    def scenario(bus: SendBus) -> None:
        bus.to_all(messages(*[b"x"] * 30))
        take_all(bus)
        bus.to_all(messages(*[b"y"] * 30, first=30))
        take_all(bus)
        bus.to_all(messages(b"z", first=60))

    bus = in_each_way(scenario)
    assert bus.batch_sizes == [30, 30]
    assert refused(bus, "message0060") == ["rate_limited"]


def test_full_mailbox_misses_the_broadcast_alone(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 3)

    def scenario(bus: SendBus) -> None:
        bus.session("carol")
        bus.to_all(messages(b"1"))
        bus.bob.take_all()
        bus.net.settle()
        bus.to_all(messages(b"2", b"3", b"4", first=1))  # she has room for two of them
        take_all(bus)

    bus = in_each_way(scenario)
    assert (bodies(bus, 1), bodies(bus, 2)) == ([b"1", b"2", b"3", b"4"], [b"1", b"2", b"3"])
    assert dict(bus.outcomes)["message0003"] == "1 and 0 without carol"


def test_room_is_reserved_until_the_journal_write(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 3)

    def scenario(bus: SendBus) -> None:
        bus.send_unread("", messages(b"1", b"2"), scope=Scope.ALL)
        bus.send_unread("", messages(b"3", b"4", first=2), scope=Scope.ALL)
        bus.net.settle()
        take_all(bus)

    bus = in_each_way(scenario)
    assert bodies(bus, 1) == [b"1", b"2", b"3"]
    assert dict(bus.outcomes)["message0003"] == "0 and 0 without bob"


@pytest.mark.parametrize("bad", [b"\xff", b"ok \xc3"])
def test_invalid_utf8_is_refused_alone(bad):
    bus = in_each_way(lambda bus: bus.to_all(messages(b"1", bad, b"3")))
    assert refused(bus, "message0001") == ["invalid_payload"] and bus.bob.bodies == [b"1", b"3"]


# --- mishaps


def test_batch_is_refused_while_the_journal_fails():
    def scenario(bus: SendBus) -> None:
        bus.session("carol")
        bus.net.journal_fails = "no space"
        bus.to_all(GOOD)
        bus.net.journal_fails = None
        bus.to_all(GOOD)  # a refusal is final
        bus.to_all(messages(b"later", b"too", first=9))
        take_all(bus)

    bus = in_each_way(scenario)
    assert [why for msg_id, why in bus.outcomes if msg_id in IDS] == ["broker_unavailable: no space"] * 8
    assert bodies(bus, 1) == bodies(bus, 2) == [b"later", b"too"]
    assert bus.net.broker.delivery.bcast == 2


def test_message_that_cannot_be_stored_is_not_reported_as_queued():
    def scenario(bus: SendBus) -> None:
        bus.session("carol")
        bus.to_all(GOOD)
        bus.net.store.fails = "full"
        bus.bob.take_all()
        bus.net.advance(2)
        assert bus.outcomes == []
        bus.members[2].take(2)
        bus.net.settle()
        assert bus.outcomes == [(msg_id, "2 and 0") for msg_id in IDS[:2]]
        bus.net.store.fails = None
        bus.net.advance(1)
        take_all(bus)

    bus = in_each_way(scenario)
    assert bus.outcomes[2:] == [(msg_id, "1 and 1") for msg_id in IDS[2:]]
    assert bodies(bus, 2) == BODIES and bus.net.store.total() == 0


@pytest.mark.parametrize("what", ["under way", "in part taken", "settled", "late"])
def test_repeats_are_answered_over_the_newest_connection(what):
    def scenario(bus: SendBus) -> None:
        bus.session("carol")
        bus.to_all(GOOD)
        if what == "in part taken":
            bus.bob.take(2)
        elif what == "settled":
            take_all(bus)
        elif what == "late":
            bus.net.advance(1.5)
        bus.net.settle()
        bus.received.clear()
        helper = bus.net.helper(bus.alice)
        bus.listen_in(helper)
        again = [verbs.Send.one(msg_id, 1, "", 0, None, True, body) for msg_id, body in GOOD[1:]]
        helper.raw(codec.encode(again))
        bus.net.settle()
        take_all(bus)

    bus = in_each_way(scenario)
    assert bodies(bus, 1) == bodies(bus, 2) == BODIES
    count = "0 and 2" if what == "late" else "2 and 0"
    assert [one for one in bus.outcomes if one[0] != "message0000"] == [(msg_id, count) for msg_id in IDS[1:]]


def test_only_new_messages_of_a_repeated_batch_are_published():
    def scenario(bus: SendBus) -> None:
        bus.to_all(GOOD[:2])
        take_all(bus)
        bus.to_all(GOOD)
        take_all(bus)

    bus = in_each_way(scenario)
    assert bodies(bus, 1) == BODIES
    assert [msg_id for msg_id, _ in bus.outcomes] == [*IDS[:2], *IDS[:2], *IDS[2:]]


def test_broker_death_loses_and_repeats_nothing():
    """The sender repeats each unanswered message by itself to the next broker."""
    for taken in range(5):
        bus = SendBus("batch")
        carol = bus.session("carol")
        sent = bus.alice.send_all("", BODIES, scope=Scope.ALL)
        bus.net.settle()
        assert bus.batch_sizes == [4]
        bus.bob.take(taken)
        bus.net.kill_broker()
        bus.net.settle()
        take_all(bus)
        bus.net.advance(2)
        for member in (bus.bob, carol):
            member.take_all()
            bus.net.settle()
            shown = list(dict.fromkeys(message.msg_id for message in member.history))
            assert shown == sent
        assert all(isinstance(bus.alice.answers[msg_id], verbs.Tally) for msg_id in sent)


def test_lingering_connection_is_spared(monkeypatch):
    """Its SUB would accept broadcasts that must wait behind its mailbox."""
    bus = SendBus("batch")
    carol = bus.session("carol")
    published: list[verbs.Broadcast] = []
    put = bus.net.broker.delivery._out.put

    def putting(effect: events.Effect) -> None:
        if isinstance(effect, events.Publish) and isinstance(effect.envelope, verbs.Broadcast):
            published.append(effect.envelope)
        put(effect)

    monkeypatch.setattr(bus.net.broker.delivery._out, "put", putting)
    connection = bus.net.broker.registry.sessions[session_id_of("carol")].conn
    assert connection is not None
    peer, mine = connection.peer, bus.net.broker.registry.sessions[session_id_of("alice")].conn
    assert mine is not None
    bus.net.broker.delivery._lingering["lease"] = peer
    bus.send("", GOOD, scope=Scope.ALL)
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
def test_batches_equal_single_broadcasts(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "CREDIT_MESSAGES", 5)
        patch.setattr(mailbox, "CREDIT_BYTES", 1400)
        patch.setattr(mailbox, "MAX_MESSAGES", 9)
        patch.setattr(admission, "BROADCASTS_PER_MINUTE", 20)

        def scenario(bus: SendBus) -> None:
            carol = bus.session("carol", topics=("deploys",))
            fresh = 100
            for step, what in steps:
                if isinstance(what, list) and step != "say":
                    scope, target = {"topic": (3, "deploys"), "project": (2, "/p"), "bob": (0, "bob")}.get(
                        step, (1, "")
                    )
                    bus.send_unread(target, messages(*what, first=fresh), scope=scope)
                    fresh += len(what)
                    if step == "lost":
                        bus.net.wake()
                        bus.bob.published.clear()
                elif step == "say":
                    bus.send_unread("", [(f"message{one:04d}", body) for one, body in what], scope=1)
                elif step == "carol takes":
                    carol.take(what)
                elif step == "full":
                    bus.net.store.fails = "no room" if what > 2 else None
                else:
                    bus.disturb(step, what)
                bus.net.settle()

        in_each_way(scenario)
