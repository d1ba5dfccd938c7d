"""The register of handlers: one for each verb that a core receives, or the import fails."""

from __future__ import annotations

import pytest

from zmqbus.broker import core as broker
from zmqbus.client import core as client
from zmqbus.wire import verbs
from zmqbus.wire.handlers import handlers_of, handles


class Pings:
    @handles(verbs.Ping, verbs.Bye)
    def ping(self, envelope: verbs.Envelope) -> None: ...


class MorePings:
    @handles(verbs.Ping)
    def again(self, envelope: verbs.Envelope) -> None: ...


def test_every_verb_has_a_handler_at_its_receiver() -> None:
    """BROADCAST is the exception: a client receives it with its channel."""
    to_broker = {verb.cls for verb in verbs.TABLE if not verb.from_broker}
    assert set(broker.HANDLERS) == to_broker
    assert set(client.HANDLERS) == {verb.cls for verb in verbs.TABLE if verb.from_broker} - client.BY_CHANNEL


def test_register_names_class_and_method() -> None:
    assert handlers_of([verbs.Ping, verbs.Bye], Pings) == {verbs.Ping: (Pings, "ping"), verbs.Bye: (Pings, "ping")}


@pytest.mark.parametrize(
    ("received", "parts", "message"),
    [
        ([verbs.Ping, verbs.Bye, verbs.List], [Pings], "verbs without a handler: List"),
        ([verbs.Ping], [Pings], "not received here: Bye"),
        ([verbs.Ping, verbs.Bye], [Pings, MorePings], "Ping has two handlers"),
    ],
    ids=["missing", "foreign", "double"],
)
def test_mismatch_is_an_error(received, parts, message) -> None:
    with pytest.raises(TypeError, match=message):
        handlers_of(received, *parts)
