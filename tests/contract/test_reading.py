"""Commands: reading the inbox in the listener's place, and waiting for an answer."""

from __future__ import annotations

from itertools import count

import pytest

from tests.contract.simulated import SimWorld
from tests.contract.worlds import Member, World
from zmqbus.broker.mailbox import CREDIT_BYTES
from zmqbus.errors import ZmqbusError
from zmqbus.wire import verbs


def test_command_reads_the_mail_of_an_absent_session(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    alice.hears(alice.send("bob", b"1"), "away")
    alice.hears(alice.to_all(b"2"), (0, 1))
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    messages = helper.gets(b"1", b"2")
    assert all(message.age_s >= 0 for message in messages)
    world.quiet()
    assert not helper.responses  # it comes when all has been taken
    helper.take()
    world.quiet()
    assert not helper.responses
    helper.take()
    world.until(lambda: helper.responses)
    assert helper.responses["f"] == verbs.Fetched("f", 2, 0)
    bob = world.again(bob)
    assert bob.core.welcome is not None and bob.core.welcome.waiting == 0
    assert helper.request(verbs.Fetch("f2", False)) == verbs.Fetched("f2", 0, 0)


def test_listener_lends_its_unshown_mail_to_a_command(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = [alice.send("bob", b"0"), alice.to_all(b"1"), alice.send("bob", b"2"), alice.to_all(b"3")]
    bob.gets(b"0", b"1", b"2", b"3")
    bob.take()
    alice.hears(sent[0], "delivered")
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.gets(b"1", b"2", b"3")
    world.until(lambda: not bob.handed)  # RECALL and the helper's messages take different connections
    helper.take(2)
    later = alice.send("bob", b"4")
    helper.gets(b"3", b"4")
    helper.take()
    world.quiet()
    helper.bye()
    bob.takes(b"4")
    alice.hears_it_is_safe(later)
    assert [message.body for message in bob.history] == [b"0", b"1", b"2", b"3", b"4"]
    # Its broadcasts work as before.
    alice.to_all(b"5")
    bob.takes(b"5")


def test_peek_changes_nothing(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    sent = [alice.send("bob", b"1"), alice.send("bob", b"2")]
    bob.gets(b"1", b"2")
    helper = world.helper(bob)
    assert helper.request(verbs.Fetch("f", True)) == verbs.Fetched("f", 2, 0)
    assert [message.body for message in helper.history] == [b"1", b"2"]
    bob.takes(b"1", b"2")
    for msg_id in sent:
        alice.hears_it_is_safe(msg_id)
    helper.bye()
    alice.send("bob", b"3")
    bob.takes(b"3")


def test_peek_at_an_absent_session(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.die()
    alice.hears(alice.send("bob", b"1"), "away")
    helper = world.helper(bob)
    for ref in ("f1", "f2"):
        assert helper.request(verbs.Fetch(ref, True)) == verbs.Fetched(ref, 1, 0)
    world.again(bob).takes(b"1")


def test_one_command_reads_at_a_time(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    alice.hears(alice.send("bob", b"1"), "away")
    first, second = world.helper(bob), world.helper(bob)
    first.begin(verbs.Fetch("f", False))
    first.gets(b"1")
    refused = second.request(verbs.Fetch("f", False))
    assert isinstance(refused, ZmqbusError) and refused.code == "rate_limited"
    first.take_all()
    world.until(lambda: first.responses)
    assert second.request(verbs.Fetch("f2", False)) == verbs.Fetched("f2", 0, 0)


def test_stopped_listener_does_not_delay_a_command(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    alice.to_all(b"1")
    alice.send("bob", b"2")
    bob.stop()
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.takes(b"1", b"2")
    world.until(lambda: helper.responses)
    helper.bye()
    bob.go()
    alice.send("bob", b"3")
    world.until(lambda: b"3" in bob.bodies)
    assert [message.body for message in bob.take_all()] == [b"3"]  # the others have been shown


@pytest.mark.parametrize("again", [False, True], ids=["read once", "read twice"])
def test_broadcast_behind_an_unanswered_recall_keeps_its_place(world: World, again: bool) -> None:
    """The SUB may overtake the RECALL, with which the listener gives back everything that it was handed."""
    alice, bob = world.session("alice"), world.session("bob")
    alice.send("bob", b"1")
    bob.stop()
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.takes(b"1")
    world.until(lambda: helper.responses)
    if again:
        assert helper.request(verbs.Fetch("g", False)) == verbs.Fetched("g", 0, 0)
    helper.bye()
    for body in (b"2", b"4"):
        alice.hears_it_is_safe(alice.to_all(body))
        alice.hears_it_is_safe(alice.send("bob", b"%d" % (int(body) + 1)))
    bob.go()
    world.until(lambda: b"5" in bob.bodies)
    assert [message.body for message in bob.take_all()] == [b"2", b"3", b"4", b"5"]
    world.quiet()
    alice.to_all(b"6")
    bob.takes(b"6")
    assert (b"6",) in [one.bodies for one in bob.overheard if isinstance(one, verbs.Broadcast)]


def test_listener_that_returns_during_a_read_gets_the_rest(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    for body in (b"1", b"2"):
        alice.hears(alice.send("bob", body), "away")
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.gets(b"1", b"2")
    helper.take()
    bob = world.again(bob)
    world.quiet()
    assert bob.history == []
    helper.bye()
    bob.takes(b"2")


def test_command_goes_on_reading_after_a_broken_connection(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    for body in (b"1", b"2"):
        alice.hears(alice.send("bob", body), "away")
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.gets(b"1", b"2")
    helper.take()
    world.quiet()
    helper.cut()
    world.until(lambda: len(helper.history) == 3 or helper.responses)
    assert not helper.responses
    helper.takes(b"2")
    world.until(lambda: helper.responses)
    assert helper.responses["f"] == verbs.Fetched("f", 1, 0)


def test_mail_being_read_survives_the_broker(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    for body in (b"1", b"2"):
        alice.hears(alice.send("bob", body), "away")
    helper = world.helper(bob)
    helper.begin(verbs.Fetch("f", False))
    helper.gets(b"1", b"2")
    helper.take()
    world.quiet()
    world.kill_broker()
    world.until(lambda: len(helper.history) == 3)  # it asks again by itself
    helper.takes(b"2")
    world.until(lambda: helper.responses)
    assert helper.responses["f"] == verbs.Fetched("f", 1, 0)


# --- AWAIT


def question(asker: Member, receiver: Member) -> str:
    """Sends a question that is taken; returns its id."""
    sent = asker.ask(receiver.core.persona.name or "", b"question")
    receiver.takes(b"question")
    asker.hears(sent, "delivered")
    return sent


def test_answer_goes_to_the_waiting_command(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    helper = world.helper(alice)
    asked = question(helper, bob)
    other, answer = bob.send("alice", b"other"), bob.send("alice", b"answer", reply_to=asked)
    (message,) = helper.takes(b"answer")
    assert message.header.reply_to == asked
    alice.takes(b"other")
    bob.hears(other, "delivered")
    bob.hears(answer, "delivered")
    helper.bye()
    bob.send("alice", b"late", reply_to=asked)
    alice.takes(b"late")


def test_untaken_answers_go_to_the_mailbox(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    helper = world.helper(alice)
    asked = question(helper, bob)
    answer = bob.send("alice", b"answer", reply_to=asked)
    helper.gets(b"answer")
    helper.bye()
    alice.takes(b"answer")
    bob.hears_it_is_safe(answer)


def test_answers_to_a_dead_command_go_to_the_mailbox(sim: SimWorld) -> None:
    """Simulated only: the broker notices after 12 s, unless it sends something to the command."""
    alice, bob = sim.session("alice"), sim.session("bob")
    helper = sim.helper(alice)
    asked = question(helper, bob)
    answer = bob.send("alice", b"answer", reply_to=asked)
    helper.gets(b"answer")
    bob.hears(answer, "busy")
    helper.die()
    alice.takes(b"answer")


@pytest.mark.parametrize("who", ["helper", "guest"])
def test_command_gets_its_answer_after_a_lost_connection(world: World, who: str) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    asker = world.helper(alice) if who == "helper" else world.guest("alice2")
    asked = question(asker, bob)
    asker.cut()
    answer = bob.send(asker.core.persona.name or "", b"answer", reply_to=asked)
    asker.takes(b"answer")
    bob.hears(answer, "delivered")
    world.quiet()
    assert alice.history == []


@pytest.mark.parametrize("who", ["helper", "guest"])
def test_untaken_answer_is_retransmitted_after_a_lost_connection(world: World, who: str) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    asker = world.helper(alice) if who == "helper" else world.guest("alice2")
    asked = question(asker, bob)
    answer = bob.send(asker.core.persona.name or "", b"answer", reply_to=asked)
    asker.gets(b"answer")
    asker.cut()
    world.until(lambda: len(asker.history) == 2)
    asker.takes(b"answer")
    bob.hears(answer, "delivered")
    world.quiet()
    assert alice.history == []


@pytest.mark.parametrize("who", ["helper", "guest"])
@pytest.mark.parametrize("when", ["before the answer", "with the answer under way"])
def test_answer_comes_again_after_the_death_of_the_broker(world: World, who: str, when: str) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    asker = world.helper(alice) if who == "helper" else world.guest("alice2")
    asked = question(asker, bob)
    name = asker.core.persona.name or ""
    if when == "before the answer":
        world.kill_broker()
        answer = bob.send(name, b"answer", reply_to=asked)
    else:
        world.stall_broker()
        answer = bob.send(name, b"answer", reply_to=asked)
        world.kill_broker()
    asker.takes(b"answer")
    bob.hears_it_is_safe(answer)
    world.quiet()
    assert alice.history == []


def test_answer_to_a_guest_that_left_is_refused(world: World) -> None:
    bob, guest = world.session("bob"), world.guest("script")
    asked = question(guest, bob)
    answer = bob.send("script", b"answer", reply_to=asked)
    guest.gets(b"answer")
    guest.bye()
    bob.hears(answer, "unknown_peer")
    late = bob.send("script", b"late", reply_to=asked)
    bob.hears(late, "unknown_peer")


def test_answer_to_a_command_that_does_not_return_goes_to_the_listener(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    helper = world.helper(alice)
    asked = question(helper, bob)
    helper.stop()
    world.kill_broker()
    bob.send("alice", b"answer", reply_to=asked)
    alice.takes(b"answer")
    helper.go()
    world.quiet()
    assert helper.history == []


_refs = count()


def previews(helper: Member, messages: int = 100, head_bytes: int = 100) -> tuple[list[verbs.Previewed], int]:
    answer = helper.request(verbs.Preview(f"p{next(_refs)}", messages, head_bytes))
    assert isinstance(answer, verbs.Previews)
    return [verbs.Previewed._make(row) for row in answer.rows], answer.left


def test_preview_shows_the_beginning_and_changes_nothing(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    sent = [alice.send("bob", body) for body in (b"first" * 100, b"2", b"x" * (verbs.SPILL_BYTES + 1), b"4")]
    for msg_id in sent:
        alice.hears(msg_id, "away")
    helper = world.helper(bob)
    rows, left = previews(helper, 3, 5)
    assert [row.msg_id for row in rows] == sent[:3] and left == 1
    assert [(row.head, row.size_bytes) for row in rows] == [
        (b"first", 500),
        (b"2", 1),
        (b"", verbs.SPILL_BYTES + 1),  # it is in the journal, and the broker does not read it
    ]
    assert all(row.from_name == "alice" and row.age_s >= 0 and len(row.pointer) == 4 for row in rows)
    assert previews(helper, 3, 5) == (rows, left)
    world.again(bob).gets(b"first" * 100, b"2", b"", b"4")  # the third by its pointer


def test_only_marked_messages_leave_the_mailbox(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    sent = [alice.send("bob", b"%d" % number) for number in range(4)]
    for msg_id in sent:
        alice.hears(msg_id, "away")
    helper = world.helper(bob)
    marked = helper.request(verbs.MarkRead("m", (*sent[:2], "nomessage000")))
    assert marked == verbs.Done("m", "")
    rows, left = previews(helper, 1)
    assert [row.msg_id for row in rows] == sent[2:3] and left == 1
    assert helper.request(verbs.MarkRead("n", tuple(sent[:2]))) == verbs.Done("n", "")
    bob = world.again(bob)
    assert bob.core.welcome is not None and bob.core.welcome.waiting == 2
    bob.takes(b"2", b"3")


def test_preview_and_mark_exclude_a_live_listener(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    msg_id = alice.send("bob", b"1")
    bob.gets(b"1")
    helper = world.helper(bob)
    assert previews(helper) == ([], 1)
    assert helper.request(verbs.MarkRead("m", (msg_id,))) == verbs.Done("m", "")
    bob.take()
    alice.hears(msg_id, "delivered")


def test_preview_excludes_mail_behind_the_credit_of_a_listener(world: World) -> None:
    """The listener has as much in flight as its credit allows; the rest is reserved for it all the same."""
    alice, bob = world.session("alice"), world.session("bob")
    sent = [alice.send("bob", b"x" * 60_000) for _ in range(CREDIT_BYTES // 60_000 + 2)]
    alice.hears_it_is_safe(sent[-1])
    helper = world.helper(bob)
    assert previews(helper) == ([], len(sent))


def test_preview_excludes_another_reading_command(world: World) -> None:
    alice, bob = world.session("alice"), world.session("bob")
    bob.bye()
    sent = alice.send("bob", b"1")
    alice.hears(sent, "away")
    reader, looker = world.helper(bob), world.helper(bob)
    reader.begin(verbs.Fetch("f", False))
    reader.gets(b"1")
    assert previews(looker)[0] == []
    assert looker.request(verbs.MarkRead("m", (sent,))) == verbs.Done("m", "")
    reader.take()
    world.until(lambda: reader.responses)
    assert reader.responses["f"] == verbs.Fetched("f", 1, 0)


def test_previews_are_bounded(world: World) -> None:
    bob = world.session("bob")
    bob.bye()
    helper = world.helper(bob)
    too_many = helper.request(verbs.MarkRead("m", tuple(f"message{number:05}" for number in range(251))))
    assert isinstance(too_many, ZmqbusError) and "more than 250" in str(too_many)
    for _ in range(16):
        assert previews(helper) == ([], 0)
    refused = helper.request(verbs.Preview("more", 1, 1))
    assert isinstance(refused, ZmqbusError) and "16 times" in str(refused)


class TestPreviewsThatWait:
    def ask(self, world: World, helper: Member) -> str:
        ref = f"w{next(_refs)}"
        helper.begin(verbs.Preview(ref, 100, 100, True))
        world.quiet()
        return ref

    def answer(self, world: World, helper: Member, ref: str) -> list[str]:
        world.until(lambda: ref in helper.responses)
        answer = helper.responses[ref]
        assert isinstance(answer, verbs.Previews)
        return [verbs.Previewed._make(row).msg_id for row in answer.rows]

    @pytest.mark.parametrize("many", [False, True])
    def test_mail_is_the_answer_and_stays_queued(self, world: World, many: bool) -> None:
        alice, bob = world.session("alice"), world.session("bob")
        bob.bye()
        helper = world.helper(bob)
        ref = self.ask(world, helper)
        assert not helper.responses
        sent = alice.to_all(b"1") if many else alice.send("bob", b"1")
        alice.hears(sent, (0, 1) if many else "away")
        assert self.answer(world, helper, ref) == [sent]
        world.again(bob).takes(b"1")

    def test_unread_mail_is_answered_at_once(self, world: World) -> None:
        alice, bob = world.session("alice"), world.session("bob")
        bob.bye()
        sent = alice.send("bob", b"1")
        alice.hears(sent, "away")
        helper = world.helper(bob)
        assert self.answer(world, helper, self.ask(world, helper)) == [sent]

    def test_return_of_the_listener_ends_the_wait(self, world: World) -> None:
        bob = world.session("bob")
        bob.bye()
        helper = world.helper(bob)
        ref = self.ask(world, helper)
        world.again(bob)
        assert self.answer(world, helper, ref) == []

    def test_disconnect_ends_the_wait(self, world: World) -> None:
        bob = world.session("bob")
        bob.bye()
        helper = world.helper(bob)
        ref = self.ask(world, helper)
        assert world.helper(bob).request(verbs.Disconnect("d")) == verbs.Done("d", "disconnected")
        assert self.answer(world, helper, ref) == []

    def test_next_broker_is_asked_again(self, world: World) -> None:
        alice, bob = world.session("alice"), world.session("bob")
        bob.bye()
        helper = world.helper(bob)
        ref = self.ask(world, helper)
        world.kill_broker()
        sent = alice.send("bob", b"1")
        assert self.answer(world, helper, ref) == [sent]

    def test_mail_that_another_command_reads_is_not_shown(self, world: World) -> None:
        alice, bob = world.session("alice"), world.session("bob")
        bob.bye()
        alice.hears(alice.send("bob", b"1"), "away")
        reader, helper = world.helper(bob), world.helper(bob)
        reader.begin(verbs.Fetch("f", False))
        reader.gets(b"1")
        ref = self.ask(world, helper)
        assert not helper.responses
        reader.take()
        world.until(lambda: reader.responses)
        world.quiet()
        assert not helper.responses, "it has all been read"
        sent = alice.send("bob", b"2")
        assert self.answer(world, helper, ref) == [sent]

    def test_mail_that_another_command_leaves_is_shown(self, world: World) -> None:
        alice, bob = world.session("alice"), world.session("bob")
        bob.bye()
        sent = alice.send("bob", b"1")
        alice.hears(sent, "away")
        reader, helper = world.helper(bob), world.helper(bob)
        reader.begin(verbs.Fetch("f", False))
        reader.gets(b"1")
        ref = self.ask(world, helper)
        reader.bye()
        assert self.answer(world, helper, ref) == [sent]

    def test_one_at_a_time(self, world: World) -> None:
        bob = world.session("bob")
        bob.bye()
        helper = world.helper(bob)
        self.ask(world, helper)
        refused = helper.request(verbs.Preview("more", 1, 1, True))
        assert isinstance(refused, ZmqbusError) and "at a time" in str(refused)

    def test_command_that_has_ended_is_forgotten(self, world: World) -> None:
        alice, bob = world.session("alice"), world.session("bob")
        bob.bye()
        helper = world.helper(bob)
        self.ask(world, helper)
        helper.bye()
        sent = alice.send("bob", b"1")
        alice.hears(sent, "away")
        other = world.helper(bob)
        assert self.answer(world, other, self.ask(world, other)) == [sent]
