"""A client's decisions, one event at a time."""

from __future__ import annotations

from typing import Any

import pytest

from zmqbus import errors
from zmqbus.client import core
from zmqbus.client.core import ClientCore, Down, Hand, Persona, Phase, Published, Received, Tick, Transmit, Up
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role, Scope

ME = Persona(Role.LISTENER, "id", "token", "me", None, "/p", "/p", 77, "1:1", ("deploys",), ())


def welcome(**more: Any) -> verbs.Welcome:
    return verbs.Welcome(1, "9.9", "epoch", "id", "me", "lease", 4, 5555, 10, 0)._replace(**more)


def deliver(seq: int, *, bcast: int = 0, after: int = 0, reply_to: str | None = None) -> verbs.Deliver:
    msg_id = f"bcast{bcast:07d}" if bcast else f"direct{seq:06d}"
    header = verbs.Header("s", "n", None, 0, "", 0, reply_to, 1.0)
    return verbs.Deliver(header, seq, bcast, after, -1, None, 0, (msg_id,), (b"",))


def cast(bcast: int, prev: int = 0, *, body: bytes = b"", pointer: Any = None, **header: Any) -> Published:
    shared = verbs.Header("s", "n", None, Scope.ALL, "", 0, None, 1.0)._replace(**header)
    one = verbs.Broadcast(shared, "epoch", bcast, prev, (), pointer, (f"bcast{bcast:07d}",), (body,))
    return Published(verbs.channel(shared.scope, shared.target), [one])


def send(number: int = 0, body: bytes = b"") -> core.Outgoing:
    return core.Outgoing(f"message{number:04d}", 0, "bob", 0, None, False, body)


class Client:
    """A core, and all that it has wanted done."""

    def __init__(self, persona: Persona = ME) -> None:
        self.core = ClientCore(persona, "1.2.3")
        self.effects: list[core.Effect] = []
        self.tickets: list[core.Ticket] = []

    def handle(self, event: core.Event, now_s: float = 0.0) -> list[core.Effect]:
        return self.note(self.core.handle(now_s, event))

    def hear(self, *envelopes: verbs.Envelope) -> list[core.Effect]:
        return self.handle(Received(list(envelopes)))

    def note(self, effects: list[core.Effect]) -> list[core.Effect]:
        self.effects += effects
        self.tickets += [one.ticket for hand in effects if isinstance(hand, Hand) for one in hand.apart()]
        return effects

    def take(self, *places: int) -> list[Any]:
        for place in places:
            self.core.taken(self.tickets[place])
        return said(self.note(self.core.acknowledge()))


def said(effects: list[core.Effect]) -> list[Any]:
    """Returns the envelopes that are sent; a SEND of one message as that message."""
    return [_plain(effect.envelope) for effect in effects if isinstance(effect, Transmit)]


def _plain(envelope: Any) -> Any:
    if not isinstance(envelope, verbs.Send) or len(envelope.msg_ids) > 1 or envelope.file is not None:
        return envelope
    (msg_id,), (body,) = envelope.msg_ids, envelope.bodies
    return core.Outgoing(msg_id, envelope.scope, envelope.target, envelope.fmt, envelope.reply_to, envelope.again, body)


def shown(effects: list[core.Effect]) -> list[str]:
    return [msg_id for effect in effects if isinstance(effect, Hand) for msg_id in effect.ticket.msg_ids]


def ids(*numbers: int) -> list[str]:
    return [f"bcast{number:07d}" for number in numbers]


@pytest.fixture
def ready() -> Client:
    client = Client()
    client.handle(Up())
    client.hear(welcome())
    return client


# --- phases


def in_phase(phase: Phase) -> Client:
    client = Client()
    if phase is not Phase.OFFLINE:
        client.handle(Up())
    if phase in (Phase.READY, Phase.CLOSED):
        client.hear(welcome())
    if phase is Phase.CLOSED:
        client.hear(verbs.Disconnected())
    assert client.core.phase is phase
    return client


@pytest.mark.parametrize(
    ("event", "ends"),
    [
        (Up(), (Phase.GREETING, Phase.GREETING, Phase.GREETING, Phase.CLOSED)),
        (Down(), (Phase.OFFLINE, Phase.OFFLINE, Phase.OFFLINE, Phase.CLOSED)),
        (Received([welcome()]), (Phase.READY, Phase.READY, Phase.READY, Phase.CLOSED)),
        (Received([verbs.Expired()]), (Phase.OFFLINE, Phase.GREETING, Phase.GREETING, Phase.CLOSED)),
        (Received([verbs.Displaced(1)]), (Phase.CLOSED,) * 4),
        (Received([verbs.Displaced(77)]), (Phase.OFFLINE, Phase.GREETING, Phase.READY, Phase.CLOSED)),
        (Received([verbs.Disconnected()]), (Phase.CLOSED,) * 4),
        (Received([verbs.Refused("hello", "protocol", "")]), (Phase.CLOSED,) * 4),
        (Received([verbs.Refused("", "protocol", "")]), (Phase.OFFLINE, Phase.GREETING, Phase.READY, Phase.CLOSED)),
        (Tick(), (Phase.OFFLINE, Phase.GREETING, Phase.READY, Phase.CLOSED)),
    ],
    ids=str,
)
def test_phases(event, ends):
    for phase, end in zip((Phase.OFFLINE, Phase.GREETING, Phase.READY, Phase.CLOSED), ends, strict=True):
        client = in_phase(phase)
        client.handle(event)
        assert client.core.phase is end, phase


def test_hello_says_who_it_is():
    client = Client()
    (hello,) = said(client.handle(Up()))
    assert hello == verbs.Hello(3, "1.2.3", 0, "id", "token", "me", None, "/p", "/p", 77, "1:1", ("deploys",), (), None)


def test_only_expired_in_ready_greets_again(ready):
    assert [type(one) for one in said(ready.hear(verbs.Expired()))] == [verbs.Hello]
    assert said(ready.hear(verbs.Expired())) == []


def test_welcome_subscribes_with_the_mark_last(ready):
    (subscribe,) = [effect for effect in ready.effects if isinstance(effect, core.Subscribe)]
    assert subscribe == core.Subscribe(5555, (b"*\0", b"//p\0", b"#deploys\0", b"@me\0", b"~lease\0"))


@pytest.mark.parametrize("role", [Role.HELPER, Role.GUEST, Role.OBSERVER])
def test_those_without_a_mailbox_do_not_subscribe(role):
    client = Client(ME._replace(role=role))
    client.handle(Up())
    assert not [effect for effect in client.hear(welcome()) if isinstance(effect, core.Subscribe)]


def test_nothing_is_heard_after_the_end(ready):
    effects = ready.hear(verbs.Disconnected(), deliver(1))
    assert effects == [core.Closed(None)]
    assert ready.handle(Up()) == [] and ready.hear(welcome()) == []


def test_why_it_was_closed(ready):
    (closed,) = ready.hear(verbs.Displaced(1))
    assert isinstance(closed, core.Closed) and isinstance(closed.reason, core.Displaced)
    refused = Client()
    refused.handle(Up())
    (closed,) = refused.hear(verbs.Refused("hello", "name_taken", "the name is taken"))
    assert isinstance(closed, core.Closed) and isinstance(closed.reason, errors.NameTaken)


def test_bye(ready):
    assert said(ready.core.bye()) == [verbs.Bye()]
    assert ready.core.phase is Phase.CLOSED
    assert Client().core.bye() == []


# --- sending


def test_messages_sent_offline_follow_hello_in_order():
    client = Client()
    assert client.core.send(send()) == []
    assert client.core.await_answer("message0000") == []
    assert client.core.request(verbs.Status("s")) == []
    hello, *rest = said(client.handle(Up()))
    assert isinstance(hello, verbs.Hello)
    assert rest == [verbs.Await("message0000"), send(), verbs.Status("s")]


@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.READY])
def test_messages_sent_after_hello_go_out_at_once(phase):
    client = in_phase(phase)
    assert said(client.core.await_answer("message0000")) == [verbs.Await("message0000")]
    assert said(client.core.send(send())) == [send()]
    assert said(client.core.request(verbs.Status("s"))) == [verbs.Status("s")]


@pytest.mark.parametrize("again", [(Down(), Up()), (Received([verbs.Expired()]),)])
def test_unconfirmed_messages_are_sent_again(ready, again):
    for number in range(3):
        ready.core.send(send(number))
    ready.core.request(verbs.Status("s"))
    ready.hear(verbs.Receipt(0, "b", "bob", 0, ("message0001",)))
    effects = [effect for event in again for effect in ready.handle(event)]
    assert said(effects)[1:] == [
        send(0)._replace(again=True),
        send(2)._replace(again=True),
        verbs.Status("s"),
    ]


def freed(effects: list[core.Effect]) -> list[str]:
    """Messages whose room in the file is given back. (By its class: effects that hold the same are equal.)"""
    return [msg_id for effect in effects if isinstance(effect, core.Unspool) for msg_id in effect.msg_ids]


class TestLargeBodies:
    """They go into a spool file, if the shell can write one, once the broker has welcomed the client."""

    LARGE = b"x" * (verbs.SPILL_BYTES + 1)

    @pytest.fixture
    def spooling(self) -> Client:
        client = Client()
        client.core.spools = True
        client.handle(Up())
        client.hear(welcome(release="1.2.3"))
        return client

    def test_large_bodies_keep_their_place_in_the_order(self, spooling):
        sends = [send(0), send(1, self.LARGE), send(2, self.LARGE[:-1]), send(3, self.LARGE)]
        effects = spooling.core.send_all(sends)
        assert [effect[0] for effect in effects] == [verbs.Send.one(*one) for one in sends]
        assert [type(one) for one in effects] == [Transmit, core.Spool, Transmit, core.Spool]

    @pytest.mark.parametrize("outcome", ["receipt", "refusal", "tally"])
    def test_the_region_is_freed_with_the_outcome(self, spooling, outcome):
        spooling.core.send_all([send(0), send(1, self.LARGE)])
        told = {
            "receipt": verbs.Receipt(0, "b", "bob", 0, ("message0000", "message0001")),
            "refusal": verbs.Refused("message0001", "unknown_peer", "nobody"),
            "tally": verbs.Tally("message0001", 1, 0),
        }[outcome]
        effects = spooling.hear(told)
        assert freed(effects) == ["message0001"]
        assert freed(spooling.hear(told)) == []

    def test_a_message_without_a_spool_file_frees_no_region(self, spooling):
        spooling.core.send(send(0))
        assert freed(spooling.hear(verbs.Receipt(0, "b", "b", 0, ("message0000",)))) == []

    @pytest.mark.parametrize("again", [(Down(), Up()), (Received([verbs.Expired()]),)])
    def test_a_repeat_carries_its_body_and_its_region_stays_until_the_outcome(self, spooling, again):
        spooling.core.send(send(0, self.LARGE))
        effects = [effect for event in again for effect in spooling.handle(event)]
        assert said(effects)[1:] == [send(0, self.LARGE)._replace(again=True)]
        assert freed(effects) == []
        spooling.hear(welcome(release="1.2.3"))
        assert freed(spooling.hear(verbs.Receipt(0, "b", "bob", 0, ("message0000",)))) == ["message0000"]

    def test_before_welcome_bodies_travel_in_their_messages(self, spooling):
        for event in (Down(), Up()):
            spooling.handle(event)
        assert said(spooling.core.send(send(0, self.LARGE))) == [send(0, self.LARGE)]

    def test_a_repeat_by_the_application_carries_its_body(self, spooling):
        again = send(0, self.LARGE)._replace(again=True)
        assert said(spooling.core.send(again)) == [again]

    def test_without_a_spool_file_bodies_travel_in_their_messages(self, spooling):
        spooling.core.spools = False
        assert said(spooling.core.send(send(0, self.LARGE))) == [send(0, self.LARGE)]


def test_each_answer_is_given_once(ready):
    for number in range(3):
        ready.core.send(send(number))
    receipt = verbs.Receipt(0, "b", "bob", 0, ("message0000", "message0001", "message9999"))
    assert ready.hear(receipt) == [core.Confirmed(("message0000", "message0001"), receipt)]
    assert ready.hear(receipt) == []
    (answer,) = ready.hear(verbs.Refused("message0002", "unknown_peer", "nobody"))
    assert isinstance(answer, core.Confirmed) and isinstance(answer.outcome, errors.UnknownPeer)
    assert ready.core.unconfirmed == 0
    tally = verbs.Tally("message0003", 1, 2)
    assert ready.hear(tally) == []
    ready.core.send(send(3))
    assert ready.hear(tally) == [core.Confirmed(("message0003",), tally)]


def test_the_response_to_a_request(ready):
    ready.core.request(verbs.Status("s"))
    ready.core.request(verbs.Rename("r", "x"))
    health = verbs.Health("s", ())
    assert ready.hear(health, health) == [core.Response("s", health)]
    (response,) = ready.hear(verbs.Refused("r", "invalid_name", "bad"))
    assert isinstance(response, core.Response) and isinstance(response.envelope, errors.InvalidName)
    assert len(said(ready.hear(verbs.Expired()))) == 1  # neither is repeated


def test_the_window_by_number(ready, monkeypatch):
    monkeypatch.setattr(core, "WINDOW_MESSAGES", 2)
    assert ready.core.may_send
    ready.core.send(send(0))
    ready.core.send(send(1))
    assert not ready.core.may_send
    ready.hear(verbs.Receipt(0, "b", "bob", 0, ("message0000",)))
    assert ready.core.may_send


def test_the_window_by_size(ready, monkeypatch):
    monkeypatch.setattr(core, "WINDOW_BYTES", 10)
    ready.core.send(send(0, b"x" * 11))
    assert not ready.core.may_send
    ready.hear(verbs.Refused("message0000", "unknown_peer", ""))
    assert ready.core.may_send


# --- acknowledging


def test_taken_messages_are_acknowledged_once(ready):
    ready.hear(deliver(1), deliver(2))
    ready.handle(cast(11))
    assert ready.take(0) == [verbs.Ack(1, ())]
    assert ready.take() == []
    assert ready.take(1, 2) == [verbs.Ack(2, (11,))]


def test_nothing_is_acknowledged_before_a_new_welcome(ready):
    ready.hear(deliver(1))
    ready.hear(verbs.Expired())
    assert ready.take(0) == []
    ready.hear(welcome(lease="other"))
    assert ready.take() == []
    assert said(ready.hear(deliver(1))) == [verbs.Ack(1, ())]


def test_a_message_taken_offline_is_acknowledged_and_not_handed_out_again(ready):
    ready.hear(deliver(1), deliver(2))
    ready.handle(Down())
    ready.core.taken(ready.tickets[0])
    assert said(ready.core.acknowledge()) == []
    ready.handle(Up())
    assert core.TakeBack() in ready.hear(welcome(lease="other"))
    effects = ready.hear(deliver(1), deliver(2))
    assert shown(effects) == ["direct000002"]
    assert said(effects) == [verbs.Ack(1, ())]  # at once: the application does nothing for it


def test_a_ticket_of_an_old_lease_settles_nothing(ready):
    ready.hear(deliver(1))
    ready.hear(welcome(lease="other"))
    ready.hear(deliver(7))
    assert ready.take(0) == []
    assert ready.take(1) == [verbs.Ack(7, ())]


def test_a_ticket_of_another_core_settles_nothing(ready):
    """A program goes on with a new core over the same connection, and numbers begin at 1 again."""
    ready.hear(deliver(1))
    (ticket,) = ready.tickets
    ready.core.taken(ticket._replace(lease="another", msg_ids=("direct000009",)))
    assert ready.take() == []
    assert ready.take(0) == [verbs.Ack(1, ())]


def test_a_recall_acknowledges_taken_messages_and_forgets_the_rest(ready):
    ready.hear(deliver(1), deliver(2), deliver(3, after=99))
    ready.core.taken(ready.tickets[0])
    effects = ready.hear(verbs.Recall(5, (11,)))
    assert effects == [core.TakeBack(), Transmit(verbs.Ack(1, ())), Transmit(verbs.Recalled(5))]
    assert ready.handle(cast(11)) == []
    assert shown(ready.hear(deliver(2), deliver(3))) == ["direct000002", "direct000003"]
    assert ready.take(-2, -1) == [verbs.Ack(3, ())]


def test_peeked_messages_hold_up_no_acknowledgement():
    client = Client(ME._replace(role=Role.HELPER))
    client.handle(Up())
    client.hear(welcome())
    client.core.request(verbs.Fetch("peek", True))
    client.hear(deliver(1), deliver(2), verbs.Fetched("peek", 2, 0))
    client.core.request(verbs.Fetch("f", False))
    client.hear(deliver(1), deliver(2))
    assert client.take(0) == []  # a ticket of what has been given back
    client = Client(ME._replace(role=Role.HELPER))
    client.handle(Up())
    client.hear(welcome(), deliver(1), deliver(2), verbs.Fetched("peek", 2, 0), deliver(1), deliver(2))
    assert client.take(2, 3) == [verbs.Ack(2, ())]


def test_an_answer_that_was_taken_is_awaited_no_more(ready):
    ready.core.await_answer("question0000")
    ready.hear(deliver(1, reply_to="question0000"))
    ready.take(0)
    assert len(said(ready.hear(verbs.Expired()))) == 1


# --- messages handed out (their order: test_reorder)


def test_the_fields_of_an_incoming_message(ready):
    header = verbs.Header("sender", "bob", "Bob", Scope.SESSION, "me", 1, "question0000", 9.5)
    deliver = verbs.Deliver(header, 3, 0, 0, 7, (1, 2, 3, 4), 70_000, ("direct000003",), (b"x",))
    (hand,) = ready.hear(deliver)
    (message,) = hand.messages()
    assert message == core.Incoming(
        core.Ticket("lease", 1, ("direct000003",), "question0000"),
        "direct000003",
        header,
        7,
        (1, 2, 3, 4),
        70_000,
        b"x",
    )
    ready.take(0)
    (hand,) = ready.handle(cast(11, from_label="Bob", scope=Scope.TOPIC, target="deploys", body=b"y", pointer=(5,)))
    (message,) = hand.messages()
    assert message == core.Incoming(
        core.Ticket("lease", 2, ("bcast0000011",), None),
        "bcast0000011",
        verbs.Header("s", "n", "Bob", Scope.TOPIC, "deploys", 0, None, 1.0),
        *(-1, (5,), -1, b"y"),
    )


def test_broadcasts_before_welcome_are_ignored(ready):
    assert in_phase(Phase.GREETING).handle(cast(11)) == []
    ready.hear(verbs.Expired())
    assert ready.handle(cast(11)) == []
    ready.hear(welcome())
    assert shown(ready.handle(cast(11))) == ids(11)


def test_a_batch_of_broadcasts_is_handed_out_when_there_is_a_lease():
    client = Client()
    header = verbs.Header("s", "n", "Ä", 3, "deploys", 0, None, 1.0)
    run = verbs.Broadcast(header, "epoch", 11, 10, (), None, tuple(ids(11, 12)), (b"x", b"y"))
    published = Published(b"#deploys\0", [run])
    client.handle(Up())
    assert client.handle(published) == []
    client.hear(welcome())
    (hand,) = client.handle(published)
    assert isinstance(hand, Hand)
    for one, msg_id, body in zip(hand.messages(), ids(11, 12), (b"x", b"y"), strict=True):
        assert (one.msg_id, one.ticket.msg_ids, one.body) == (msg_id, (msg_id,), body)
        assert one.header is header and (one.age_s, one.pointer) == (-1, None)
    client.core.taken(hand.ticket)
    assert said(client.core.acknowledge()) == [verbs.Ack(0, (11, 12))]
    client.hear(verbs.Expired())
    assert client.handle(Published(b"#deploys\0", [run._replace(bcast=13, prev=12, msg_ids=tuple(ids(13, 14)))])) == []


def test_missing_broadcasts_are_requested(ready):
    assert ready.handle(cast(12, prev=11)) == [Transmit(verbs.Refill((11,)))]
    effects = ready.hear(deliver(1, bcast=11), verbs.Beat("epoch", 99, (11, 12, 13)))
    assert shown(effects) == ids(11, 12)
    assert said(effects) == [verbs.Refill((13,))]


def test_a_new_lease_forgets_numbers(ready):
    ready.handle(cast(12, prev=11))
    ready.hear(welcome(lease="other", bcast=20))
    assert shown(ready.handle(cast(21, prev=12))) == ids(21)


# --- names


@pytest.mark.parametrize("way", ["dealer", "channel"])
def test_rename(ready, way):
    renamed = verbs.Renamed("lead")
    event = Received([renamed]) if way == "dealer" else Published(b"@me\0", [renamed])
    assert ready.handle(event) == [core.Retune(b"@me\0", b"@lead\0"), core.Renamed("lead")]
    assert ready.handle(event) == []
    assert ready.handle(Published(b"@lead\0", [verbs.Disconnected()])) == [core.Closed(None)]


def test_envelopes_on_another_name_channel_are_ignored(ready):
    assert ready.handle(Published(b"@other\0", [verbs.Disconnected()])) == []
    assert ready.core.phase is Phase.READY


def test_the_next_hello_has_the_new_name(ready):
    ready.hear(verbs.Renamed("lead"))
    ready.handle(Down())
    (hello,) = said(ready.handle(Up()))
    assert isinstance(hello, verbs.Hello) and hello.name == "lead"


# --- time


def test_a_silent_client_pings(ready):
    assert ready.core.next_tick_s(0.0) == core.PING_S
    assert ready.handle(Tick(), now_s=3.9) == []
    assert said(ready.handle(Tick(), now_s=4.0)) == [verbs.Ping("lease", "me")]
    assert ready.core.next_tick_s(5.0) == 3.0
    assert ready.core.next_tick_s(99.0) == 0.0


def test_a_client_that_has_just_sent_does_not_ping(ready):
    ready.handle(cast(12, prev=11), now_s=3.0)  # a REFILL
    assert ready.handle(Tick(), now_s=5.0) == []
    assert ready.core.next_tick_s(5.0) == 2.0


@pytest.mark.parametrize("phase", [Phase.OFFLINE, Phase.GREETING])
def test_no_ping_without_a_lease_and_no_spinning_either(phase):
    client = in_phase(phase)
    assert client.handle(Tick(), now_s=100.0) == []
    assert client.core.next_tick_s(100.0) == core.PING_S


def test_repr(ready):
    ready.core.send(send())
    ready.hear(deliver(1), deliver(2, after=99))
    assert repr(ready.core) == "<ClientCore me ready: 1 unconfirmed, 1 handed out, 1 held, 0 asked, 0 in hand>"


# --- requests to a group


def request(number: int = 0, body: bytes = b"") -> verbs.Request:
    return verbs.Request(f"request{number:04d}", "resizers", 0, True, False, body)


def result(number: int = 0) -> verbs.Result:
    return verbs.Result(f"request{number:04d}", "answer000000", "w", "worker", 0, 1.0, None, b"done")


def test_a_request_is_kept_until_it_is_answered(ready):
    assert said(ready.core.ask(request())) == [request()]
    assert ready.core.asked == 1
    assert ready.hear(result()) == [core.Resolved("request0000", result())]
    assert ready.core.asked == 0
    assert ready.hear(result()) == []


def test_a_request_that_is_refused(ready):
    ready.core.ask(request())
    (answered,) = ready.hear(verbs.Refused("request0000", "unknown_peer", "nobody"))
    assert isinstance(answered, core.Resolved) and isinstance(answered.outcome, errors.UnknownPeer)
    assert ready.hear(verbs.Refused("request0000", "unknown_peer", "nobody")) == []


def test_requests_are_sent_again_after_each_hello(ready):
    ready.core.ask(request(1))
    ready.handle(Down())
    assert said(ready.core.ask(request(2))) == []
    hello, *others = said(ready.handle(Up()))
    assert isinstance(hello, verbs.Hello)
    assert others == [request(1)._replace(again=True), request(2)]
    ready.hear(welcome())
    ready.hear(result(1))
    assert said(ready.hear(verbs.Expired()))[1:] == [request(2)._replace(again=True)]


def test_a_request_that_is_withdrawn(ready):
    ready.core.ask(request(1))
    ready.core.ask(request(2))
    assert said(ready.core.withdraw(["request0001", "request0009"])) == [verbs.Withdraw(("request0001",))]
    assert said(ready.core.withdraw(["request0001"])) == []
    assert ready.hear(result(1)) == []
    ready.handle(Down())
    assert ready.core.withdraw(["request0002"]) == []
    assert [type(one) for one in said(ready.handle(Up()))] == [verbs.Hello]


def test_how_much_may_be_asked(ready):
    for number in range(core.WINDOW_MESSAGES):
        assert ready.core.may_ask
        ready.core.ask(request(number))
    assert not ready.core.may_ask
    ready.core.withdraw(["request0000"])
    assert ready.core.may_ask
    ready.core.ask(request(0, bytes(core.WINDOW_BYTES + 1)))
    ready.core.withdraw(["request0001"])
    assert not ready.core.may_ask
    ready.hear(result(0))
    assert ready.core.may_ask


def test_an_unawaited_answer_is_not_awaited_again(ready):
    ready.core.await_answer("message0001")
    ready.core.await_answer("message0002")
    assert said(ready.core.unawait(["message0001", "message0009"])) == [verbs.Unawait(("message0001",))]
    assert said(ready.core.unawait(["message0001"])) == []
    assert said(ready.handle(Up()))[1:] == [verbs.Await("message0002")]


# --- work


def work(number: int = 0, tries: int = 0) -> verbs.Work:
    return verbs.Work(f"request{number:04d}", "s", "n", None, "resizers", 0, 1.0, tries, None, b"")


@pytest.fixture
def worker(ready) -> Client:
    assert said(ready.core.offer(4)) == [verbs.Offer(4, (), ())]
    return ready


def test_work_is_done_once(worker):
    assert worker.hear(work()) == [core.StartWork(work())]
    assert worker.hear(work(tries=1)) == []
    assert worker.core.in_hand == 1
    answer = verbs.Answer("request0000", 0, b"done")
    assert said(worker.core.answer(*answer)) == [answer]
    assert worker.core.in_hand == 0
    assert worker.core.answer(*answer) == []


def test_an_answer_is_given_again_without_work(worker):
    worker.hear(work())
    worker.core.answer("request0000", 0, b"done")
    assert worker.hear(work()) == [Transmit(verbs.Answer("request0000", 0, b"done"))]


def test_the_offer_after_hello_names_requests_in_hand_and_answers(worker):
    worker.hear(work(1), work(2), work(3))
    worker.core.answer("request0002", 0, b"done")
    worker.handle(Down())
    assert said(worker.core.answer("request0003", 0, b"done")) == []
    offer = verbs.Offer(4, ("request0001",), ("request0002", "request0003"))
    assert said(worker.handle(Up()))[1:] == [offer]
    assert said(worker.core.offer(0)) == [verbs.Offer(0, (), ())]
    assert said(worker.handle(Up()))[1:] == [offer._replace(credit=0)]


@pytest.mark.parametrize("phase", Phase)
def test_a_probe_is_answered_where_there_is_a_lease(phase):
    answered = said(in_phase(phase).hear(verbs.Probe()))
    assert [type(one) for one in answered] == ([verbs.Ping] if phase is Phase.READY else [])


def test_requests_given_back_are_not_named_after_the_next_hello(worker):
    worker.hear(work(1), work(2))
    worker.core.answer("request0001", 0, b"done")
    hello, offer = said(worker.core.give_back())
    assert isinstance(hello, verbs.Hello) and offer == verbs.Offer(0, (), ("request0001",))
    assert worker.core.in_hand == 0
    assert said(worker.core.answer("request0002", 0, b"too late")) == []


def test_giving_back_nothing_sends_nothing(worker):
    assert said(worker.core.give_back()) == []


def test_a_client_that_never_offered_does_not_offer_after_hello(ready):
    assert [type(one) for one in said(ready.handle(Up()))] == [verbs.Hello]


def test_an_offer_while_there_is_no_broker_is_made_to_the_next(ready):
    ready.handle(Down())
    assert said(ready.core.offer(7)) == []
    assert said(ready.handle(Up()))[1:] == [verbs.Offer(7, (), ())]


def test_work_of_a_connection_that_has_ended_is_left_alone(worker):
    worker.handle(Up())
    assert worker.hear(work()) == []
    worker.hear(welcome())
    assert worker.hear(work()) == [core.StartWork(work())]


def test_work_that_is_withdrawn(worker):
    worker.hear(work(1), work(2))
    assert worker.hear(verbs.Withdrawn(("request0001", "request0009"))) == [core.Withdrawn(("request0001",))]
    assert worker.hear(verbs.Withdrawn(("request0001",))) == []
    assert worker.core.answer("request0001", 0, b"done") == []
    assert worker.core.in_hand == 1


def test_the_last_answers_are_remembered(worker, monkeypatch):
    monkeypatch.setattr("zmqbus.client.requests.REMEMBERED_ANSWERS", 2)
    for number in range(3):
        worker.hear(work(number))
        worker.core.answer(f"request{number:04d}", 0, b"")
    assert worker.hear(work(0)) == [core.StartWork(work(0))]
    assert said(worker.hear(work(1), work(2))) == [verbs.Answer(f"request{n:04d}", 0, b"") for n in (1, 2)]


def test_no_more_bytes_of_them_than_that_but_for_the_newest(worker, monkeypatch):
    monkeypatch.setattr("zmqbus.client.requests.REMEMBERED_BYTES", 10)
    for number, size in enumerate((4, 4, 20)):
        worker.hear(work(number))
        worker.core.answer(f"request{number:04d}", 0, bytes(size))
    assert worker.hear(work(0), work(1)) == [core.StartWork(work(0)), core.StartWork(work(1))]
    assert said(worker.hear(work(2))) == [verbs.Answer("request0002", 0, bytes(20))]


# --- batches


def delivers(seq: int, count: int, after: int = 0) -> verbs.Deliver:
    msg_ids = tuple(f"direct{number:06d}" for number in range(seq, seq + count))
    header = verbs.Header("s", "n", "l", 0, "", 2, None, 1.5)
    return verbs.Deliver(header, seq, 0, after, -1, None, count, msg_ids, (b"x",) * count)


def test_messages_share_batches_and_are_confirmed_one_by_one(ready):
    ready.hear(welcome(release=ready.core._version))
    sends = [send(number, b"%d" % number) for number in range(4)]
    sends[2] = sends[2]._replace(target="carol")
    run, carol, last = said(ready.note(ready.core.send_all(sends)))
    ids = ("message0000", "message0001")
    assert run == verbs.Send(0, "bob", 0, None, False, None, None, ids, (b"0", b"1"))
    assert (carol, last) == tuple(sends[2:])
    assert ready.core.unconfirmed == 4
    assert ready.core.room == (core.WINDOW_MESSAGES - 4, core.WINDOW_BYTES - 4)
    told = verbs.Receipt(0, "id", "bob", 0, ("message0001", "message0003"))
    assert ready.hear(told) == [core.Confirmed(("message0001", "message0003"), told)]
    (refused,) = ready.hear(verbs.Refused("message0000", "rate_limited", "full"))
    assert refused.msg_ids == ("message0000",) and isinstance(refused.outcome, errors.RateLimited)
    assert ready.core.room == (core.WINDOW_MESSAGES - 1, core.WINDOW_BYTES - 1)


def test_a_batch_is_repeated_message_by_message(ready):
    """Alone: an earlier broker may know some of them, with receivers of their own."""
    sends = [send(number) for number in range(3)]
    ready.note(ready.core.send_all(sends))
    ready.hear(verbs.Receipt(0, "id", "bob", 0, ("message0001",)))
    ready.handle(Down())
    _, *again = said(ready.handle(Up()))
    assert again == [sends[0]._replace(again=True), sends[2]._replace(again=True)]


def test_messages_never_sent_are_no_repeats():
    client = Client()
    assert said(client.note(client.core.send_all([send(0), send(1)]))) == []
    _, *first = said(client.handle(Up()))
    assert first == [verbs.Send(0, "bob", 0, None, False, None, None, ("message0000", "message0001"), (b"", b""))]


def test_a_batch_is_handed_out_as_one_and_taken_in_parts(ready):
    (hand,) = ready.hear(delivers(1, 3))
    assert isinstance(hand, Hand) and hand.batch.msg_ids == ("direct000001", "direct000002", "direct000003")
    assert hand.ticket == core.Ticket("lease", 1, hand.batch.msg_ids, None)
    ready.core.taken(hand.ticket.part(0, 2))
    assert said(ready.core.acknowledge()) == [verbs.Ack(2, ())]
    ready.core.taken(hand.ticket.part(2, 3))
    assert said(ready.core.acknowledge()) == [verbs.Ack(3, ())]


def test_each_message_of_a_batch_has_what_it_would_have_alone(ready):
    (hand,) = ready.hear(delivers(4, 2))
    assert isinstance(hand, Hand)
    alone = [delivers(number, 1) for number in (4, 5)]
    other = Client()
    other.handle(Up())
    other.hear(welcome())
    hands = other.hear(*alone)
    assert list(hand.messages()) == [message for one in hands if isinstance(one, Hand) for message in one.messages()]
    assert [one.ticket for one in hand.apart()] == [one.ticket for one in hands if isinstance(one, Hand)]


def test_messages_taken_under_another_lease_are_known_and_settle_nothing(ready):
    (hand,) = ready.hear(delivers(1, 3))
    assert isinstance(hand, Hand)
    ready.handle(Down())
    ready.handle(Up())
    ready.hear(welcome(lease="other"))
    ready.core.taken(hand.ticket.part(0, 2))
    assert said(ready.core.acknowledge()) == []
    effects = ready.hear(delivers(1, 3))
    assert shown(effects) == ["direct000003"] and said(effects) == [verbs.Ack(2, ())]


# --- what must not be said


def test_a_message_over_a_limit_is_refused_alone(ready):
    """Said, it would come back as part of a message that nobody can read, at every HELLO."""
    long = core.Outgoing("toolong00001", 0, "x" * 4_097, 0, None, False, b"")
    good = long._replace(msg_id="good00000001", target="bob")
    effects: Any = ready.core.send_all([long, good])
    assert [type(one) for one in effects] == [core.Confirmed, core.Transmit]
    (msg_id,), error = effects[0]
    assert msg_id == long.msg_id and isinstance(error, errors.InvalidName)
    assert said(effects) == [good]
    assert ready.core.unconfirmed == 1
    reply = long._replace(target="bob", reply_to="x" * 13)
    refused: Any = ready.core.send_all([reply])
    ((_, error),) = refused
    assert isinstance(error, errors.InvalidPayload)


def test_a_request_over_a_limit_is_refused(ready):
    (response,) = ready.core.request(verbs.Rename("r", "x" * 41))
    assert response.ref == "r" and isinstance(response.envelope, errors.InvalidName)
    (answered,) = ready.core.ask(verbs.Request("request00001", "g" * 41, 0, True, False, b""))
    assert answered.msg_id == "request00001" and isinstance(answered.outcome, errors.InvalidName)
    assert ready.core.asked == 0


def test_a_hello_over_a_limit_ends_with_its_reason():
    changes: Any
    for changes in ({"owner": "o" * 257}, {"label": "l" * 241}, {"topics": ("t" * 41,)}, {"token": "\udcff"}):
        made = core.ClientCore(core.Persona(Role.PROGRAM, "id", "token", "name")._replace(**changes), "0")
        (closed,) = made.handle(0.0, core.Up())
        assert isinstance(closed, core.Closed) and closed.reason is not None
        assert made.phase is core.Phase.CLOSED


def test_a_directory_name_that_is_not_utf_8_is_escaped_in_hello():
    made = core.ClientCore(core.Persona(Role.PROGRAM, "id", "token", "name", cwd="/tmp/\udcff"), "0")
    effects: Any = made.handle(0.0, core.Up())
    (hello,) = effects
    assert hello.envelope.cwd == "/tmp/\\xff"
    assert codec.encode([hello.envelope])
