"""Mail follows the name: who takes over what waits for a session whose owner has died, and how."""

from __future__ import annotations

from typing import Any

import pytest

from zmqbus import errors
from zmqbus.broker import mailbox, registry, retention, takeover
from zmqbus.broker.connections import SILENCE_S
from zmqbus.testing import SimClient, SimNet, session_id_of
from zmqbus.testing.simnet import Death
from zmqbus.wire import verbs
from zmqbus.wire.verbs import Role, Scope, State

HOUR_S = takeover.EMPTY_KEEP_S


@pytest.fixture
def net() -> SimNet:
    return SimNet()


@pytest.fixture
def alice(net: SimNet) -> SimClient:
    """Who sends."""
    return net.session("alice")


class Runs:
    """Sessions of one name, each with an owner of its own that lives until it is killed."""

    def __init__(self, net: SimNet) -> None:
        self.net = net
        self.count = 0

    def start(self, name: str = "nightly", **more: Any) -> SimClient:
        self.count += 1
        owner = f"{self.count}:owner"
        self.net.living_owners.add(owner)
        given: dict[str, Any] = {
            "session_id": session_id_of(f"run-{self.count}"),
            "token": f"token-{self.count}",
            "owner": owner,
        }
        return self.net.session(name, **{**given, **more})

    def leave(self, *members: SimClient) -> None:
        for member in members:
            member.bye()
            self.net.settle()
            member.disconnect()

    def kill(self, *members: SimClient) -> None:
        """Their owners end, without a word of theirs."""
        for member in members:
            member.disconnect()
            self.net.living_owners.discard(member.persona.owner)
        self.net.settle()

    def night(self, **more: Any) -> SimClient:
        """One that has been and is dead."""
        member = self.start(**more)
        self.kill(member)
        return member

    def nap(self, **more: Any) -> SimClient:
        """One that is away, and lives."""
        member = self.start(**more)
        self.leave(member)
        return member


@pytest.fixture
def runs(net: SimNet) -> Runs:
    return Runs(net)


def say(net: SimNet, sender: SimClient, body: bytes, target: str = "nightly", **more: Any) -> str:
    msg_id = sender.send(target, body, **more)
    net.settle()
    return msg_id


def tell_all(net: SimNet, sender: SimClient, body: bytes) -> str:
    return say(net, sender, body, "", scope=Scope.ALL)


def listed(net: SimNet) -> list[tuple[str, str, int]]:
    """Who is there, in which state, and how much waits for it."""
    observer = net.observer()
    observer.request(verbs.List("all", True, ""))
    net.settle()
    page = observer.responses["all"]
    assert isinstance(page, verbs.Sessions)
    observer.bye()
    net.settle()
    observer.disconnect()
    return sorted((row.name, row.state, row.waiting) for row in map(verbs.Session._make, page.rows))


class Asked:
    """Whether owners live: as another one says, or all of them; and which were asked about."""

    def __init__(self, lives: Any = None) -> None:
        self.lives = lives
        self.owners: list[str] = []

    def __call__(self, owner: str) -> bool:
        self.owners.append(owner)
        return self.lives is None or bool(self.lives(owner))

    __contains__ = __call__


def count(net: SimNet, name: str = "nightly") -> int:
    return sum(session.name == name for session in net.broker.registry.sessions.values())


def read(net: SimNet, member: SimClient) -> list[bytes]:
    """All that it is shown, taken."""
    shown: list[bytes] = []
    while member.handed:
        shown += [net.body(message) for message in member.take_all()]
        net.settle()
    return shown


def state(sender: SimClient, msg_id: str) -> State:
    answer = sender.answers[msg_id]
    assert isinstance(answer, verbs.Receipt), answer
    return State(answer.state)


# --- the rule


@pytest.mark.parametrize("between", ["nothing", "broker dies"])
def test_of_three_that_died_there_is_one_and_the_next_has_all_its_mail_once(net, alice, runs, between):
    for number in range(3):
        runs.night()
        say(net, alice, b"night %d" % number)
        if between == "broker dies":
            net.restart_broker()
            net.settle()
    told = alice.answers[tell_all(net, alice, b"to all")]
    assert (told.delivered, told.queued) == (0, 1)
    say(net, alice, b"and one more")
    assert listed(net) == [("alice", "live", 0), ("nightly", "away", 5)]
    fourth = runs.start()
    assert read(net, fourth) == [b"night 0", b"night 1", b"night 2", b"to all", b"and one more"]
    runs.kill(fourth)
    assert read(net, runs.start()) == []
    assert net.store.total() == 0


def test_they_may_all_have_lived_at_the_same_time(net, alice, runs):
    members = [runs.nap() for _ in range(3)]
    for number, member in enumerate(members, 1):
        say(net, alice, b"to run-%d" % number, member.persona.session_id)
    tell_all(net, alice, b"to all")
    say(net, alice, b"to the name")
    assert count(net) == 3, "each may come back"
    runs.kill(*members)
    say(net, alice, b"then")
    assert count(net) == 1
    assert read(net, runs.start()) == [b"to run-1", b"to run-2", b"to run-3", b"to all", b"to the name", b"then"]


@pytest.mark.parametrize("member", ["owner lives", "another project", "another name"])
def test_nobody_else_s_mail_is_taken(net, alice, runs, member):
    if member == "owner lives":
        runs.nap()
    else:
        runs.night(**({"name": "nightlies"} if member == "another name" else {"project": "/other"}))
    tell_all(net, alice, b"for that one")
    assert read(net, runs.start()) == []
    net.advance(2 * takeover.ROUND_S, step_s=2)
    assert net.store.total() == 1


def test_those_without_a_project_follow_each_other_too(net, alice, runs):
    runs.night(project="")
    runs.night(project="/p")
    tell_all(net, alice, b"x")
    program = runs.start(project="", role=Role.PROGRAM)
    assert read(net, program) == [b"x"]
    assert net.store.total() == 1, "the other's"


def test_an_owner_that_cannot_be_judged_is_never_taken_for_dead(net, alice, runs):
    asked = Asked()
    net.living_owners = asked
    net.restart_broker()
    older = net.session("nightly", owner="of another machine")
    runs.leave(older)
    say(net, alice, b"x")
    newer = net.session("nightly", session_id=session_id_of("other"), token="other", owner="1:1")
    net.advance(3 * takeover.ROUND_S, step_s=2)
    assert "of another machine" in asked.owners
    assert newer.bodies == [] and count(net) == 2


def test_a_session_that_nobody_named_takes_over_nothing(net, alice, runs):
    """It would take along what it takes."""
    runs.night()
    say(net, alice, b"x")
    passing = runs.start(named=False)
    assert passing.bodies == []
    runs.kill(passing)
    net.advance(5)
    assert read(net, runs.start()) == [b"x"]


def test_who_has_left_on_purpose_and_died_leaves_its_mail_to_the_next(net, alice, runs):
    member = runs.start()
    member.stopped = True
    say(net, alice, b"x")
    helper = net.helper(member)
    helper.request(verbs.Disconnect("d"))
    net.settle()
    runs.kill(member, helper)
    assert read(net, runs.start()) == [b"x"]


def test_who_has_left_on_purpose_and_lives_is_nobody_s_successor(net, alice, runs):
    older = runs.nap()
    say(net, alice, b"x")
    younger = runs.start()
    helper = net.helper(younger)
    helper.request(verbs.Disconnect("d"))
    net.settle()
    runs.kill(older)
    net.advance(2 * takeover.ROUND_S, step_s=2)
    assert listed(net) == [("alice", "live", 0), ("nightly", "away", 1)]
    assert read(net, runs.start()) == [b"x"]


def test_a_session_that_takes_the_name_gets_its_mail(net, alice, runs):
    runs.night()
    say(net, alice, b"x")
    other = runs.start("web")
    other.request(verbs.Rename("r", "nightly"))
    net.settle()
    assert read(net, other) == [b"x"]
    assert count(net) == 1


def test_one_that_is_away_and_came_last_takes_over_as_well(net, alice, runs):
    older = runs.nap()
    say(net, alice, b"x")
    younger = runs.nap()
    runs.kill(older)
    helper = net.helper(younger)
    assert helper.core.welcome is not None and helper.core.welcome.waiting == 1
    helper.request(verbs.Fetch("f", False))
    net.settle()
    assert helper.bodies == [b"x"]


def test_a_command_that_outlives_its_session_s_end_takes_the_name_from_nobody(net, alice, runs):
    dead = runs.night()
    younger = runs.nap()
    helper = net.helper(dead)
    assert helper.core.welcome is not None
    say(net, alice, b"x")
    assert net.broker.registry.resolve("nightly").session_id == younger.persona.session_id


# --- when it happens


def test_mail_of_a_dead_session_follows_the_messages_in_flight_of_its_successor(net, alice, runs):
    older = runs.nap()
    say(net, alice, b"1")
    younger = runs.start()
    tell_all(net, alice, b"2")
    say(net, alice, b"3")
    runs.kill(older)
    assert younger.bodies == [b"2", b"3"]
    net.advance(takeover.ROUND_S + 2, step_s=1)
    assert younger.bodies == [b"2", b"3", b"1"], "the broadcast once"
    assert read(net, younger) == [b"2", b"3", b"1"]
    assert net.store.total() == 0 and count(net) == 1


def test_what_waits_behind_that_is_in_the_order_of_acceptance(net, alice, runs, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 2)
    older, younger = runs.nap(), runs.start()
    for number in range(6):
        target = (older if number % 2 else younger).persona.session_id
        say(net, alice, b"%d" % number, target)
    runs.kill(older)
    net.advance(takeover.ROUND_S + 2, step_s=1)
    assert read(net, younger) == [b"0", b"2", b"1", b"3", b"4", b"5"]


def test_an_owner_that_dies_while_no_broker_runs(net, alice, runs):
    older, younger = runs.nap(), runs.nap()
    tell_all(net, alice, b"x")
    say(net, alice, b"y", older.persona.session_id)
    net.living_owners -= {older.persona.owner, younger.persona.owner}
    net.restart_broker()
    net.settle()
    assert listed(net) == [("alice", "live", 0), ("nightly", "away", 2)]
    assert read(net, runs.start()) == [b"x", b"y"]


@pytest.mark.parametrize("death", Death)
@pytest.mark.parametrize("lost", [0, 1_000_000])
def test_a_broker_that_dies_over_it_leaves_all_or_nothing_of_it(net, alice, runs, death, lost):
    older, younger = runs.nap(), runs.nap()
    for member in (older, younger, older):
        say(net, alice, b"x", member.persona.session_id)
    tell_all(net, alice, b"to all")
    before = {key: sorted(box) for key, box in net.store._committed.boxes.items()}
    runs.kill(older, younger)
    last = runs.start("other")  # so that the name's coming is the wake's
    last.request(verbs.Rename("r", "nightly"))
    net.kill_broker(death, lost)
    if death < Death.COMMITTED:
        assert {key: sorted(box) for key, box in net.store._committed.boxes.items()} == before
    net.settle()
    if last.core.persona.name != "nightly":
        last.request(verbs.Rename("again", "nightly"))
        net.settle()
    assert last.core.persona.name == "nightly"
    net.advance(2 * takeover.ROUND_S, step_s=2)
    read(net, last)
    shown = {message.msg_id: net.body(message) for message in last.history}
    assert sorted(shown.values()) == [b"to all", b"x", b"x", b"x"]
    assert net.store.total() == 0 and count(net) == 1


def test_a_store_that_cannot_be_written_keeps_both_ends_in_step(net, alice, runs):
    runs.night()
    say(net, alice, b"x")
    net.store.fails = "no space left on device"
    taker = runs.start()
    assert read(net, taker) == [b"x"]
    net.kill_broker()
    net.store.fails = None
    net.settle()
    assert taker.core.welcome is not None and taker.core.welcome.waiting == 1
    net.settle()
    assert read(net, taker) == [], "it comes once more, and is recognised"
    assert net.store.total() == 0


def test_an_inbox_that_is_being_read_is_left_alone_until_that_has_ended(net, alice, runs, monkeypatch):
    monkeypatch.setattr(mailbox, "CREDIT_MESSAGES", 1)
    dead = runs.nap()
    for number in range(3):
        say(net, alice, b"%d" % number)
    helper = net.helper(dead)
    helper.request(verbs.Fetch("f", False))
    net.settle()
    net.living_owners.discard(dead.persona.owner)
    younger = runs.start()
    assert helper.take(1) and younger.bodies == []
    net.settle()
    helper.disconnect()
    net.advance(SILENCE_S + takeover.ROUND_S + 4, step_s=1)
    assert read(net, younger) == [b"1", b"2"]


def test_a_command_may_read_the_successor_s_inbox_meanwhile(net, alice, runs):
    older = runs.nap()
    say(net, alice, b"1")
    younger = runs.start()
    say(net, alice, b"2")
    helper = net.helper(younger)
    helper.request(verbs.Fetch("f", False))
    net.settle()
    runs.kill(older)
    net.advance(takeover.ROUND_S + 2, step_s=1)
    assert read(net, helper) + read(net, younger) == [b"2", b"1"]
    assert net.store.total() == 0


def test_looks_at_owners_are_few(net, alice, runs, monkeypatch):
    monkeypatch.setattr(takeover, "LOOKS_A_SECOND", 5)
    monkeypatch.setattr(takeover, "ROUND_SESSIONS", 3)
    asked = Asked(net.broker.takeover._owner_lives)
    monkeypatch.setattr(net.broker.takeover, "_owner_lives", asked)
    members = [runs.nap() for _ in range(20)]
    net.clock.advance(1)
    asked.owners.clear()
    for _ in range(10):
        tell_all(net, alice, b"x")
    assert len(asked.owners) <= 5
    runs.kill(*members[:-1])
    net.advance(2 * takeover.ROUND_S + 20, step_s=1)
    assert count(net) == 1, "in the end all are found"


def test_a_session_that_is_alone_and_has_mail_is_not_asked_about(net, alice, runs, monkeypatch):
    runs.nap()
    say(net, alice, b"x")
    monkeypatch.setattr(net.broker.takeover, "_owner_lives", lambda owner: pytest.fail("why ask?"))
    net.advance(2 * takeover.ROUND_S, step_s=1)
    tell_all(net, alice, b"y")
    assert listed(net)[1] == ("nightly", "away", 2)


def test_messages_in_flight_precede_inherited_mail_after_the_death_of_the_broker(net, alice, runs):
    older = runs.nap()
    say(net, alice, b"1", older.persona.session_id)
    younger = runs.start()
    say(net, alice, b"2")  # nobody has been told of it yet, so it need not be stored
    runs.kill(older)
    net.helper(younger)  # asks for the mail, and it is looked
    assert younger.bodies == [b"2", b"1"]
    net.kill_broker()
    net.settle()
    assert younger.bodies == [b"2", b"1"]


def test_a_command_of_one_that_was_taken_over_brings_nothing_back(net, alice, runs):
    dead = runs.nap()
    helper = net.helper(dead)
    net.living_owners.discard(dead.persona.owner)
    younger = runs.start()
    helper.request(verbs.Disconnect("d"))
    net.settle()
    tell_all(net, alice, b"to all")
    assert listed(net) == [("alice", "live", 0), ("nightly", "live", 1)]
    net.restart_broker()
    net.settle()
    say(net, alice, b"x", dead.persona.session_id)
    assert read(net, younger) == [b"to all", b"x"]
    assert {session.session_id for session in net.broker.registry.away()} <= {dead.persona.session_id}


# --- messages of every kind


def test_a_long_one_and_one_in_a_file(net, alice, runs, monkeypatch):
    monkeypatch.setattr(verbs, "SPILL_BYTES", 10)
    older, younger = runs.nap(), runs.nap()
    body = b"long " * 20
    say(net, alice, body, older.persona.session_id)
    say(net, alice, b"short", younger.persona.session_id)
    runs.kill(older, younger)
    assert read(net, runs.start()) == [body, b"short"]


def test_those_of_topics_and_of_projects(net, alice, runs):
    older, younger = runs.nap(topics=("t",)), runs.nap()
    say(net, alice, b"1", "t", scope=Scope.TOPIC)
    say(net, alice, b"2", "/p", scope=Scope.PROJECT)
    runs.kill(older, younger)
    taker = runs.start()
    assert [(message.header.scope, net.body(message)) for message in taker.handed] == [
        (Scope.TOPIC, b"1"),
        (Scope.PROJECT, b"2"),
    ]


def test_successor_gets_its_own_queued_message_to_the_dead_session(net, alice, runs):
    older = runs.nap()
    younger = runs.start()
    tell_all(net, younger, b"mine")
    say(net, younger, b"to the other", older.persona.session_id)
    runs.kill(older)
    net.advance(takeover.ROUND_S + 2, step_s=1)
    assert (read(net, younger), read(net, alice)) == ([b"mine", b"to the other"], [b"mine"])
    assert net.store.total() == 0


def test_nothing_is_lost_though_it_is_more_than_a_mailbox_holds(net, alice, runs, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 5)
    older, younger = runs.nap(), runs.nap()
    for number in range(10):
        say(net, alice, b"%d" % number, (older if number % 2 else younger).persona.session_id)
    runs.kill(older, younger)
    taker = runs.start()
    refused = alice.answers[say(net, alice, b"more")]
    assert isinstance(refused, errors.RateLimited) and "full" in str(refused)
    told = alice.answers[tell_all(net, alice, b"more")]
    assert told.full == ("nightly",)
    assert read(net, taker) == [b"%d" % number for number in range(10)]
    say(net, alice, b"then")
    assert read(net, taker) == [b"then"]


def test_inherited_mail_expires_at_its_time(net, alice, runs):
    older, younger = runs.nap(), runs.nap()
    say(net, alice, b"old", older.persona.session_id)
    net.clock.advance(retention.KEEP_S / 2)
    net.restart_broker()
    net.settle()
    say(net, alice, b"young", younger.persona.session_id)
    runs.kill(older, younger)
    net.clock.advance(retention.KEEP_S / 2 + 1)
    net.advance(retention.EXPIRY_LOOK_S, step_s=100)
    assert read(net, runs.start()) == [b"young"]


def test_an_answer_that_is_awaited_comes_to_who_awaits_it(net, alice, runs):
    nightly = runs.start()
    question = alice.send("nightly", b"ready?")
    net.settle()
    nightly.take_all()
    asking = net.helper(nightly)
    mine = asking.ask("alice", b"and you?")
    net.settle()
    runs.kill(nightly)
    younger = runs.start()
    say(net, alice, b"yes", reply_to=mine)
    assert asking.bodies == [b"yes"], "the command of the dead session still waits"
    asking.disconnect()
    net.advance(SILENCE_S + 5, step_s=1)
    assert read(net, younger) == [b"yes"], "and what it has not taken is the successor's"
    assert question


# --- what the dead one is called, and by whom


def test_its_id_stands_for_its_successor(net, alice, runs):
    first = runs.night()
    for _ in range(2):
        runs.night()
    last = runs.start()
    sent = say(net, alice, b"x", first.persona.session_id)
    assert read(net, last) == [b"x"]
    answer = alice.answers[sent]
    assert isinstance(answer, verbs.Receipt) and answer.session_id == last.persona.session_id
    net.restart_broker()
    net.settle()
    say(net, alice, b"y", first.persona.session_id)
    assert read(net, last) == [b"y"]


def test_its_id_is_its_own_again_if_it_comes_back(net, alice, runs):
    first = runs.night()
    runs.night()
    runs.start("other")
    net.living_owners.add(first.persona.owner)
    again = net._enter(first.persona, True)
    say(net, alice, b"x", first.persona.session_id)
    assert again.bodies == [b"x"]


def test_an_id_is_remembered_as_long_as_mail_is_and_while_its_successor_is(net, alice, runs, monkeypatch):
    first, second = runs.night(), runs.start()
    third = runs.night(name="pay")
    fourth = runs.start("pay")
    assert set(net.broker.registry._succeeded) == {first.persona.session_id, third.persona.session_id}
    fourth.request(verbs.Forget("f", fourth.persona.session_id, fourth.persona.token))
    net.advance(retention.EXPIRY_LOOK_S + 2, step_s=100)
    assert set(net.broker.registry._succeeded) == {first.persona.session_id}
    net.clock.advance(retention.KEEP_S)
    net.advance(retention.EXPIRY_LOOK_S + 2, step_s=100)
    assert not net.broker.registry._succeeded and second
    assert {row.name for row in net.store._committed.sessions.values()} <= {"alice", "nightly"}
    monkeypatch.setattr(registry, "MAX_SUCCEEDED", 2)
    for _ in range(5):
        runs.night(name="web")
    assert list(net.broker.registry._succeeded) == [session_id_of(f"run-{runs.count - n}") for n in (2, 1)]


def test_a_name_that_several_have_is_one_that_is_meant(net, alice, runs):
    """A prefix works, too: all matches have the same name."""
    runs.nap()
    latest = runs.nap(project="/other")
    net.clock.advance(1)
    assert net.broker.registry.resolve("night").session_id == net.broker.registry.resolve("nightly").session_id
    runs.nap(name="nightshift")
    with pytest.raises(errors.Ambiguous):
        net.broker.registry.resolve("night")
    assert latest


# --- senders that repeat themselves


def unheard(net: SimNet, sender: SimClient) -> None:
    """The broker dies with what it was about to tell the sender, who says it again."""
    net.kill_broker(Death.COMMITTED)
    net.settle()


def repeated(net: SimNet, sender: SimClient, target: str, body: bytes, **more: Any) -> str:
    msg_id = sender.send(target, body, **more)
    net.kill_broker(Death.COMMITTED)
    return msg_id


@pytest.mark.parametrize("to", ["name", "id", "all"])
@pytest.mark.parametrize("taken", [False, True], ids=["it waits", "it was taken"])
def test_repeat_after_a_takeover_meets_the_outcome(net, alice, runs, to, taken):
    older, younger = runs.nap(), runs.nap()
    target = {"name": "nightly", "id": older.persona.session_id, "all": ""}[to]
    msg_id = alice.send(target, b"x", scope=Scope.ALL if to == "all" else Scope.SESSION)
    net.kill_broker(Death.COMMITTED)  # it is stored, and alice has not heard so
    alice.stopped = True
    runs.kill(older, younger)
    taker = runs.start()
    assert taker.bodies == [b"x"]
    if taken:
        read(net, taker)
        net.kill_broker()
        net.settle()
    alice.stopped = False
    net.settle()
    net.advance(2)
    read(net, taker)
    assert [message.msg_id for message in taker.history if message.msg_id == msg_id].count(msg_id) <= 1 + taken
    assert msg_id in alice.answers and not isinstance(alice.answers[msg_id], Exception)
    assert taker.taken is not None and net.store.total() == 0


def test_a_broadcast_that_was_accepted_for_the_dead_one_is_for_its_successor(net, alice, runs):
    """The broker dies before it is stored, so that it is said again when the one that it was for is not there."""
    dead = runs.night()
    msg_id = alice.send("", b"x", scope=Scope.ALL)
    net.kill_broker(Death.JOURNALED)
    alice.stopped = True
    taker = runs.start()
    alice.stopped = False
    net.settle()
    assert read(net, taker) == [b"x"]
    assert alice.answers[msg_id].full == () and dead


def test_a_broadcast_that_had_no_room_is_not_for_the_successor_behind_younger_ones(net, alice, runs, monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_MESSAGES", 2)
    older, younger = runs.nap(), runs.nap(topics=("t",))
    for _ in range(2):
        say(net, alice, b"full", older.persona.session_id)
    msg_id = alice.send("", b"x", scope=Scope.ALL)
    net.kill_broker(Death.COMMITTED)
    alice.stopped = True
    runs.kill(older)
    net.settle()
    say_to = net.session("carol")
    say(net, say_to, b"young")
    assert net.broker.delivery.dedup.earlier_cast(msg_id) == ({session_id_of("run-2")}, set()), (
        "the one has it that took over"
    )
    assert younger


@pytest.mark.parametrize("store_fails", [False, True])
def test_takeover_gives_a_waiting_sender_one_true_receipt(net, alice, runs, store_fails):
    member = runs.start()
    msg_id = alice.send("nightly", b"x")
    net.settle()
    net.store.fails = "no space left on device" if store_fails else None
    runs.kill(member)  # with the message in hand
    taker = runs.start()
    assert taker.bodies == [b"x"]
    net.store.fails = None
    net.advance(2)
    assert state(alice, msg_id) is State.AWAY
    assert read(net, taker) == [b"x"]


@pytest.mark.parametrize("scope", [Scope.SESSION, Scope.ALL])
def test_a_message_that_is_on_its_way_through_the_journal(net, alice, runs, scope):
    """It was staged for one that was taken over before it was written, and goes to the other, once."""
    older, younger = runs.nap(), runs.start()
    runs.kill(older)
    target = older.persona.session_id if scope == Scope.SESSION else ""
    resolved = net.broker.registry.sessions[older.persona.session_id]
    staged: list[Any] = []
    admission = net.broker.admission
    alice.send(target, b"x", scope=scope)
    real = admission._takeover

    class Blind:
        """Has not noticed the death when the message comes."""

        def settle(self, *_: Any) -> bool:
            staged.append("one")
            return False

        def settle_shared(self, *_: Any) -> None:
            staged.append("all")

    admission._takeover = Blind()
    net._do(net.broker.handle(net.clock.now, _received(net, alice)))
    admission._takeover = real
    real.settle(net.clock.now, resolved)
    assert staged and resolved.heir.session_id == younger.persona.session_id
    net.settle()
    assert read(net, younger) == [b"x"]
    assert count(net) == 1 and net.store.total() == 0
    for session in net.broker.registry.sessions.values():
        assert not session.mailbox.is_expecting


def _received(net: SimNet, sender: SimClient) -> Any:
    from zmqbus.broker import events

    return events.Received(sender.route, net._decoder.decode(sender.up.popleft()))


# --- one that has died and has no mail


def test_it_is_gone_when_its_successor_comes(net, alice, runs):
    for _ in range(3):
        runs.night()
        assert count(net) == 1
    runs.start()
    assert listed(net) == [("alice", "live", 0), ("nightly", "live", 0)]


@pytest.mark.parametrize("lives", [False, True])
def test_without_one_it_is_gone_after_an_hour(net, alice, runs, lives):
    (runs.nap if lives else runs.night)()
    net.advance(HOUR_S - 100, step_s=100)
    assert count(net) == 1
    net.advance(100 + 2 * takeover.ROUND_S, step_s=1)
    assert count(net) == (1 if lives else 0)
    if not lives:
        assert isinstance(alice.answers[say(net, alice, b"x")], errors.UnknownPeer)


def test_the_hour_begins_with_its_death(net, alice, runs):
    member = runs.nap()
    net.advance(2 * HOUR_S, step_s=100)
    runs.kill(member)
    net.advance(HOUR_S / 2, step_s=100)
    assert count(net) == 1
    net.advance(HOUR_S, step_s=100)
    assert count(net) == 0


def test_it_is_gone_for_the_first_who_comes_after_a_night_without_anybody(net, alice, runs):
    runs.night()
    runs.leave(alice)
    net.clock.advance(8 * HOUR_S)
    assert listed(net) == [("alice", "away", 0)]


def test_mail_keeps_it(net, alice, runs):
    runs.night()
    say(net, alice, b"x")
    net.advance(3 * HOUR_S, step_s=100)
    assert read(net, runs.start()) == [b"x"]


# --- REMOVE


def remove(net: SimNet, session_id: str, unread: int = -1) -> Any:
    observer = net.observer()
    observer.request(verbs.Remove("r", session_id, unread))
    net.settle()
    return observer.responses["r"]


def test_a_session_that_is_away_is_removed_with_its_mail(net, alice, runs):
    member = runs.nap()
    say(net, alice, b"x")
    assert isinstance(remove(net, member.persona.session_id, 0), errors.RateLimited), "there is more than was agreed to"
    assert remove(net, member.persona.session_id, 1) == verbs.Done("r", "1")
    assert isinstance(remove(net, member.persona.session_id), errors.UnknownPeer)
    net.advance(3)
    assert count(net) == 0 and net.store.total() == 0
    assert not net.store._committed.sessions.keys() - {session_id_of("alice")}
    assert read(net, net._enter(member.persona, True)) == []


def test_one_that_is_connected_or_being_read_is_not(net, alice, runs):
    member = runs.start()
    refused = remove(net, member.persona.session_id)
    assert isinstance(refused, errors.Unauthorized) and "zmqbus disconnect" in str(refused)
    runs.leave(member)
    say(net, alice, b"x")
    helper = net.helper(member)
    helper.request(verbs.Fetch("f", False))
    net.settle()
    assert isinstance(remove(net, member.persona.session_id), errors.RateLimited)
    assert read(net, helper) == [b"x"]


def test_the_id_of_one_that_was_taken_over_removes_its_successor(net, alice, runs):
    first = runs.night()
    runs.night()
    say(net, alice, b"x")
    assert remove(net, first.persona.session_id) == verbs.Done("r", "1")
    assert count(net) == 0 or net.broker.registry.holder("nightly") is None


def test_repr(net):
    assert repr(net.broker.takeover) == "<Takeover: 0 sessions to be looked at>"
