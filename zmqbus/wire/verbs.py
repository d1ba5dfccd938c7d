"""The wire: verbs, envelopes and the limits. `docs/protocol.md` says the same in prose, and is normative.

Theory of operation
===================

One ZeroMQ message carries one or more *envelopes*:

    frame 0    a msgpack array of envelopes; each is an array [verb, field, field, …, body?]
    frame 1…   the bodies that were too large to stand inside, in the order of their envelopes

How an envelope becomes frames, and how frames are trusted, is in `codec`.

Rules that hold for every verb:

* An envelope is a `NamedTuple` whose fields, in order, are the wire's. The annotations are the type check: what comes
  from a peer either fits them or is a `ProtocolError`. (A named tuple costs 0.2 µs and its class next to nothing to
  import; a frozen dataclass 0.7 µs and 8 ms for a command that lives for 40.)
* Frames, and the number of parts in them, are bounded before anything is made of them; strings and lists by
  `FIELD_CHARS` and `FIELD_PARTS`, on both sides.
* The body, where a verb has one, is the last field.
* `msg_id` is made by the sender, so that sending again is harmless.
* HELLO's first two fields and REFUSED are the same in every version for ever, so that the two ends can always tell
  each other that they do not understand each other.

This module has no `from __future__ import annotations`: the codec reads the annotations at run time.
"""

import os
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from zmqbus.errors import InvalidLabel, InvalidName, InvalidPayload, TextTooLong, ZmqbusError
from zmqbus.tuples import NamedTuple
from zmqbus.wire.msg_ids import MSG_ID_LENGTH as MSG_ID_LENGTH
from zmqbus.wire.msg_ids import IdMaker as IdMaker
from zmqbus.wire.msg_ids import are_msg_ids as are_msg_ids
from zmqbus.wire.msg_ids import is_msg_id as is_msg_id

#: Version of the wire, told in HELLO and WELCOME. It rises only when an old peer would misread a new one.
VERSION = 2

# --- limits -----------------------------------------------------------------------------------------------------

#: Largest body to one receiver: what a person would call a large file, and well under the frame limit.
MAX_BODY_BYTES = 10 * 1024 * 1024
#: Largest body to many: each receiver has to read it.
MAX_BROADCAST_BYTES = 256 * 1024
#: Larger bodies are written to messages.log once and travel on as a pointer.
SPILL_BYTES = 64 * 1024
#: Larger bodies get a frame of their own: from here on a copy costs more than a frame.
INLINE_BYTES = 4 * 1024
#: libzmq's backstop for one frame (it disconnects the sender of a larger one). Nothing legal comes near.
MAX_FRAME_BYTES = 16 * 1024 * 1024
#: Envelopes in one message: the rate is flat from about 128 on, and a bound keeps the pauses short.
MAX_BATCH = 512
#: Messages in one SENDS, DELIVERS or BROADCASTS: from here on a message costs no less for being with more of them.
MAX_RUN = 256
#: Bodies in one message, so that a batch stays far below what a slow peer could choke on.
MAX_BATCH_BYTES = 1024 * 1024
#: The first frame of a message, with all its envelopes: a full batch (`MAX_BATCH`, `MAX_BATCH_BYTES`) whose strings
#: are all as long as they may be has less.
MAX_HEADER_BYTES = 4 * 1024 * 1024
#: Parts of that frame, arrays and what is in them, at whatever depth: what a decoder makes an object of, at up to 70
#: bytes each. A full batch has half of it.
MAX_PARTS = 128 * 1024
#: Parts of one array,
MAX_ARRAY = 4 * 1024
#: and of one that goes to the broker, where a list has a thousand ids at most.
MAX_LIST = 2 * 1024
#: Longest body that is put down in a file (SPOOLED), as it is spelled there: the broker reads it at once.
MAX_SPELLED_BYTES = 16 * 1024 * 1024
#: How large such a file may be: what a client may have unconfirmed, and as much again for escapes and gaps.
MAX_SPOOL_BYTES = 48 * 1024 * 1024
#: Sessions in one SESSIONS envelope; longer lists are paged, so that no reply is large.
LIST_PAGE = 200


#: Characters of each field that is a string, or a list of strings, whatever the verb. Who says an envelope checks it
#: against this (`check_fields`), since nobody else can say so well what is wrong; and the broker checks what it hears.
#: What else holds for a field (names, labels, ids) is no matter of its length, and is said where it is asked.
FIELD_CHARS: dict[str, int] = {
    "after": 64,
    "cwd": 4_096,  # PATH_MAX of Linux
    "file": 32,
    "group": 40,
    "groups": 40,
    "label": 240,  # 60 in NFC, of which each may be four characters before
    "lease": 64,
    "msg_id": 12,
    "msg_ids": 12,
    "answered": 12,
    "holding": 12,
    "name": 40,
    "owner": 256,
    "project": 4_096,
    "ref": 64,
    "release": 64,
    "reply_to": 12,
    "session_id": 36,
    "target": 4_096,  # a project's path is the longest
    "token": 64,
    "topics": 40,
}
#: Parts of each field that is a list, where that is less than `MAX_LIST`.
FIELD_PARTS: dict[str, int] = {"bodies": MAX_RUN, "groups": 256, "topics": 256}


def check_size(size_bytes: int, *, to_many: bool) -> None:
    """Raises `TextTooLong` for a body over the limit of its audience. The sender asks before it sends, and the broker
    does not take its word for it."""
    limit_bytes = MAX_BROADCAST_BYTES if to_many else MAX_BODY_BYTES
    if size_bytes > limit_bytes:
        raise TextTooLong(
            f"{size_bytes:,} bytes; the limit is {limit_bytes:,} bytes {'to many' if to_many else 'to one receiver'}; "
            "write it to a file and send the path with --file"
        )


# --- small vocabularies -----------------------------------------------------------------------------------------


class Role(IntEnum):
    """What a connection is on the bus, told in HELLO."""

    LISTENER = 0  #: the process of a session that shows its messages
    PROGRAM = 1  #: a session that is a Python program
    HELPER = 2  #: a short-lived command that acts as a session
    GUEST = 3  #: a script that speaks under a name and has no mailbox
    OBSERVER = 4  #: looks, and never speaks


class Scope(IntEnum):
    """How a message is addressed."""

    SESSION = 0
    ALL = 1
    PROJECT = 2
    TOPIC = 3
    GROUP = 4


#: Scopes that reach many: numbered, published, counted against the rate limit.
TO_MANY = frozenset((Scope.ALL, Scope.PROJECT, Scope.TOPIC))


class Format(IntEnum):
    """What the bytes of a body are."""

    TEXT = 0  #: UTF-8
    MSGPACK = 1
    BYTES = 2


#: How the journal calls the formats.
FORMAT_WORDS: dict[int, Literal["text", "msgpack", "bytes"]] = {
    Format.TEXT: "text",
    Format.MSGPACK: "msgpack",
    Format.BYTES: "bytes",
}


class State(IntEnum):
    """What became of a message, in RECEIPT."""

    DELIVERED = 0  #: the receiving application has taken it
    AWAY = 1  #: queued; the receiver is not connected
    BUSY = 2  #: queued; the receiver is connected and has not taken it within a second


Pointer: TypeAlias = tuple[int, ...]
"""Where a spilled body's record stands in the journal: (segment, offset, length, crc)."""

# --- client → broker --------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """The first envelope of a connection: who it is. Answered by WELCOME or REFUSED(ref="hello").

    `lease`: the one that this client had before, so that what the broker still keeps under it ends.
    `named`: somebody chose the name; else the session is forgotten with its process. Left out of the wire where it is
    true, as by clients that do not know it.
    """

    version: int
    release: str
    role: int
    session_id: str | None
    token: str | None
    name: str | None
    label: str | None
    cwd: str
    project: str
    pid: int
    owner: str
    topics: tuple[str, ...]
    groups: tuple[str, ...]
    lease: str | None
    named: bool = True


class Bye(NamedTuple):
    """The connection ends in good order. Not answered."""


class Ping(NamedTuple):
    """I am alive, and this is the lease and the name that I go by. Answered only where one of them is wrong."""

    lease: str
    name: str


class Send(NamedTuple):
    """Pass this body on. Answered by RECEIPT, TALLY (to many) or REFUSED, with the message's id.

    `again`: said before, and never answered; perhaps to a broker that died.
    """

    msg_id: str
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    again: bool
    body: bytes


class Sends(NamedTuple):
    """Pass these bodies on, in this order: as many SENDs that differ in their ids and bodies only, answer nothing and
    are said for the first time. Answered as those would be. No body is over `INLINE_BYTES`."""

    scope: int
    target: str
    fmt: int
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


class Await(NamedTuple):
    """The answer to this message of mine is for this connection, not for the mailbox. Not answered."""

    msg_id: str


class Ack(NamedTuple):
    """The application has taken everything up to mailbox number `seq`, and the published broadcasts of these numbers.

    The first is cumulative since one connection carried them in order; the second is not, since a PUB may drop.
    """

    seq: int
    bcasts: tuple[int, ...]


class Refill(NamedTuple):
    """These broadcasts have not come: send what I am owed, up to the last of them, over this connection.

    Answered by DELIVERs in the order of their numbers, then by BEAT.
    """

    bcasts: tuple[int, ...]


class List(NamedTuple):
    """Who is there? `after` is the session id that ended the page before, or ""."""

    ref: str
    everyone: bool
    after: str


class Rename(NamedTuple):
    """The session I act for takes another name."""

    ref: str
    name: str


class Disconnect(NamedTuple):
    """End the listener of the session I act for, and free its name."""

    ref: str


class Fetch(NamedTuple):
    """Give me the unread messages of the session I act for; with `peek` they stay unread."""

    ref: str
    peek: bool


class Preview(NamedTuple):
    """Show me the beginning of the oldest unread messages of the session I act for: at most so many, of each body at
    most so many bytes. They stay unread. Answered by PREVIEWS."""

    ref: str
    messages: int
    head_bytes: int


class MarkRead(NamedTuple):
    """The session has been shown these messages, of which PREVIEWS told: they leave its mailbox. Answered by DONE."""

    ref: str
    msg_ids: tuple[str, ...]


class Recalled(NamedTuple):
    """Answer to RECALL: what I had not shown is the mailbox's again."""

    generation: int


class Status(NamedTuple):
    """How is the broker? Answered by HEALTH."""

    ref: str


class Stop(NamedTuple):
    """Broker, end. Answered by DONE, then it is gone."""

    ref: str


class Request(NamedTuple):
    """Hand this to one worker of the group. Answered by RESULT or REFUSED, with this id, and by nothing before that.

    `patient`: it may wait until the group has a worker; else it is refused where there is none. `again`: as in SEND.
    """

    msg_id: str
    group: str
    fmt: int
    patient: bool
    again: bool
    body: bytes


class Withdraw(NamedTuple):
    """I wait for the answers to these requests no longer. Not answered."""

    msg_ids: tuple[str, ...]


class Offer(NamedTuple):
    """I work for my groups, and hold up to `credit` unanswered requests at a time; 0: I take no more. Not answered.

    The first one of a connection names what its worker has from before: requests that it is `holding`, and requests
    that it has `answered`, perhaps to nobody, and whose answers it can give again. Later ones leave both empty.
    """

    credit: int
    holding: tuple[str, ...]
    answered: tuple[str, ...]


class Answer(NamedTuple):
    """The answer to a WORK. Not answered itself."""

    msg_id: str
    fmt: int
    body: bytes


class Unawait(NamedTuple):
    """The answers to these messages of mine, which I have AWAITed, are awaited no longer. Not answered."""

    msg_ids: tuple[str, ...]


class Forget(NamedTuple):
    """End this session for good: its name is free, and its mailbox is given up.

    It names the session and proves that it may, since it is the last word of a client that may have lost its lease."""

    ref: str
    session_id: str
    token: str


class Spooled(NamedTuple):
    """SEND, with its body in a file: `size_bytes` of it, spelled as in the journal, are `length` bytes from `offset` on
    in the sender's `file`, and have this checksum. Never said again: that is SEND.

    Only to a broker of one's own release, as WELCOME tells it.
    """

    msg_id: str
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    size_bytes: int
    file: str
    offset: int
    length: int
    crc: int


class Remove(NamedTuple):
    """End a session that is away, whoever's it is, with its mail: at most `unread` messages; -1: however many."""

    ref: str
    session_id: str
    unread: int


# --- broker → client --------------------------------------------------------------------------------------------


class Faulty(NamedTuple):
    """What a decoder makes of an envelope whose fields are not what they have to be, so that what stands beside it in
    its message does not pay for it. Never on the wire. `refs`: what a refusal of it refers to."""

    verb: str
    refs: tuple[str, ...]
    reason: str


class Welcome(NamedTuple):
    """You are in. The lease is good until a newer HELLO for the session, or until you fall silent."""

    version: int
    release: str
    epoch: str
    session_id: str
    name: str
    lease: str
    peer: int
    pub_port: int
    bcast: int
    waiting: int


class Refused(NamedTuple):
    """Not done, and why. `ref` is the message's id, the request's ref, "hello", or "" for what could not be read."""

    ref: str
    code: str
    text: str


class Expired(NamedTuple):
    """I do not know this connection (any more): say HELLO."""


class Probe(NamedTuple):
    """I have not heard from you for a while. A client that is READY answers with PING; one that is busy, or stopped,
    need not: only a connection that is gone ends."""


class Displaced(NamedTuple):
    """Another process has taken this session over: close."""

    by_pid: int


class Deliver(NamedTuple):
    """A message for you.

    `seq` counts the mailbox; `bcast` is the number of a published broadcast that is sent again this way, else 0;
    `after` is the published broadcast that precedes it, to be waited for, else 0; `age_s` is -1 for a message that did
    not wait. `size_bytes` is the size of the body, wherever that is.
    """

    seq: int
    bcast: int
    after: int
    msg_id: str
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    ts: float
    age_s: int
    pointer: tuple[int, ...] | None
    size_bytes: int
    body: bytes


class Delivers(NamedTuple):
    """Messages for you: as many DELIVERs, numbered from `seq` on, that differ in their numbers, ids and bodies only,
    were sent to this session alone, answer nothing and have not waited. No body is over `INLINE_BYTES`."""

    seq: int
    after: int
    from_session: str
    from_name: str
    from_label: str | None
    fmt: int
    ts: float
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


class Broadcast(NamedTuple):
    """A message for everyone on the channel but the peers in `spared`, who get it (or not) by another way.

    `prev` is the number of the broadcast before it on the same channel: whoever did not see that one asks for it.
    """

    epoch: str
    bcast: int
    prev: int
    spared: tuple[int, ...]
    msg_id: str
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    ts: float
    pointer: tuple[int, ...] | None
    body: bytes


class Broadcasts(NamedTuple):
    """As many BROADCASTs that differ in their numbers, ids and bodies only, and answer nothing. Their numbers rise by
    one, from `bcast` on, and each but the first has the one before it as its `prev`. No body is over `INLINE_BYTES`."""

    epoch: str
    bcast: int
    prev: int
    spared: tuple[int, ...]
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    ts: float
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


class Receipt(NamedTuple):
    """What became of messages to one receiver. `away_s` is how long it has been away."""

    state: int
    session_id: str
    name: str
    away_s: int
    msg_ids: tuple[str, ...]


class Tally(NamedTuple):
    """What became of a message to many. It is not for the sessions that `full` names, since their mailboxes are, nor
    for those in `unsaved`, for which the broker could not store it."""

    msg_id: str
    delivered: int
    queued: int
    full: tuple[str, ...] = ()
    unsaved: tuple[str, ...] = ()

    @property
    def without(self) -> tuple[str, ...]:
        """The sessions that it is not for, whyever."""
        return self.full + self.unsaved


class Sessions(NamedTuple):
    """A page of sessions; `more` says that another follows."""

    ref: str
    rows: tuple[tuple[Any, ...], ...]
    more: bool


class Done(NamedTuple):
    """The request is carried out; `text` says what came of it."""

    ref: str
    text: str


class Renamed(NamedTuple):
    """Your session goes by this name now."""

    name: str


class Disconnected(NamedTuple):
    """A helper of your session ended it: close."""


class Recall(NamedTuple):
    """Give back what you hold and have not shown (the mailbox is read elsewhere), and pass over these broadcasts,
    which may still be under way on the PUB; answer RECALLED."""

    generation: int
    bcasts: tuple[int, ...]


class Beat(NamedTuple):
    """Numbers of the broadcasts that were published to you and that you have not acknowledged, as far as number
    `upto`, the last there was when this was said."""

    epoch: str
    upto: int
    bcasts: tuple[int, ...]


class Fetched(NamedTuple):
    """End of the unread messages that FETCH asked for: `sent` of them have been, `left` are unread beyond them."""

    ref: str
    sent: int
    left: int


class Previews(NamedTuple):
    """The oldest unread messages, each as a `Previewed`, and how many are unread beyond them. None of them where a
    process of the session is connected, which shows them."""

    ref: str
    rows: tuple[tuple[Any, ...], ...]
    left: int


class Health(NamedTuple):
    """Figures of the broker, as pairs of a name and a value."""

    ref: str
    figures: tuple[tuple[Any, ...], ...]


class Work(NamedTuple):
    """A request for you, to be answered by ANSWER. `tries`: how many workers have gone with it before."""

    msg_id: str
    from_session: str
    from_name: str
    from_label: str | None
    group: str
    fmt: int
    ts: float
    tries: int
    pointer: tuple[int, ...] | None
    body: bytes


class Result(NamedTuple):
    """The answer to your REQUEST `msg_id`, from this worker. `answer_id` is its own id, in the journal."""

    msg_id: str
    answer_id: str
    from_session: str
    from_name: str
    fmt: int
    ts: float
    pointer: tuple[int, ...] | None
    body: bytes


class Assignment(NamedTuple):
    """Whether somebody works on this REQUEST of yours. Said when nobody works for its group, so that it waits for a
    worker; and when it has one after all."""

    msg_id: str
    has_worker: bool


class Withdrawn(NamedTuple):
    """Nobody wants your answers to these any more: they do not count as held."""

    msg_ids: tuple[str, ...]


Envelope: TypeAlias = (
    Hello
    | Bye
    | Ping
    | Send
    | Await
    | Ack
    | Refill
    | List
    | Rename
    | Disconnect
    | Fetch
    | Preview
    | MarkRead
    | Recalled
    | Status
    | Stop
    | Request
    | Withdraw
    | Offer
    | Answer
    | Unawait
    | Forget
    | Remove
    | Sends
    | Spooled
    | Welcome
    | Refused
    | Expired
    | Displaced
    | Deliver
    | Broadcast
    | Receipt
    | Tally
    | Sessions
    | Done
    | Renamed
    | Disconnected
    | Recall
    | Beat
    | Probe
    | Fetched
    | Previews
    | Health
    | Work
    | Result
    | Withdrawn
    | Assignment
    | Delivers
    | Broadcasts
    | Faulty
)

#: The verbs' numbers. Never reused; 1–31 go to the broker, 32–63 come from it.
VERBS: dict[int, type[Any]] = {
    1: Hello,
    2: Bye,
    3: Ping,
    4: Send,
    5: Ack,
    6: Refill,
    7: List,
    8: Rename,
    9: Disconnect,
    10: Fetch,
    11: Recalled,
    12: Status,
    13: Stop,
    14: Await,
    15: Request,
    16: Withdraw,
    17: Offer,
    18: Answer,
    19: Unawait,
    20: Forget,
    21: Sends,
    22: Spooled,
    23: Remove,
    25: Preview,
    26: MarkRead,
    32: Welcome,
    33: Refused,
    34: Expired,
    35: Displaced,
    36: Deliver,
    37: Broadcast,
    38: Receipt,
    39: Tally,
    40: Sessions,
    41: Done,
    42: Renamed,
    43: Disconnected,
    44: Recall,
    45: Beat,
    46: Fetched,
    47: Health,
    48: Work,
    49: Result,
    50: Withdrawn,
    51: Delivers,
    52: Broadcasts,
    53: Probe,
    54: Assignment,
    55: Previews,
}


def _limits(cls: type[Any]) -> tuple[tuple[int, str, int], ...]:
    """Position (the verb's number stands first), name and limit of those fields that `FIELD_CHARS` bounds."""
    fields = enumerate(cls.__annotations__.items(), start=1)
    return tuple((at, name, FIELD_CHARS[name]) for at, (name, kind) in fields if kind in (str, str | None))


#: Of each verb that a client says: the fields that are one string,
STRINGS = {cls: _limits(cls) for code, cls in VERBS.items() if code < 32}
#: and those that are lists: position, name, parts at most, and characters of a part where it is a string.
LISTS = {
    cls: tuple(
        (at, name, FIELD_PARTS.get(name, MAX_LIST), FIELD_CHARS.get(name))
        for at, (name, kind) in enumerate(cls.__annotations__.items(), start=1)
        if kind in (tuple[str, ...], tuple[int, ...], tuple[bytes, ...])
    )
    for code, cls in VERBS.items()
    if code < 32
}
#: What a field that is too long is refused as; anything else is an `InvalidPayload`.
_WRONG: dict[str, type[ZmqbusError]] = dict.fromkeys(("name", "target", "group", "groups", "topics"), InvalidName)
_WRONG["label"] = InvalidLabel


def check_fields(envelope: Any) -> None:
    """Raises what an envelope must not be said for: a string that is too long or cannot be encoded, a list that is too
    long. For its sender, before it is said. (A body has `check_size`.)"""
    for at, name, limit in STRINGS[envelope.__class__]:
        value = envelope[at - 1]
        if value is not None:
            _check_string(name, value, limit)
    for at, name, parts, each in LISTS[envelope.__class__]:
        values = envelope[at - 1]
        if len(values) > parts:
            raise _WRONG.get(name, InvalidPayload)(f"{len(values):,} {name}; the limit is {parts:,}")
        if each is not None:
            for value in values:
                _check_string(name, value, each)


def _check_string(name: str, value: str, limit: int) -> None:
    wrong = _WRONG.get(name, InvalidPayload)
    if len(value) > limit:
        raise wrong(f"{name} of {len(value):,} characters; the limit is {limit:,}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise wrong(f"{name} is not valid Unicode ({error.reason} at character {error.start})") from None


@lru_cache(maxsize=256)
def check_target(target: str) -> None:
    """As `check_fields`, of a message's target alone. Remembered, since who has much to say says it to few."""
    _check_string("target", target, FIELD_CHARS["target"])


def refs_of(cls: type[Any], fields: Sequence[Any]) -> tuple[str, ...]:
    """What a refusal of an envelope of this verb refers to, as far as that can be told: `fields` may hold anything."""
    if cls is Hello:
        return ("hello",)
    if cls is Sends:
        msg_ids = fields[3] if len(fields) > 3 and type(fields[3]) is tuple else ()
        return tuple(one for one in msg_ids if type(one) is str and len(one) <= FIELD_CHARS["msg_id"]) or ("",)
    named = cls._fields[:1] in (("msg_id",), ("ref",)) and cls is not Await
    if named and fields and type(fields[0]) is str and len(fields[0]) <= FIELD_CHARS["ref"]:
        return (fields[0],)
    return ("",)


class Session(NamedTuple):
    """One row of SESSIONS."""

    name: str
    label: str | None
    project: str
    cwd: str
    state: str
    since: float
    session_id: str
    pid: int
    waiting: int
    away_s: int


class Previewed(NamedTuple):
    """One row of PREVIEWS."""

    msg_id: str
    from_session: str
    from_name: str
    from_label: str | None
    scope: int
    target: str
    fmt: int
    reply_to: str | None
    ts: float
    age_s: int
    pointer: tuple[int, ...]
    size_bytes: int  #: of the whole body
    head: bytes  #: its beginning; empty where the body is in the journal alone


# --- channels of the PUB socket ---------------------------------------------------------------------------------
# A SUB filter is a prefix, so each channel ends with a terminator that none of its parts may hold, and the receiver
# compares the whole again.

EVERYONE = b"*\0"
MARK = b"~"


def channel(scope: int, target: str) -> bytes:
    """The channel that a message to many is published on."""
    if scope == Scope.ALL:
        return EVERYONE
    return (b"/" if scope == Scope.PROJECT else b"#") + target.encode() + b"\0"


def name_channel(name: str) -> bytes:
    """The channel on which the broker speaks to the session of this name."""
    return b"@" + name.encode() + b"\0"


def mark_channel(lease: str) -> bytes:
    """Nothing is published here. A client subscribes to it last, and so tells the broker that all its subscriptions
    are in force; when the subscription goes, the connection has gone. (libzmq sends filters that were set before the
    connection in the order of their bytes, and again so after a reconnect: `~` sorts behind all the others.)"""
    return MARK + lease.encode() + b"\0"


# --- secrets and session ids -------------------------------------------------------------------------------------


def new_token() -> str:
    """A secret of 128 bits, in hex: session tokens, leases, epochs."""
    return os.urandom(16).hex()


def new_session_id() -> str:
    """A random UUID (version 4, RFC 9562), without the import of `uuid` that every command would pay for."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    return session_id_of(raw)


def session_id_of(raw: bytes | bytearray) -> str:
    """These 16 bytes in the form of a session id, which is that of a UUID."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
