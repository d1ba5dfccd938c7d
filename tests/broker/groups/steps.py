"""Steps of the tests of requests: workers, callers, their ends, and checks that the broker's tables are empty."""

from __future__ import annotations

from typing import Any

from zmqbus import errors
from zmqbus.broker import events
from zmqbus.testing import SimClient, SimNet
from zmqbus.wire import codec, verbs
from zmqbus.wire.verbs import Role


def worker(net: SimNet, name: str, credit: int = 1, *, groups: tuple[str, ...] = ("g",), **more: object) -> SimClient:
    """Connects a worker in a living process of its own."""
    net.living_owners.add(f"{name}:1")
    more.setdefault("owner", f"{name}:1")
    found = net.session(name, role=Role.PROGRAM, groups=groups, **more)  # type: ignore[arg-type]
    found.offer(credit)
    net.settle()
    return found


def ask(net: SimNet, caller: SimClient, *args: Any, **more: Any) -> str:
    """Sends a request and settles the bus; returns its id."""
    msg_id = caller.call(*args, **more)
    net.settle()
    return msg_id


def work(net: SimNet, worker: SimClient, count: int = 1 << 30) -> None:
    """Lets a worker answer its oldest requests, and settles the bus."""
    worker.work(count)
    net.settle()


def assign(net: SimNet, caller: SimClient, *names: str, body: bytes = b"") -> tuple[Any, ...]:
    """Connects workers of these names, and sends a request to the first. Returns the workers, then the request's id."""
    members = [worker(net, name) for name in names]
    msg_id = ask(net, caller, "g", body)
    assert [*members[0].works] == [msg_id]
    return (*members, msg_id)


def assigned_to(net: SimNet, caller: SimClient, crew: list[SimClient]) -> tuple[SimClient, SimClient, str]:
    """Sends a request to two workers. Returns the one that got it, the other, and the request's id."""
    one, two = crew
    msg_id = ask(net, caller, "g")
    return (one, two, msg_id) if one.works else (two, one, msg_id)


def die(net: SimNet, member: SimClient) -> None:
    """Ends a process with its connections."""
    net.living_owners.discard(member.persona.owner)
    member.disconnect()
    member.drop_subscriber()
    net.clients.remove(member)
    net.settle()


def lose(net: SimNet, member: SimClient) -> None:
    """Ends a connection; the process lives."""
    member.disconnect()
    net.settle()


def connect(net: SimNet, member: SimClient) -> None:
    """Connects a client, or resumes a stopped one, and settles the bus."""
    if member.stopped:
        member.stopped = False
    else:
        member.connect()
    net.settle()


def fail_over(net: SimNet) -> None:
    """Kills the broker, and settles the bus with the next one."""
    net.kill_broker()
    net.settle()


def lose_guest(net: SimNet, guest: SimClient) -> None:
    """Ends a guest's connection, which has no SUB: the broker finds its route unreachable."""
    route = guest.route
    guest.disconnect()
    net._decide(events.Unreachable(route))
    net.settle()


def figures(net: SimNet) -> dict[str, int]:
    """Metrics of the request broker."""
    return dict(net.broker.requests.figures())


def refusal(member: SimClient, msg_id: str) -> errors.ZmqbusError:
    """The error of a refused request."""
    outcome = member.results[msg_id]
    assert isinstance(outcome, errors.ZmqbusError), outcome
    return outcome


def result(member: SimClient, msg_id: str) -> verbs.Result:
    """The result of an answered request."""
    outcome = member.results[msg_id]
    assert isinstance(outcome, verbs.Result), outcome
    return outcome


def heard(net: SimNet, member: SimClient, *envelopes: verbs.Envelope) -> list[verbs.Envelope]:
    """Sends envelopes that no client core would send; returns the replies."""
    found: list[verbs.Envelope] = []
    handle = member.core.handle

    def listening(now_s: float, event: object) -> object:
        found.extend(getattr(event, "envelopes", ()))
        return handle(now_s, event)  # type: ignore[arg-type]

    member.core.handle = listening  # type: ignore[assignment, method-assign]
    member.raw(codec.encode(envelopes))
    net.settle()
    member.core.handle = handle  # type: ignore[method-assign]
    return found


def check_clean(net: SimNet) -> None:
    """No request is left in any table of the broker."""
    broker = net.broker.requests
    assert broker.idle and not broker._staged and net.broker.oldest_segment() is None
    assert not any(caller.requests for caller in [*broker._callers._connected.values(), *broker._callers._lost])
    members = broker._workers._by_session.values()
    assert not any(one.assigned or one.claims or one.sent_bytes for one in members)
    assert not broker._queues.quarantined and broker._queues.size_bytes == 0
    for group in broker._queues.groups.values():
        assert (group.waiting, group.size_bytes, group.impatient, group.reserved, group.reserved_bytes) == (0,) * 5
        assert not group._queue and not group._aside
