"""The request broker: round trips, malformed requests and answers, journal failures (docs/protocol.md, section 9)."""

from __future__ import annotations

import json

import pytest

from tests.broker.groups.steps import ask, assign, check_clean, connect, heard, refusal, result, work, worker
from zmqbus import errors
from zmqbus.broker.groups import callers, requests
from zmqbus.client.core import Persona
from zmqbus.testing import SimClient, session_id_of
from zmqbus.testing.simnet import Death
from zmqbus.wire import naming, verbs
from zmqbus.wire.verbs import Format, Role


class TestRoundTrip:
    def test_a_request_is_answered(self, net, caller):
        one, msg_id = assign(net, caller, "one", body=b"resize")
        (work,) = one.works.values()
        assert (work.msg_id, work.from_session, work.from_name, work.group) == (
            msg_id,
            session_id_of("caller"),
            "caller",
            "g",
        )
        assert (work.fmt, work.tries, work.pointer, work.body) == (Format.TEXT, 0, None, b"resize")
        assert work.ts == net.clock.wall_s
        one.answer(msg_id, b"done")
        net.settle()
        answer = result(caller, msg_id)
        assert (answer.from_session, answer.from_name, answer.body, answer.pointer) == (
            session_id_of("one"),
            "one",
            b"done",
            None,
        )
        check_clean(net)

    def test_request_and_answer_are_journaled(self, net, caller):
        one, msg_id = assign(net, caller, "one", body=b"resize")
        one.answer(msg_id, b"done")
        net.settle()
        asked, answered = map(json.loads, net.journal)
        assert (asked["msg_id"], asked["kind"], asked["from_name"], asked["to"]) == (msg_id, "request", "caller", "@g")
        assert (asked["to_session_id"], asked["text"]) == (None, "resize")
        assert (answered["kind"], answered["from_name"], answered["to"]) == ("answer", "one", "caller")
        assert (answered["to_session_id"], answered["reply_to"]) == (session_id_of("caller"), msg_id)
        assert answered["msg_id"] == result(caller, msg_id).answer_id != msg_id
        assert answered["text"] == "done"

    def test_requests_are_not_stored(self, net, caller):
        before = net.store.commits
        one = worker(net, "one")
        commits = net.store.commits
        assert commits > before
        ask(net, caller, "g")
        work(net, one)
        assert (net.store.commits, net.store.total()) == (commits, 0)

    def test_large_bodies_travel_as_pointers(self, net, caller):
        one = worker(net, "one")
        large = b"x" * (verbs.SPILL_BYTES + 1)
        msg_id = ask(net, caller, "g", large)
        (work,) = one.works.values()
        assert (work.body, net.body(work)) == (b"", large)
        assert net.broker.oldest_segment() == 1
        one.answer(msg_id, large * 2)
        net.settle()
        answer = result(caller, msg_id)
        assert (answer.body, net.body(answer)) == (b"", large * 2)
        check_clean(net)

    @pytest.mark.parametrize("role", [Role.LISTENER, Role.PROGRAM, Role.HELPER, Role.GUEST])
    def test_roles_that_may_send_requests(self, net, role):
        one = worker(net, "one")
        if role in (Role.LISTENER, Role.PROGRAM):
            asking = net.session("asking", role=role)
        else:
            asking = net.guest("asking") if role is Role.GUEST else net.helper(net.session("asking"))
        msg_id = ask(net, asking, "g")
        assert one.works[msg_id].from_name == "asking"
        work(net, one)
        assert result(asking, msg_id)

    def test_an_observer_may_not_send_requests(self, net):
        looker = net.observer()
        msg_id = ask(net, looker, "g")
        assert isinstance(refusal(looker, msg_id), errors.ProtocolError)

    def test_a_request_and_messages_within_one_wake_find_their_records(self, net, caller):
        """Both write to the journal, and each has to find its own place there."""
        one, bob = worker(net, "one"), net.session("bob")
        large = b"y" * (verbs.SPILL_BYTES + 1)
        caller.send("bob", b"x" + large)
        msg_id = caller.call("g", large)
        caller.send("bob", b"z" + large)
        net.settle()
        assert [net.body(message) for message in bob.handed] == [b"x" + large, b"z" + large]
        assert net.body(one.works[msg_id]) == large

    def test_metrics_in_the_status(self, net, caller):
        worker(net, "one", 1)
        for _ in range(3):
            caller.call("g")
        net.settle()
        caller.request(verbs.Status("s"))
        net.settle()
        health = caller.responses["s"]
        assert isinstance(health, verbs.Health)
        shown = dict(health.figures)
        assert (shown["workers"], shown["requests_waiting"], shown["requests_in_hand"]) == (1, 2, 1)
        assert shown["requests_redispatched"] == 0

    def test_a_guest_may_send_a_request_with_its_hello(self, net):
        one = worker(net, "one")
        guest = SimClient(net, Persona(Role.GUEST, name="cron", token="secret"))
        net.clients.append(guest)
        guest.call("g")  # before it is connected: said with HELLO, in one message
        connect(net, guest)
        (work,) = one.works.values()
        assert work.from_name == "cron" and naming.is_session_id(work.from_session)


class TestRefusals:
    def test_unanswered_requests_of_a_connection_are_bounded(self, net, caller, monkeypatch):
        monkeypatch.setattr(callers, "MAX_UNANSWERED", 3)
        asked = [caller.call("g") for _ in range(4)]
        net.settle()
        assert isinstance(refusal(caller, asked[3]), errors.ProtocolError)
        other = net.session("other")
        ask(net, other, "g")
        assert not other.results
        caller.withdraw(asked[0])
        late = ask(net, caller, "g")
        assert late not in caller.results

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            (verbs.Request("short", "g", 0, True, False, b""), errors.ProtocolError),
            (verbs.Request("goodid000000", "No Name", 0, True, False, b""), errors.InvalidName),
            (verbs.Request("goodid000000", "", 0, True, False, b""), errors.InvalidName),
            (verbs.Request("goodid000000", "g", 9, True, False, b""), errors.ProtocolError),
            (verbs.Request("goodid000000", "g", 0, True, False, b"\xff"), errors.InvalidPayload),
            (
                verbs.Request("goodid000000", "g", 2, True, False, bytes(verbs.MAX_BODY_BYTES + 1)),
                errors.TextTooLong,
            ),
        ],
        ids=["id", "group", "no group", "format", "text", "size"],
    )
    def test_a_malformed_request_is_refused(self, net, caller, request_, error):
        caller._do(caller.core.ask(request_))
        net.settle()
        assert isinstance(refusal(caller, request_.msg_id), error)
        assert not net.journal and not net.broker.requests._queues.groups
        check_clean(net)

    def test_only_the_assigned_worker_may_answer(self, net, caller):
        one, two, msg_id = assign(net, caller, "one", "two")
        holder, other = (one, two) if one.works else (two, one)
        (refused,) = heard(net, other, verbs.Answer(msg_id, 0, b"forged"))
        assert isinstance(refused, verbs.Refused) and (refused.ref, refused.code) == (msg_id, "protocol")
        assert heard(net, other, verbs.Answer("nothing00000", 0, b"")) == []
        (refused,) = heard(net, net.session("third"), verbs.Answer(msg_id, 0, b"forged"))
        assert isinstance(refused, verbs.Refused)
        work(net, holder)
        assert result(caller, msg_id).body == b"done "

    def test_a_second_answer_is_ignored(self, net, caller):
        one, msg_id = assign(net, caller, "one")
        assert heard(net, one, *[verbs.Answer(msg_id, 0, b"first"), verbs.Answer(msg_id, 0, b"second")]) == []
        assert result(caller, msg_id).body == b"first"
        assert len(net.journal) == 2

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (verbs.Answer("goodid000000", 9, b""), errors.ProtocolError),
            (verbs.Answer("goodid000000", 0, b"\xff"), errors.InvalidPayload),
            (verbs.Answer("goodid000000", 2, bytes(verbs.MAX_BODY_BYTES + 1)), errors.TextTooLong),
        ],
        ids=["format", "text", "size"],
    )
    def test_a_malformed_answer_is_refused_and_fails_the_request(self, net, caller, answer, error):
        one = worker(net, "one")
        ask(net, caller, "g", msg_id="goodid000000")
        (refused,) = heard(net, one, answer)
        assert isinstance(refused, verbs.Refused) and refused.code == error.code
        assert isinstance(refusal(caller, "goodid000000"), error)
        assert "'one'" in str(refusal(caller, "goodid000000"))
        check_clean(net)

    def test_an_answer_that_is_not_awaited_goes_to_the_mailbox(self, net):
        bob, alice = net.session("bob"), net.session("alice")
        helper = net.helper(alice)
        msg_id = helper.ask("bob", b"question")
        net.settle()
        (question,) = bob.take_all()
        helper._do(helper.core.unawait([msg_id]))
        bob.send("alice", b"answer", reply_to=question.msg_id)
        net.settle()
        assert alice.bodies == [b"answer"] and not helper.bodies
        assert not net.broker.reply_routing._waits and not net.store._now.awaited
        for _ in range(1_000):
            helper._do(helper.core.await_answer(helper._new_id()))
            helper._do(helper.core.unawait(list(helper.core._awaited)))
        net.settle()
        assert not net.broker.reply_routing._waits and not helper.responses


class TestJournal:
    def test_a_request_that_cannot_be_journaled_is_refused(self, net, caller):
        one = worker(net, "one")
        net.journal_fails = "no space left on device"
        msg_id = caller.call("g")
        gone = caller.call("g")
        caller.withdraw(gone)
        net.settle()
        assert isinstance(refusal(caller, msg_id), errors.BrokerUnavailable)
        assert not one.works and gone not in caller.results
        check_clean(net)

    def test_a_small_answer_that_cannot_be_journaled_still_counts(self, net, caller):
        one = worker(net, "one")
        msg_id = ask(net, caller, "g")
        net.journal_fails = "no space left on device"
        work(net, one)
        assert result(caller, msg_id)
        assert not net.broker.requests._ledger._past  # it cannot be given again
        check_clean(net)

    def test_a_small_request_is_dispatched_before_it_is_journaled(self, net, caller):
        one = worker(net, "one")
        small, large = caller.call("g", b"x"), caller.call("g", bytes(requests.PASSED_BYTES + 1))
        net.wake(Death.PASSED)
        assert not net.journal and not net.broker.may_speak_first
        net.settle()
        assert list(one.works) == [small]
        work(net, one)
        assert list(one.works) == [large] and len(net.journal) == 3

    def test_a_dispatched_request_that_cannot_be_journaled_is_withdrawn(self, net, caller):
        one = worker(net, "one")
        net.journal_fails = "no space left on device"
        msg_id = ask(net, caller, "g")
        assert isinstance(refusal(caller, msg_id), errors.BrokerUnavailable)
        assert not one.works
        check_clean(net)

    @pytest.mark.parametrize("size_bytes", [requests.PASSED_BYTES + 1, verbs.SPILL_BYTES + 1])
    def test_a_large_answer_that_cannot_be_journaled_fails_the_request(self, net, caller, size_bytes):
        one = worker(net, "one")
        msg_id, second = caller.call("g"), caller.call("g")
        net.settle()
        net.journal_fails = "no space left on device"
        one.answer(msg_id, bytes(size_bytes))
        net.settle()
        assert isinstance(refusal(caller, msg_id), errors.BrokerUnavailable)
        net.journal_fails = None
        assert list(one.works) == [second]
        work(net, one)
        assert result(caller, second)
        check_clean(net)
