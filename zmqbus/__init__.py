"""zmqbus: a message bus for the coding-agent sessions and the Python scripts of one user on one machine.

    with zmqbus.connect("orchestrator") as bus:
        receipt = bus.send("auth", "run the tests")

The public names are listed in `_EXPORTS` and imported at their first use (PEP 562): `import zmqbus` alone loads neither
ZeroMQ nor anything else, because the commands in bin/ import this package before they know whether the dependencies are
installed, and short-lived ones pay for each import. Python uses `_EXPORTS`, type checkers the imports under
`TYPE_CHECKING`, and `__all__` must name the same; a test compares the three.

This file has to be valid for python 3.6 too: it is loaded before the check that reports an interpreter that is too old.
"""

__version__ = "0.1.0"

# Type checkers take this name for true whatever defines it, and importing it from typing would cost a millisecond.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from zmqbus.client.bus import Bus, connect
    from zmqbus.client.fanout import as_completed, wait
    from zmqbus.client.message import Message
    from zmqbus.client.producer import Reply
    from zmqbus.client.receipts import BroadcastReceipt, Receipt
    from zmqbus.errors import (
        Ambiguous,
        BrokerError,
        BrokerUnavailable,
        DeliveryError,
        ForkedBus,
        InvalidArgument,
        InvalidLabel,
        InvalidName,
        InvalidOption,
        InvalidPayload,
        LocalError,
        NameTaken,
        NotConnected,
        Overloaded,
        Poisoned,
        PortHeld,
        ProtocolError,
        RateLimited,
        RemoteError,
        TextTooLong,
        Timeout,
        Unauthorized,
        UnknownPeer,
        ZmqbusError,
    )
    from zmqbus.wire.verbs import Notice, Session

#: Public name -> module that defines it.
_EXPORTS = {
    "Ambiguous": "zmqbus.errors",
    "BroadcastReceipt": "zmqbus.client.receipts",
    "BrokerError": "zmqbus.errors",
    "BrokerUnavailable": "zmqbus.errors",
    "Bus": "zmqbus.client.bus",
    "DeliveryError": "zmqbus.errors",
    "ForkedBus": "zmqbus.errors",
    "InvalidArgument": "zmqbus.errors",
    "InvalidLabel": "zmqbus.errors",
    "InvalidName": "zmqbus.errors",
    "InvalidOption": "zmqbus.errors",
    "InvalidPayload": "zmqbus.errors",
    "LocalError": "zmqbus.errors",
    "Message": "zmqbus.client.message",
    "NameTaken": "zmqbus.errors",
    "NotConnected": "zmqbus.errors",
    "Notice": "zmqbus.wire.verbs",
    "Overloaded": "zmqbus.errors",
    "Poisoned": "zmqbus.errors",
    "PortHeld": "zmqbus.errors",
    "ProtocolError": "zmqbus.errors",
    "RateLimited": "zmqbus.errors",
    "Receipt": "zmqbus.client.receipts",
    "RemoteError": "zmqbus.errors",
    "Reply": "zmqbus.client.producer",
    "Session": "zmqbus.wire.verbs",
    "TextTooLong": "zmqbus.errors",
    "Timeout": "zmqbus.errors",
    "Unauthorized": "zmqbus.errors",
    "UnknownPeer": "zmqbus.errors",
    "ZmqbusError": "zmqbus.errors",
    "as_completed": "zmqbus.client.fanout",
    "connect": "zmqbus.client.bus",
    "wait": "zmqbus.client.fanout",
}

#: Public modules that are attributes (`zmqbus.errors.Timeout`) without an import of their own.
_SUBMODULES = frozenset(("aio", "errors"))

__all__ = [
    "Ambiguous",
    "BroadcastReceipt",
    "BrokerError",
    "BrokerUnavailable",
    "Bus",
    "DeliveryError",
    "ForkedBus",
    "InvalidArgument",
    "InvalidLabel",
    "InvalidName",
    "InvalidOption",
    "InvalidPayload",
    "LocalError",
    "Message",
    "NameTaken",
    "NotConnected",
    "Notice",
    "Overloaded",
    "Poisoned",
    "PortHeld",
    "ProtocolError",
    "RateLimited",
    "Receipt",
    "RemoteError",
    "Reply",
    "Session",
    "TextTooLong",
    "Timeout",
    "Unauthorized",
    "UnknownPeer",
    "ZmqbusError",
    "__version__",
    "as_completed",
    "connect",
    "wait",
]


if not TYPE_CHECKING:  # with it, a type checker would take any misspelt name for a public one

    def __getattr__(name: str) -> object:
        """Imports a public name at its first use; from then on it is an ordinary attribute of the package."""
        from importlib import import_module

        if name in _SUBMODULES:
            return import_module("zmqbus." + name)  # the import system sets the attribute
        if name not in _EXPORTS:
            raise AttributeError("module 'zmqbus' has no attribute {!r}".format(name))
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value


def __dir__() -> "list[str]":
    return sorted(set(__all__) | _SUBMODULES | set(globals()))
