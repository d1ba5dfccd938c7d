"""The verbs of the wire: their fields, and the one table of them. `docs/protocol.md` is normative and says the same.

Theory of operation
===================

One ZeroMQ message carries one or more *envelopes*:

    frame 0    a msgpack array of envelopes; each is an array [verb, field, field, …, body or bodies?]
    frame 1…   the bodies that were too large to stand inside, in the order of their envelopes

The codec (`codec`) turns envelopes into frames, and checks the frames of a peer.

Rules that hold for every verb:

* An envelope is a `NamedTuple` whose fields, in order, are the wire's. The annotations are the type check: what a peer
  sends either fits them or is a `ProtocolError`. (A named tuple costs 0.2 µs and its class next to nothing to import; a
  frozen dataclass 0.7 µs and 8 ms for a command that lives for 40.)
* Frames, and the number of parts in them, are bounded before anything is made of them; strings and lists by
  `FIELD_CHARS` and `FIELD_PARTS`, on both sides.
* A message is a batch of one: SEND, DELIVER and BROADCAST hold one message or more under one header.
* The body or the bodies, where a verb has them, are the last field.
* The sender makes a message's id, so that sending again is harmless.
* HELLO's first two fields and REFUSED are the same in every version for ever, so that the two ends can always tell
  each other that they do not understand each other.

A new verb is a class here, a row in `TABLE`, a handler at its receiver, and a section in docs/protocol.md.

This module has no `from __future__ import annotations`: the codec reads the annotations at run time.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from zmqbus.errors import InvalidLabel, InvalidName, InvalidPayload, ZmqbusError
from zmqbus.tuples import NamedTuple
from zmqbus.wire.channels import EVERYONE as EVERYONE
from zmqbus.wire.channels import MARK as MARK
from zmqbus.wire.channels import channel as channel
from zmqbus.wire.channels import mark_channel as mark_channel
from zmqbus.wire.channels import name_channel as name_channel
from zmqbus.wire.header import AGENT_STATES as AGENT_STATES
from zmqbus.wire.header import FORMAT_WORDS as FORMAT_WORDS
from zmqbus.wire.header import SYSTEM_TOPICS as SYSTEM_TOPICS
from zmqbus.wire.header import TO_MANY as TO_MANY
from zmqbus.wire.header import Format as Format
from zmqbus.wire.header import Header as Header
from zmqbus.wire.header import Pointer as Pointer
from zmqbus.wire.header import Role as Role
from zmqbus.wire.header import Scope as Scope
from zmqbus.wire.header import State as State
from zmqbus.wire.limits import FIELD_CHARS as FIELD_CHARS
from zmqbus.wire.limits import FIELD_PARTS as FIELD_PARTS
from zmqbus.wire.limits import INLINE_BYTES as INLINE_BYTES
from zmqbus.wire.limits import LIST_PAGE as LIST_PAGE
from zmqbus.wire.limits import MAX_ARRAY as MAX_ARRAY
from zmqbus.wire.limits import MAX_BATCH as MAX_BATCH
from zmqbus.wire.limits import MAX_BATCH_BYTES as MAX_BATCH_BYTES
from zmqbus.wire.limits import MAX_BODY_BYTES as MAX_BODY_BYTES
from zmqbus.wire.limits import MAX_BROADCAST_BYTES as MAX_BROADCAST_BYTES
from zmqbus.wire.limits import MAX_ENVELOPE_MESSAGES as MAX_ENVELOPE_MESSAGES
from zmqbus.wire.limits import MAX_FRAME_BYTES as MAX_FRAME_BYTES
from zmqbus.wire.limits import MAX_HEADER_BYTES as MAX_HEADER_BYTES
from zmqbus.wire.limits import MAX_LIST as MAX_LIST
from zmqbus.wire.limits import MAX_PARTS as MAX_PARTS
from zmqbus.wire.limits import MAX_SPELLED_BYTES as MAX_SPELLED_BYTES
from zmqbus.wire.limits import MAX_SPOOL_BYTES as MAX_SPOOL_BYTES
from zmqbus.wire.limits import SPILL_BYTES as SPILL_BYTES
from zmqbus.wire.limits import check_size as check_size
from zmqbus.wire.msg_ids import MSG_ID_LENGTH as MSG_ID_LENGTH
from zmqbus.wire.msg_ids import IdMaker as IdMaker
from zmqbus.wire.msg_ids import are_msg_ids as are_msg_ids
from zmqbus.wire.msg_ids import is_msg_id as is_msg_id

#: Version of the wire, told in HELLO and WELCOME. It rises only when an old peer would misread a new one.
VERSION = 3

# --- client → broker --------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """The first envelope of a connection: who it is. Answered by WELCOME or REFUSED(ref="hello").

    `lease`: the one that this client had before, so that the broker ends the connection that still has it.
    `named`: somebody chose the name; else the session is forgotten with its process.
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
    """Pass on these messages, in this order: one or more that differ only in id and body. Answered by RECEIPT, by TALLY
    (to many), or by REFUSED for each.

    A message stands alone where it has `reply_to`, `again` or `file`. `again`: sent before, and never answered; perhaps
    to a broker that died. `file`: the body, escaped as in the journal, is in this spool file of the sender, and not in
    `bodies`; `piece` is its size, and offset, length and CRC-32 of the escaped form.
    """

    scope: int
    target: str
    fmt: int
    reply_to: str | None
    again: bool
    file: str | None
    piece: tuple[int, ...] | None
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]

    @classmethod
    def one(
        cls, msg_id: str, scope: int, target: str, fmt: int, reply_to: str | None, again: bool, body: bytes
    ) -> "Send":
        """Returns a SEND of one message."""
        return cls(scope, target, fmt, reply_to, again, None, None, (msg_id,), (body,))

    def apart(self) -> "list[Send]":
        """Returns a SEND for each message."""
        return [
            self._replace(msg_ids=(msg_id,), bodies=(body,))
            for msg_id, body in zip(self.msg_ids, self.bodies, strict=True)
        ]


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
    most so many bytes. They stay unread. Answered by PREVIEWS: with `wait`, as soon as a message is unread, or the
    session is no longer away."""

    ref: str
    messages: int
    head_bytes: int
    wait: bool = False


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


class Remove(NamedTuple):
    """End any session that is away, with its mail: at most `unread` messages; -1: any number."""

    ref: str
    session_id: str
    unread: int


class SetState(NamedTuple):
    """What the session's agent does now: a word of `AGENT_STATES`. Answered by DONE."""

    ref: str
    state: str
    since: float  #: wall clock, s: a repeat after a broker's end keeps the age
    detail: str  #: of a blocked agent: what it waits for


class Until(NamedTuple):
    """Answer with DONE once the agent of the session that `target` names is in one of these states; its detail is the
    state. A long poll: the client repeats it after each HELLO, as it does with any request."""

    ref: str
    target: str
    states: tuple[str, ...]


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
    """Messages for you, one or more, that share a header.

    `seq` is the mailbox number of the first, and those behind it follow. `bcast` is the number of a published broadcast
    that is sent again this way, else 0; `after` is the published broadcast that precedes the first, to be waited for,
    else 0; `age_s` is -1 for messages that did not wait. `pointer`: the body is in the journal. `size_bytes` is the
    size of all bodies, wherever they are. A message stands alone where it has `bcast`, a `pointer`, or an age.
    """

    header: Header
    seq: int
    bcast: int
    after: int
    age_s: int
    pointer: tuple[int, ...] | None
    size_bytes: int
    msg_ids: tuple[str, ...]
    bodies: tuple[bytes, ...]


class Broadcast(NamedTuple):
    """Messages, one or more, for everyone on the channel but the peers in `spared`, who get them by DELIVER, or not.

    `bcast` is the number of the first; the numbers of the others follow. `prev` is the number of the broadcast before
    the first on the same channel, and each of the others has the one before it as its `prev`: a receiver that did not
    see that one asks for it. A message stands alone where it has a `pointer`.
    """

    header: Header
    epoch: str
    bcast: int
    prev: int
    spared: tuple[int, ...]
    pointer: tuple[int, ...] | None
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
        """The sessions that the message is not for, for either reason."""
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


class Notice(NamedTuple):
    """What happened to a session, for those who joined the topic: ephemeral, neither stored nor repeated. Comes by the
    PUB, on the topic's channel."""

    topic: str  #: one of `SYSTEM_TOPICS`
    session_id: str
    name: str
    change: str  #: `came`, `went`, `renamed`; or the agent's state
    detail: str  #: the former name; or what a blocked agent waits for
    ts: float


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
    | SetState
    | Until
    | Faulty
    | Welcome
    | Refused
    | Expired
    | Probe
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
    | Fetched
    | Previews
    | Health
    | Work
    | Result
    | Assignment
    | Withdrawn
    | Notice
)


# --- the table ----------------------------------------------------------------------------------------------------


class Verb(NamedTuple):
    """A row of the table. Numbers are never reused; 1–31 go to the broker, 32–63 come from it."""

    code: int
    cls: type[Any]
    roles: frozenset[Role] = frozenset()  #: whose connections may send it
    #: What a refusal of it refers to: the field that holds the correlation id or ids, or a fixed word; "": nothing.
    correlation: str = ""
    unregistered: bool = False  #: also from a connection that has not said HELLO, or whose lease is over

    @property
    def name(self) -> str:
        return str(self.cls.__name__.upper())

    @property
    def from_broker(self) -> bool:
        return self.code >= 32


_ALL = frozenset(Role)
_MEMBER = frozenset((Role.LISTENER, Role.PROGRAM))
_HELPER = frozenset((Role.HELPER,))
_SESSION = _MEMBER | _HELPER
_COMMAND = _HELPER | {Role.GUEST}
_SENDERS = _SESSION | {Role.GUEST}

TABLE = (
    Verb(1, Hello, _ALL, "hello", unregistered=True),
    Verb(2, Bye, _ALL),
    Verb(3, Ping, _ALL),
    Verb(4, Send, _SENDERS, "msg_ids"),
    Verb(5, Ack, _SENDERS),
    Verb(6, Refill, _MEMBER),
    Verb(7, List, _ALL, "ref"),
    Verb(8, Rename, _SESSION, "ref"),
    Verb(9, Disconnect, _SESSION, "ref"),
    Verb(10, Fetch, _HELPER, "ref"),
    Verb(11, Recalled, _MEMBER),
    Verb(12, Status, _ALL, "ref"),
    Verb(13, Stop, _ALL, "ref"),
    Verb(14, Await, _COMMAND),
    Verb(15, Request, _SENDERS, "msg_id"),
    Verb(16, Withdraw, _SENDERS),
    Verb(17, Offer, _MEMBER),
    Verb(18, Answer, _MEMBER, "msg_id"),
    Verb(19, Unawait, _COMMAND),
    Verb(20, Forget, _SESSION, "ref", unregistered=True),
    Verb(23, Remove, _ALL, "ref"),
    Verb(25, Preview, _HELPER, "ref"),
    Verb(26, MarkRead, _HELPER, "ref"),
    Verb(27, SetState, _SESSION, "ref"),
    Verb(28, Until, _ALL, "ref"),
    Verb(32, Welcome),
    Verb(33, Refused),
    Verb(34, Expired),
    Verb(35, Displaced),
    Verb(36, Deliver),
    Verb(37, Broadcast),
    Verb(38, Receipt),
    Verb(39, Tally),
    Verb(40, Sessions),
    Verb(41, Done),
    Verb(42, Renamed),
    Verb(43, Disconnected),
    Verb(44, Recall),
    Verb(45, Beat),
    Verb(46, Fetched),
    Verb(47, Health),
    Verb(48, Work),
    Verb(49, Result),
    Verb(50, Withdrawn),
    Verb(53, Probe),
    Verb(54, Assignment),
    Verb(55, Previews),
    Verb(56, Notice),
)
VERBS: dict[int, type[Any]] = {verb.code: verb.cls for verb in TABLE}
#: Which verbs the connections of a role may send.
SENT_BY: dict[Role, frozenset[type[Any]]] = {
    role: frozenset(verb.cls for verb in TABLE if role in verb.roles) for role in Role
}
#: Verbs accepted from a connection that has no lease; any other verb of it is answered by EXPIRED.
UNREGISTERED = frozenset(verb.cls for verb in TABLE if verb.unregistered)
_CORRELATION: dict[type[Any], str] = {verb.cls: verb.correlation for verb in TABLE}


def _limits(cls: type[Any]) -> tuple[tuple[int, str, int], ...]:
    """Returns position (the verb's number stands first), name and limit of each field that `FIELD_CHARS` bounds."""
    fields = enumerate(cls.__annotations__.items(), start=1)
    return tuple((at, name, FIELD_CHARS[name]) for at, (name, kind) in fields if kind in (str, str | None))


_LISTS = (tuple[str, ...], tuple[int, ...], tuple[int, ...] | None, tuple[bytes, ...])
#: Of each verb that a client sends: the fields that are one string,
STRINGS = {verb.cls: _limits(verb.cls) for verb in TABLE if not verb.from_broker}
#: and those that are lists: position, name, elements at most, and characters of an element where it is a string.
LISTS = {
    verb.cls: tuple(
        (at, name, FIELD_PARTS.get(name, MAX_LIST), FIELD_CHARS.get(name))
        for at, (name, kind) in enumerate(verb.cls.__annotations__.items(), start=1)
        if kind in _LISTS
    )
    for verb in TABLE
    if not verb.from_broker
}
#: The error for a field that is too long; any other field is an `InvalidPayload`.
_WRONG: dict[str, type[ZmqbusError]] = dict.fromkeys(("name", "target", "group", "groups", "topics"), InvalidName)
_WRONG["label"] = InvalidLabel


def check_fields(envelope: Any) -> None:
    """Raises the error for which an envelope must not be sent: a string or a list that is too long, or a string that
    cannot be encoded. The sender calls this first. (A body has `check_size`.)"""
    for at, name, limit in STRINGS[envelope.__class__]:
        value = envelope[at - 1]
        if value is not None:
            _check_string(name, value, limit)
    for at, name, parts, each in LISTS[envelope.__class__]:
        values = envelope[at - 1] or ()
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
    """Checks a message's target as `check_fields` does. Cached, since a busy sender has few targets."""
    _check_string("target", target, FIELD_CHARS["target"])


def refs_of(cls: type[Any], fields: Sequence[Any]) -> tuple[str, ...]:
    """Returns the correlation ids for a refusal of this envelope, as far as they can be told: `fields` may hold
    anything. At least one: "" if there is none."""
    name = _CORRELATION.get(cls, "")
    if name not in cls._fields:
        return (name,)
    at = cls._fields.index(name)
    found = fields[at] if at < len(fields) else ()
    if type(found) is str:
        found = (found,)
    if type(found) is not tuple:
        return ("",)
    return tuple(one for one in found if type(one) is str and len(one) <= FIELD_CHARS["ref"]) or ("",)


# --- rows ---------------------------------------------------------------------------------------------------------


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
    agent: str = "unknown"  #: what its agent does: one of `AGENT_STATES`
    agent_s: int = 0  #: for how long
    agent_detail: str = ""  #: of a blocked agent: what it waits for


class Previewed(NamedTuple):
    """One row of PREVIEWS: a message's id, the fields of its header, and the beginning of its body."""

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
    head: bytes  #: the beginning of the body; empty where that is in the journal alone


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
