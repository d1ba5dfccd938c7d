"""One tree of errors, told apart by whose fault they are.

The branches answer the question a caller has when something goes wrong: *who has to act?*

* `LocalError`: the caller. What it passed in, or what it has set up, cannot work; nothing left the process.
* `DeliveryError`: nobody is broken, but this message cannot go where it was to go (or not now).
* `BrokerError`: the bus. The broker cannot be reached, will not have us, or cannot do its work.
* `RemoteError`: the handler that was asked.
* `ProtocolError`: the peer on the wire broke docs/protocol.md. Never shown to users; the shell that reads the
  socket turns it into a refusal for the one who caused it.

Every error that a user can meet has a `code` from the contract (the word after `error:` on stderr); the wire
carries the same code, and `from_code` gives back the class.
"""

from __future__ import annotations

from typing import ClassVar


class ZmqbusError(Exception):
    """Root of all errors of this package. `str(error)` says what happened and what to do."""

    code: ClassVar[str] = "internal"
    index: int | None = None  #: of an error that `map` raises: the number of the item that failed, from 0
    item: object = None  #: and that item

    def __str__(self) -> str:
        # It quotes targets, candidates, paths and what others wrote, and is shown by whoever meets it: a command, a
        # log, the traceback of a program. One line, safe to show, wherever that is.
        text = super().__str__()
        if text.isascii() and text.isprintable():
            return text
        from zmqbus.text.display import sanitise

        return sanitise(text)  # guards: safe output [sanitise(text) => text]


class LocalError(ZmqbusError):
    """The caller's input or set-up is at fault; nothing was sent."""


class InvalidOption(LocalError, ValueError):
    """A flag or an argument was given that cannot be used. Commands end with exit status 2."""

    code = "usage"


class InvalidName(LocalError):
    """A session, topic or group name breaks the rule for names."""

    code = "invalid_name"


class NameTaken(InvalidName):
    """A connected session has the name. For users it is one way in which a name can be wrong; on the wire it has a code
    of its own, since a listener goes on under another name."""

    wire_code: ClassVar[str] = "name_taken"


class InvalidLabel(LocalError):
    """A label is too long or holds characters that labels may not hold."""

    code = "invalid_label"


class InvalidArgument(LocalError, TypeError, ValueError):
    """An argument of the Python API is not what it has to be; the message names it. It is Python's `TypeError` and
    `ValueError`, too."""

    code = "invalid_argument"


class InvalidPayload(LocalError):
    """A body is not what it claims to be: not UTF-8, not a file, not serialisable."""

    code = "invalid_payload"


class TextTooLong(LocalError):
    """A body is over the limit for its audience; the message names the limit."""

    code = "text_too_long"


class NotConnected(LocalError):
    """This process acts for a session, and there is none."""

    code = "not_connected"


class DeliveryError(ZmqbusError):
    """The bus works, but this message cannot go where it was to go."""


class UnknownPeer(DeliveryError):
    """No session answers to the target; the message names the nearest names."""

    code = "unknown_peer"


class Ambiguous(DeliveryError):
    """Several sessions answer to the target; the message lists them."""

    code = "ambiguous"


class RateLimited(DeliveryError):
    """Too many broadcasts in a minute, or the receiver's mailbox is full; the message says when to retry."""

    code = "rate_limited"


class Timeout(DeliveryError, TimeoutError):
    """No answer came in time. What was sent stays delivered or queued."""

    code = "timeout"


class Poisoned(DeliveryError):
    """A request that several workers have died with, one after the other, is given to no more of them."""

    code = "poisoned"


class Overloaded(LocalError):
    """More is outstanding than a program may have; take some answers first."""

    code = "overloaded"


class ForkedBus(LocalError):
    """A bus is used in a child of the process that opened it."""

    code = "forked"


class RemoteError(ZmqbusError):
    """The handler at the other end has raised an exception: its type, text and traceback.

    A branch of its own: nothing was wrong with the bus, nor with the message.
    """

    code = "remote_error"

    def __init__(self, kind: str, text: str, traceback: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind  #: name of the exception's class
        self.text = text  #: what `str(error)` was
        self.traceback = traceback  #: as Python prints it

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, str, str]]:
        return RemoteError, (self.kind, self.text, self.traceback)


class BrokerError(ZmqbusError):
    """The broker is the one that cannot, or will not."""


class Unauthorized(BrokerError):
    """The keys are not the user's own, are readable by others, or the session's token is wrong."""

    code = "unauthorized"


class BrokerUnavailable(BrokerError):
    """No broker answers, none can be started, or the one that answers cannot do its work now."""

    code = "broker_unavailable"


class PortHeld(BrokerUnavailable):
    """The port is bound by something that is not a broker of this data directory."""

    def __init__(self, port: int, holder: str = "") -> None:
        """`holder`: which program that is, as far as it is known."""
        who = f"it is {holder}; " if holder else ""
        ours = holder.startswith("a zmqbus broker ")  # which is well: nothing to be ended
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
    """The error that a refusal with `code` stands for; an unknown code (a newer broker's) is a `BrokerError`."""
    return BY_CODE.get(code, BrokerError)(text)
