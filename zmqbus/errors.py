"""The errors of this package in one tree. Its branches answer a caller's question: *who has to act?*

* `LocalError`: the caller. Its arguments or its set-up cannot work; nothing left the process.
* `DeliveryError`: the sender. Nothing is broken, but this message cannot be delivered (or not now).
* `BrokerError`: the user. The broker cannot be reached, refuses this process, or cannot do its work.
* `RemoteError`: the author of the handler that raised an exception.
* `ProtocolError`: the author of the peer that broke docs/protocol.md. Never shown to users; the shell that reads the
  socket turns it into a refusal for that peer.

Every error that a user can meet has a `code` from the contract (the word after `error:` on stderr). The wire carries
the same code, and `from_code` returns its class.
"""

from __future__ import annotations

from typing import ClassVar


class ZmqbusError(Exception):
    """Root of all errors of this package. `str(error)` says what happened and what to do."""

    code: ClassVar[str] = "internal"
    index: int | None = None  #: of an error that `map` raises: the number of the item that failed, from 0
    item: object = None  #: and that item

    def __str__(self) -> str:
        # It quotes targets, candidates, paths and texts of peers, and is shown by commands, logs and tracebacks. So it
        # is one line that is safe to show anywhere.
        text = super().__str__()
        if text.isascii() and text.isprintable():
            return text
        from zmqbus.text.display import sanitise

        return sanitise(text)  # guards: safe output [sanitise(text) => text]


class LocalError(ZmqbusError):
    """The caller's input or set-up is at fault; nothing was sent."""


class InvalidOption(LocalError, ValueError):
    """A flag or an argument cannot be used. Commands end with exit status 2."""

    code = "usage"


class InvalidName(LocalError):
    """A session, topic or group name breaks the rule for names."""

    code = "invalid_name"


class NameTaken(InvalidName):
    """A connected session has the name. It has a code of its own on the wire, where a listener takes another name."""

    wire_code: ClassVar[str] = "name_taken"


class InvalidLabel(LocalError):
    """A label is too long or holds characters that labels may not hold."""

    code = "invalid_label"


class InvalidArgument(LocalError, TypeError, ValueError):
    """An argument of the Python API has a wrong type or value, which the message names. Also Python's own errors."""

    code = "invalid_argument"


class InvalidPayload(LocalError):
    """A body cannot be sent or read: not UTF-8, not a file, not serialisable."""

    code = "invalid_payload"


class TextTooLong(LocalError):
    """A body is over the limit for its audience; the message names the limit."""

    code = "text_too_long"


class NotConnected(LocalError):
    """This process acts for a session, and that session is not on the bus."""

    code = "not_connected"


class DeliveryError(ZmqbusError):
    """The bus works, but this message cannot be delivered."""


class UnknownPeer(DeliveryError):
    """No session matches the target; the message lists the nearest names."""

    code = "unknown_peer"


class Ambiguous(DeliveryError):
    """Several sessions match the target; the message lists them."""

    code = "ambiguous"


class RateLimited(DeliveryError):
    """Too many broadcasts in a minute, or the receiver's mailbox is full; the message says when to retry."""

    code = "rate_limited"


class Timeout(DeliveryError, TimeoutError):
    """No answer came in time. The message stays delivered or queued."""

    code = "timeout"


class Poisoned(DeliveryError):
    """Several workers in turn have died with this request, so no other gets it."""

    code = "poisoned"


class Overloaded(LocalError):
    """More requests are outstanding than a program may have; take some answers first."""

    code = "overloaded"


class ForkedBus(LocalError):
    """A bus was used in a child of the process that opened it."""

    code = "forked"


class RemoteError(ZmqbusError):
    """The handler of the request has raised an exception; holds its type, text and traceback.

    A branch of its own: neither the bus nor the message was at fault.
    """

    code = "remote_error"

    def __init__(self, kind: str, text: str, traceback: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind  #: name of the exception's class
        self.text = text  #: its `str(error)`
        self.traceback = traceback  #: as Python prints it

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str]]:
        return RemoteError, (self.kind, self.text, self.traceback)


class BrokerError(ZmqbusError):
    """The broker cannot serve this process, or refuses it."""


class Unauthorized(BrokerError):
    """The keys are not the user's own, are readable by others, or the session's token is wrong."""

    code = "unauthorized"


class BrokerUnavailable(BrokerError):
    """No broker answers, none can be started, or the one that answers cannot do its work now."""

    code = "broker_unavailable"


class PortHeld(BrokerUnavailable):
    """The port is bound by a program that is not a broker of this data directory."""

    def __init__(self, port: int, holder: str = "") -> None:
        """`holder`: that program, as far as it is known."""
        who = f"it is {holder}; " if holder else ""
        ours = holder.startswith("a zmqbus broker ")  # a healthy broker, which should not be ended
        super().__init__(
            f"port {port} is held by another program; {who}{'' if ours else 'end it, or '}choose another port with "
            "--port or INTER_SESSION_PORT"
        )
        self.port = port


class ProtocolError(ZmqbusError):
    """A peer sent what docs/protocol.md does not allow."""

    code = "protocol"


#: Code on the wire → class.
BY_CODE: dict[str, type[ZmqbusError]] = {
    NameTaken.wire_code: NameTaken,
} | {
    error.code: error
    for error in (
        UnknownPeer,
        Ambiguous,
        InvalidName,
        InvalidLabel,
        InvalidPayload,
        TextTooLong,
        RateLimited,
        Unauthorized,
        NotConnected,
        BrokerUnavailable,
        Timeout,
        Poisoned,
        ProtocolError,
    )
}


def from_code(code: str, text: str) -> ZmqbusError:
    """The error for a refusal with this code; `BrokerError` for an unknown code (of a newer broker)."""
    return BY_CODE.get(code, BrokerError)(text)
