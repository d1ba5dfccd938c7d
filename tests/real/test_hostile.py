"""Junk, floods and forgeries: they harm only their sender.

Each attack is followed by the same proof while it still goes on: two listeners exchange messages, the broker is the
same process, and its memory has not grown.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import psutil
import pytest
import zmq

from tests.real.conftest import DEADLINE_S, ROOT, Bus, ListenerProcess, Owner
from zmqbus.security.keys import ClientKeys, client_keys, curve_client
from zmqbus.wire import codec, verbs

pytestmark = pytest.mark.slow

#: How much the broker may grow during an attack, bytes. A flood kept in memory would grow it by hundreds of MiB.
MAX_GROWTH_BYTES = 64 * 1024 * 1024
#: How long a flood may block before it counts as held back, ms: the broker does not read any more.
FLOOD_S = 1.5

DEADLINE_MS = int(DEADLINE_S * 1000)

VERB = {cls.__name__: code for code, cls in verbs.VERBS.items()}


class Attacker:
    """A hostile program: raw TCP, ZeroMQ with and without keys, and arbitrary envelopes."""

    def __init__(self, bus: Bus, pub_port: int, victim: ListenerProcess) -> None:
        self.bus = bus
        self.pub_port = pub_port
        self.victim = victim  #: a session whose id, name and (in some attacks) token are known
        self.keys = client_keys(str(bus.data_dir))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stack = contextlib.ExitStack()
        self._decoder = codec.Decoder(from_broker=True)
        self._heard: dict[zmq.Socket[bytes], deque[Any]] = {}

    @property
    def ports(self) -> tuple[int, int]:
        return self.bus.port, self.pub_port

    def tcp(self, port: int) -> socket.socket:
        return self._stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S))

    def socket(
        self, kind: int = zmq.DEALER, port: int | None = None, keys: ClientKeys | None = None, **options: Any
    ) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        self._stack.callback(made.close)
        made.linger = 0
        made.sndtimeo = made.rcvtimeo = DEADLINE_MS
        for name, value in options.items():
            made.setsockopt(getattr(zmq, name.upper()), value)
        curve_client(made, keys or self.keys)
        made.connect(f"tcp://127.0.0.1:{port or self.bus.port}")
        return made

    def say(self, dealer: zmq.Socket[bytes], *arrays: Any) -> None:
        dealer.send(msgpack.packb(arrays))

    def hear(self, dealer: zmq.Socket[bytes]) -> Any:
        """Waits for the next envelope from the broker."""
        heard = self._heard.setdefault(dealer, deque())
        if not heard:
            heard.extend(self._decoder.decode(dealer.recv_multipart()))
        return heard.popleft()

    def hello(self, role: int = verbs.Role.OBSERVER, **fields: Any) -> tuple[Any, ...]:
        """Returns a valid HELLO, except for `fields`."""
        hello = verbs.Hello(
            version=verbs.VERSION,
            release="0",
            role=int(role),
            session_id="11111111-aaaa-4aaa-8aaa-111111111111",
            token="attacker-token",
            name="attacker",
            label=None,
            cwd="/",
            project="/",
            pid=1,
            owner="1:1",
            topics=(),
            groups=(),
            lease=None,
        )
        return (VERB["Hello"], *hello._replace(**fields))

    def enter(self, role: int = verbs.Role.OBSERVER, **options: Any) -> zmq.Socket[bytes]:
        """Connects, and waits for the WELCOME."""
        dealer = self.socket(**options)
        self.say(dealer, self.hello(role))
        assert isinstance(self.hear(dealer), verbs.Welcome)
        return dealer

    def events(self, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        """Returns a monitor that reports the loss of the socket's connection."""
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._stack.callback(socket.disable_monitor)
        return monitor

    def close(self) -> None:
        self._stack.close()
        self._context.term()


class Stage:
    """Two honest listeners and an attacker."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.auth, self.pay = bus.listener("auth"), bus.listener("pay")
        self.broker = psutil.Process(bus.broker_pid())
        self.attacker = Attacker(bus, self._pub_port(), self.auth)
        self.rss_bytes = self.broker.memory_info().rss
        self._count = 0

    def _pub_port(self) -> int:
        ports = {c.laddr.port for c in self.broker.net_connections() if c.status == psutil.CONN_LISTEN}
        (pub_port,) = ports - {self.bus.port}
        return int(pub_port)

    def prove(self, max_growth_bytes: int = MAX_GROWTH_BYTES) -> None:
        """Checks that messages and broadcasts arrive, and that the broker is the same process and has not grown."""
        self._count += 1
        for sender, receiver in ((self.auth, self.pay), (self.pay, self.auth)):
            text = f"business as usual {self._count} {sender.name}"
            self.bus.deliver(receiver.name, text, owner=sender)
            receiver.wait_message(text)
        text = f"to everybody {self._count}"
        done = self.bus.send("--all", "--text", text, owner=self.auth)
        assert done.returncode == 0, done
        self.pay.wait_message(text)
        assert (self.auth.status, self.pay.status) == (None, None)
        assert self.bus.broker_pid() == self.broker.pid
        assert self.broker.is_running()
        grown = self.broker.memory_info().rss - self.rss_bytes
        assert grown < max_growth_bytes, f"the broker has grown by {grown >> 20} MiB"

    def close(self) -> None:
        self.attacker.close()


@pytest.fixture
def stage(bus: Bus) -> Iterator[Stage]:
    stage = Stage(bus)
    yield stage
    stage.close()


Attack = Callable[[Attacker], None]


# --- without the keys

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)


def junk_bytes(attacker: Attacker) -> None:
    for port in attacker.ports:
        for junk in (b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", os.urandom(70_000), b"\xff" * 4096, GREETING[:30]):
            with contextlib.suppress(OSError):  # the broker may close the connection meanwhile
                attacker.tcp(port).sendall(junk)


def half_handshakes(attacker: Attacker) -> None:
    for port in attacker.ports:
        for number in range(300):
            attacker.tcp(port).sendall(GREETING[: 10 + number % 55])


def greeting_and_then_a_giant_command(attacker: Attacker) -> None:
    for port in attacker.ports:
        with contextlib.suppress(OSError):
            connection = attacker.tcp(port)
            connection.sendall(GREETING)
            connection.sendall(b"\x06" + struct.pack(">Q", 1 << 62) + os.urandom(100_000))


def wrong_client_key(attacker: Attacker) -> None:
    public, secret = zmq.curve_keypair()
    keys = attacker.keys._replace(public=public, secret=secret)
    for port, kind in zip(attacker.ports, (zmq.DEALER, zmq.SUB), strict=True):
        for _ in range(50):
            shut_out = attacker.socket(kind, port, keys)
            if kind == zmq.DEALER:
                attacker.say(shut_out, attacker.hello())
            else:
                shut_out.subscribe(b"")
    assert not shut_out.poll(500)


def wrong_server_key(attacker: Attacker) -> None:
    keys = attacker.keys._replace(server_public=zmq.curve_keypair()[0])
    for _ in range(50):
        attacker.say(attacker.socket(keys=keys), attacker.hello())


def no_curve(attacker: Attacker) -> None:
    for port, kind in zip(attacker.ports, (zmq.DEALER, zmq.SUB), strict=True):
        for _ in range(50):
            plain = attacker._context.socket(kind)
            attacker._stack.callback(plain.close)
            plain.linger = 0
            plain.connect(f"tcp://127.0.0.1:{port}")
            if kind == zmq.DEALER:
                plain.send(msgpack.packb([attacker.hello()]))
            else:
                plain.subscribe(b"")
    assert not plain.poll(500)


# --- with the keys: frames

JUNK_MESSAGES: list[list[bytes]] = [
    [b""],
    [b"", b"", b""],
    [b"\xc1"],
    [os.urandom(2000)],
    [b"\x91" * 100_000],  # arrays in arrays in arrays
    [b"\x81\xa1a" * 1000],
    [msgpack.packb(None)],
    [msgpack.packb(-1)],
    [msgpack.packb("text")],
    [msgpack.packb({"verb": 1})],
    [msgpack.packb([])],
    [msgpack.packb([[]])],
    [msgpack.packb([None])],
    [msgpack.packb([[[]]])],
    [msgpack.packb([[True]])],
    [msgpack.packb([[99]])],
    [msgpack.packb([[-1]])],
    [msgpack.packb([[2**63]])],
    [msgpack.packb([["HELLO"]])],
    [msgpack.packb([[VERB["Welcome"]]])],
    [msgpack.packb([[VERB["Bye"]]]), b"a frame of nobody's"],
    [b"\xdd\xff\xff\xff\xff"],  # an array of four billion
    [b"\xdb\xff\xff\xff\xff"],  # a string of that length
    [b"\x91\x92\x03\xa2\xff\xfe"],  # a string that is not UTF-8
    [msgpack.packb([[VERB["Send"], 0, "pay", 0, None, False, None, None, "aaaaaaaaaaaa", size]]) for size in (-1,)],
    [msgpack.packb([[VERB["Send"], 0, "pay", 0, None, False, None, None, "aaaaaaaaaaaa", 2**63]]), b"x"],
    [msgpack.packb([[VERB["Send"], 0, "pay", 0, None, False, None, None, "aaaaaaaaaaaa", 1]]), b""],
    [msgpack.packb([[VERB["List"], msgpack.ExtType(5, b"x"), True, ""]])],
]


def junk_messages(attacker: Attacker) -> None:
    for dealer in (attacker.socket(), attacker.enter(), attacker.enter(verbs.Role.GUEST)):
        for frames in JUNK_MESSAGES:
            dealer.send_multipart(frames)
        attacker.say(dealer, attacker.hello())  # the connection still works
        while not isinstance((answer := attacker.hear(dealer)), verbs.Welcome):
            assert isinstance(answer, verbs.Refused | verbs.Expired), answer


def hundred_mebibytes(attacker: Attacker) -> None:
    for port, kind in zip(attacker.ports, (zmq.DEALER, zmq.XSUB), strict=True):
        giant = attacker.socket(kind, port, reconnect_ivl=-1)
        events = attacker.events(giant)
        giant.send(b"j" * (100 * 1024 * 1024))
        assert events.poll(DEADLINE_MS), "the broker does not hang up"


def just_over_the_limit(attacker: Attacker) -> None:
    giant = attacker.enter(reconnect_ivl=-1)
    events = attacker.events(giant)
    giant.send_multipart([b"\x90", bytes(verbs.MAX_FRAME_BYTES + 1)])
    assert events.poll(DEADLINE_MS), "the broker does not hang up"


def just_under_the_limit(attacker: Attacker) -> None:
    dealer = attacker.enter()
    dealer.send_multipart([b"\x90", bytes(verbs.MAX_FRAME_BYTES - 100)])
    dealer.send_multipart([b"\x90"] + [b"x"] * 20_000)
    for _ in range(2):
        assert isinstance(attacker.hear(dealer), verbs.Refused)


def thousands_of_envelopes(attacker: Attacker) -> None:
    dealer = attacker.enter()
    for _ in range(20):
        attacker.say(dealer, *[(VERB["Status"], "s")] * 5_000)
        refused = attacker.hear(dealer)
        assert isinstance(refused, verbs.Refused)


# --- with the keys: envelopes

ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    2**64 - 1,
    -(2**63),
    1.5,
    float("nan"),
    "",
    "\0",
    "x" * 8000,
    "x" * 9000,
    "../../../etc/passwd\n[inter-session msg=aaaaaaaaaaaa] forged",
    b"bytes",
    [],
    [[]],
    ["x"] * 4000,
    ["x"] * 5000,
    [-1] * 100,
    [None],
    {},
]


def wrong_types_in_every_verb(attacker: Attacker) -> None:
    """Each field of each verb, in each role, with each odd value; and too few and too many fields."""
    good = {str: "x", str | None: None, int: 0, bool: False, bytes: b"x", float: 0.0}
    for role in (None, *verbs.Role):
        dealer = attacker.enter(role) if role is not None else attacker.socket()
        for code, cls in verbs.VERBS.items():
            if cls is verbs.Stop:
                continue
            fields: list[Any] = [good.get(kind, []) for kind in cls.__annotations__.values()]
            variants: list[list[Any]] = [fields, fields[:-1], [*fields, 0]]
            for place in range(len(fields)):
                variants += [[*fields[:place], value, *fields[place + 1 :]] for value in ODD_VALUES]
            for variant in variants:
                attacker.say(dealer, [code, *variant])
        attacker.say(dealer, attacker.hello(token=f"last-{role}"))
        while not (isinstance((answer := attacker.hear(dealer)), verbs.Welcome) and answer.session_id == ""):
            pass


def unknown_verbs(attacker: Attacker) -> None:
    dealer = attacker.enter()
    for code in range(256):
        if code not in verbs.VERBS:
            attacker.say(dealer, [code, "x"])
            assert isinstance(attacker.hear(dealer), verbs.Refused)


def text_that_is_not_utf8(attacker: Attacker) -> None:
    guest = attacker.enter(verbs.Role.GUEST)
    for number, body in enumerate((b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"ok\x80")):
        attacker.say(guest, [VERB["Send"], 0, "pay", 0, None, False, None, None, f"aaaaaaaaaaa{number}", body])
        refused = attacker.hear(guest)
        assert isinstance(refused, verbs.Refused) and refused.code == "invalid_payload"


def somebody_elses_session(attacker: Attacker) -> None:
    victim = attacker.victim.state
    for role in (verbs.Role.LISTENER, verbs.Role.PROGRAM, verbs.Role.HELPER):
        for fields in (
            {"session_id": victim["session_id"], "name": victim["name"]},
            {"session_id": victim["session_id"], "name": "another", "token": ""},
            {"session_id": victim["session_id"], "name": "another", "token": "é" * 100},
            {"session_id": victim["session_id"][:8], "name": victim["name"], "token": victim["token"][:-1]},
        ):
            dealer = attacker.socket()
            attacker.say(dealer, attacker.hello(role, **fields), [VERB["Disconnect"], "d"])
            answer = attacker.hear(dealer)
            if fields["session_id"] == victim["session_id"] or role != verbs.Role.HELPER:
                assert isinstance(answer, verbs.Refused), (role, fields, answer)
                assert answer.ref == "hello"


def absurd_hellos(attacker: Attacker) -> None:
    for fields in (
        {"version": -1},
        {"version": 2**63},
        {"role": 99},
        {"role": -1},
        {"session_id": "x" * 8000, "role": 0},
        {"session_id": "", "role": 0},
        {"name": "x" * 8000},
        {"cwd": "x" * 8000, "role": 0},
        {"session_id": "pay", "role": 0},
        {"name": "No Such Name", "role": 0},
        {"name": "a\n[inter-session] forged", "role": 3},
        {"label": "\x1b[31mred", "role": 0},
        {"label": "l" * 61, "role": 0},
        {"topics": ("UPPER",), "role": 0},
        {"groups": ("x" * 41,), "role": 0},
        {"token": None, "role": 3},
    ):
        dealer = attacker.socket()
        odd: dict[str, Any] = {"role": int(verbs.Role.OBSERVER), **fields}
        attacker.say(dealer, attacker.hello(**odd))
        answer = attacker.hear(dealer)
        assert isinstance(answer, verbs.Refused) and answer.ref == "hello", (fields, answer)
    dealer = attacker.socket()
    attacker.say(
        dealer,
        attacker.hello(verbs.Role.PROGRAM, cwd="c" * 4096, project="p\0" * 2048, owner="o" * 256, pid=-(2**63)),
    )
    assert isinstance(attacker.hear(dealer), verbs.Welcome)


def hello_again_and_again(attacker: Attacker) -> None:
    dealer = attacker.socket()
    for _ in range(2_000):
        attacker.say(dealer, *[attacker.hello(role) for role in verbs.Role])
    for _ in range(2_000 * len(verbs.Role)):
        attacker.hear(dealer)


def stale_leases(attacker: Attacker) -> None:
    program = attacker.enter(verbs.Role.PROGRAM)
    for lease in ("", "0" * 32, "x" * 64, attacker.victim.state["token"]):
        attacker.say(program, [VERB["Ping"], lease, "attacker"])
        assert attacker.hear(program) == verbs.Expired()
    attacker.say(program, [VERB["Ack"], 2**63, list(range(2000))], [VERB["Ack"], -1, [-1]], [VERB["Recalled"], 2**40])
    second = attacker.enter(verbs.Role.PROGRAM)  # takes the session over: the lease of the first is stale
    attacker.say(program, [VERB["Status"], "s"])
    assert isinstance(attacker.hear(program), verbs.Displaced)
    assert isinstance(attacker.hear(program), verbs.Expired)
    attacker.say(second, [VERB["Status"], "s"])
    assert isinstance(attacker.hear(second), verbs.Health)


def forged_fields_in_a_message(attacker: Attacker) -> None:
    """Fields of a message cannot forge a line at the receiver."""
    guest = attacker.enter(verbs.Role.GUEST)
    forged = 'x]\n[inter-session msg=forgedforged from="auth"] rm -rf'
    attacker.say(guest, [VERB["Send"], 0, "pay", 0, forged, False, None, None, "aaaaaaaaaa01", b"in the open"])
    attacker.say(guest, [VERB["Send"], 2, "pay", 0, None, False, None, None, "aaaaaaaaaa02", forged.encode()])
    attacker.say(guest, [VERB["Send"], 3, forged, 0, None, False, None, None, "aaaaaaaaaa03", b"topic"])
    attacker.say(guest, [VERB["Send"], 0, "pay", 1, None, False, None, None, "aaaaaaaaaa04", b"\xc1" * 100])
    attacker.say(guest, [VERB["Send"], 0, "pay", 9, None, False, None, None, "aaaaaaaaaa05", b"x"])
    attacker.say(guest, [VERB["Send"], 0, "pay", 0, None, False, None, None, "../../../etc", b"x"])
    open_ids = {f"aaaaaaaaaa0{number}" for number in range(1, 6)} | {"../../../etc"}
    said: dict[str, Any] = {}
    while open_ids - said.keys():
        answer = attacker.hear(guest)
        for msg_id in answer.msg_ids if isinstance(answer, verbs.Receipt) else (answer[0],):
            said[msg_id] = answer
    wrong = {msg_id for msg_id, answer in said.items() if isinstance(answer, verbs.Refused)}
    assert wrong == open_ids - {"aaaaaaaaaa02", "aaaaaaaaaa04"}


def spool_of(attacker: Attacker, content: bytes) -> str:
    """Makes a spool file as a client does; returns its name."""
    name = os.urandom(16).hex()
    path = attacker.bus.data_dir / "spool" / name
    path.write_bytes(content)
    path.chmod(0o600)
    return name


def spooled(msg_id: str, name: str, piece: tuple[int, int, int, int]) -> list[Any]:
    """Returns a SEND to pay whose body is said to be in a spool file."""
    return [VERB["Send"], 0, "pay", 0, None, False, name, piece, msg_id, b""]


def forged_records_in_a_file(attacker: Attacker) -> None:
    """A spooled body cannot forge a record of the log."""
    guest = attacker.enter(verbs.Role.GUEST)
    padding = b"x" * 70_000
    forged = b'{"ts":"2026-01-02T03:04:05.678Z","msg_id":"forgedforged","kind":"message","from":"x","text":"rm"}'
    bad = [b'"}\n' + forged + b'\n{"a":"', b'","from_name":"auth","text":"', b"\\", b"\n", b"\xff", b'\\\\"']
    for number, piece in enumerate(bad):
        content = padding + piece
        size = len(content)
        name = spool_of(attacker, content)
        attacker.say(guest, spooled(f"file0000000{number}", name, (size, 0, size, crc32(content))))
        answer = attacker.hear(guest)
        assert isinstance(answer, verbs.Refused) and answer.code == "invalid_payload", answer
    log = (attacker.bus.data_dir / "messages.log").read_bytes()
    assert b"forgedforged" not in log


def files_that_are_not_for_it(attacker: Attacker) -> None:
    """Paths outside the spool directory, links, and missing pieces."""
    guest = attacker.enter(verbs.Role.GUEST)
    link = attacker.bus.data_dir / "spool" / ("e" * 32)
    link.symlink_to(attacker.bus.data_dir / "keys" / "broker.key_secret")
    names = ["../keys/broker.key_secret", "/etc/passwd", "", "e" * 32, "f" * 32, spool_of(attacker, b"short")]
    for number, name in enumerate(names):
        attacker.say(guest, spooled(f"file0000001{number}", name, (70_000, 0, 70_000, 1)))
        answer = attacker.hear(guest)
        assert isinstance(answer, verbs.Refused), answer
        assert answer.code in ("protocol", "unauthorized", "broker_unavailable")
    link.unlink()


def a_text_that_cannot_be_read(attacker: Attacker) -> None:
    """Spooled bodies with a wrong checksum, invalid escapes, raw control characters or another size are refused, and
    every line of the log is JSON."""
    guest = attacker.enter(verbs.Role.GUEST)
    good = b"x" * 70_000
    for number, (piece, size, crc) in enumerate(
        (
            (good, len(good), crc32(good) ^ 1),
            (good, len(good) - 1, None),
            (b"\\z" * 40_000, 70_000, None),
            (b"\\ud800" * 20_000, 70_000, None),
            (good + b"\x01", len(good) + 1, None),
            (good + b"\n", len(good) + 1, None),
        )
    ):
        name = spool_of(attacker, piece)
        checksum = crc32(piece) if crc is None else crc
        attacker.say(guest, spooled(f"file0000002{number}", name, (size, 0, len(piece), checksum)))
        answer = attacker.hear(guest)
        assert isinstance(answer, verbs.Refused) and answer.code in ("invalid_payload", "protocol"), answer
    for line in (attacker.bus.data_dir / "messages.log").read_bytes().splitlines():
        json.loads(line)


def flood_of_large_files(attacker: Attacker) -> None:
    """A hundred small messages that refer to sixteen megabytes each."""
    guest = attacker.enter(verbs.Role.GUEST, **DEAF)
    size = verbs.MAX_BODY_BYTES
    name = spool_of(attacker, b'\\"' * size)
    flood(
        guest,
        [msgpack.packb([spooled(f"flood{number:07}", name, (size - 10, 0, size, 1)) for number in range(512)])],
    )


# --- floods


def flood(dealer: zmq.Socket[bytes], frames: list[bytes]) -> None:
    """Sends for a while as fast as possible, or until it is held back."""
    dealer.sndtimeo = int(FLOOD_S * 1000)
    done = threading.Event()
    timer = threading.Timer(FLOOD_S, done.set)
    timer.start()
    try:
        while not done.is_set():
            dealer.send_multipart(frames)
    except zmq.Again:
        pass
    finally:
        timer.cancel()
        timer.join()


DEAF: dict[str, Any] = {"rcvhwm": 1, "rcvbuf": 4096, "sndhwm": 100}


def flood_of_lists(attacker: Attacker) -> None:
    flood(attacker.enter(**DEAF), [msgpack.packb([(VERB["List"], "r", True, "")])])


def flood_of_many_lists_in_a_message(attacker: Attacker) -> None:
    flood(attacker.enter(**DEAF), [msgpack.packb([(VERB["List"], "r", True, "")] * 512)])


def flood_of_refusals(attacker: Attacker) -> None:
    refused = (VERB["Send"], 0, "", 0, None, False, None, None, "no", b"")
    flood(attacker.enter(verbs.Role.GUEST, **DEAF), [msgpack.packb([refused] * 512)])


def flood_of_refusals_that_are_kept(attacker: Attacker) -> None:
    """Each refusal is a row in the database, for the next broker."""
    guest = attacker.enter(verbs.Role.GUEST)
    for number in range(0, 30_000, 500):
        sends = [
            (VERB["Send"], 0, "nobody-here", 0, None, False, None, None, f"n{number + n:09}", b"") for n in range(500)
        ]
        guest.send(msgpack.packb(sends))


def flood_of_junk(attacker: Attacker) -> None:
    flood(attacker.enter(**DEAF), [b"\xc1"])


def flood_of_a_stranger(attacker: Attacker) -> None:
    flood(attacker.socket(**DEAF), [msgpack.packb([(VERB["Status"], "s")] * 512)])


def flood_of_peeks(attacker: Attacker) -> None:
    """A helper that peeks at its full inbox again and again, and never reads the answers."""
    attacker.say(attacker.enter(verbs.Role.PROGRAM), [VERB["Bye"]])
    guest = attacker.enter(verbs.Role.GUEST)
    for number in range(60):
        frames = codec.encode([verbs.Send.one(f"peek{number:08}", 0, "attacker", 0, None, False, b"x" * 60_000)])
        guest.send_multipart(frames)
        receipt = attacker.hear(guest)
        assert isinstance(receipt, verbs.Receipt), receipt
    helper = attacker.enter(verbs.Role.HELPER, **DEAF)
    flood(helper, [msgpack.packb([(VERB["Fetch"], "f", True)] * 64)])


def subscriptions(attacker: Attacker) -> None:
    deaf = attacker.socket(zmq.SUB, attacker.pub_port, **DEAF)
    deaf.subscribe(b"")
    for number in range(20_000):
        deaf.subscribe(b"#%d\0" % number)
    for number in range(0, 20_000, 2):
        deaf.unsubscribe(b"#%d\0" % number)


def junk_up_the_xpub(attacker: Attacker) -> None:
    rogue = attacker.socket(zmq.XSUB, attacker.pub_port)
    for junk in (
        b"",
        b"\0",
        b"\1",
        b"\1~",
        b"\0~",
        b"\1~\xff\xfe\0",
        b"\0~\xff\0",
        b"\1~nobody\0",
        b"\0~nobody\0",
        b"\2",
    ):
        rogue.send(junk)
        rogue.send_multipart([junk, b"more"])
    rogue.send_multipart([b"\0~" + b"x" * 10_000 + b"\0"])
    for _ in range(10_000):
        rogue.send(b"junk")


def somebody_elses_mark(attacker: Attacker) -> None:
    """A lease is secret: without it, nobody can make the broker believe that a subscriber has gone."""
    rogue = attacker.socket(zmq.XSUB, attacker.pub_port)
    for lease in (attacker.victim.session_id, attacker.victim.state["token"], "0" * 32):
        rogue.send(b"\1~" + lease.encode() + b"\0")
        rogue.send(b"\0~" + lease.encode() + b"\0")


def connections(attacker: Attacker) -> None:
    for number in range(150):
        dealer = attacker.socket()
        attacker.say(dealer, attacker.hello(verbs.Role.GUEST, name=f"guest-{number}"))
        assert isinstance(attacker.hear(dealer), verbs.Welcome)


ATTACKS: list[Attack] = [
    junk_bytes,
    half_handshakes,
    greeting_and_then_a_giant_command,
    wrong_client_key,
    wrong_server_key,
    no_curve,
    junk_messages,
    hundred_mebibytes,
    just_over_the_limit,
    just_under_the_limit,
    thousands_of_envelopes,
    wrong_types_in_every_verb,
    unknown_verbs,
    text_that_is_not_utf8,
    somebody_elses_session,
    absurd_hellos,
    hello_again_and_again,
    stale_leases,
    forged_fields_in_a_message,
    forged_records_in_a_file,
    files_that_are_not_for_it,
    a_text_that_cannot_be_read,
    flood_of_large_files,
    flood_of_lists,
    flood_of_many_lists_in_a_message,
    flood_of_refusals,
    flood_of_refusals_that_are_kept,
    flood_of_junk,
    flood_of_a_stranger,
    flood_of_peeks,
    subscriptions,
    junk_up_the_xpub,
    somebody_elses_mark,
    connections,
]


@pytest.mark.parametrize(
    "attack",
    [pytest.param(attack, id=attack.__name__) for attack in ATTACKS],
)
def test_attack_affects_nobody_else(stage: Stage, attack: Attack) -> None:
    attack(stage.attacker)
    stage.prove()
    for listener in (stage.auth, stage.pay):
        forged = [line for line in listener.lines if line.startswith("[inter-session msg=forged")]
        assert not forged


# --- receivers that do not read


def test_subscriber_that_never_reads_affects_nobody_else(stage: Stage) -> None:
    """It follows every channel and leaves megabytes unread; the other subscriber gets each message."""
    attacker = stage.attacker
    deaf = attacker.socket(zmq.SUB, attacker.pub_port, **DEAF)
    deaf.subscribe(b"")
    program = attacker.socket()
    attacker.say(program, attacker.hello(verbs.Role.PROGRAM, name="reader", topics=("t",)))
    welcome = attacker.hear(program)
    subscriber = attacker.socket(zmq.SUB, attacker.pub_port)
    subscriber.subscribe(verbs.channel(verbs.Scope.TOPIC, "t"))
    subscriber.subscribe(verbs.mark_channel(welcome.lease))
    guest = attacker.enter(verbs.Role.GUEST)
    poller = zmq.Poller()
    poller.register(program, zmq.POLLIN)
    poller.register(subscriber, zmq.POLLIN)
    published = 0
    for number in range(50):
        send = verbs.Send.one(f"cast{number:08}", int(verbs.Scope.TOPIC), "t", 0, None, False, bytes(60_000))
        guest.send_multipart(codec.encode([send]))
        # The first ones come over the DEALER, until the broker has seen the subscription.
        came: Any = None
        while not isinstance(came, verbs.Deliver | verbs.Broadcast):
            if subscriber in dict(poller.poll(DEADLINE_MS)):
                (came,) = attacker._decoder.decode(subscriber.recv_multipart()[1:])
                attacker.say(program, [VERB["Ack"], 0, [came.bcast]])
                published += 1
            else:
                came = attacker.hear(program)
                if isinstance(came, verbs.Deliver):
                    attacker.say(program, [VERB["Ack"], came.seq, []])
        assert came.msg_ids == send.msg_ids
        assert attacker.hear(guest) == verbs.Tally(send.msg_ids[0], 1, 0)
    assert published > 25
    stage.prove()


def test_session_that_never_reads_gets_its_credit_and_affects_nobody_else(stage: Stage) -> None:
    """Messages to it are queued outside the broker's memory."""
    stage.attacker.enter(verbs.Role.PROGRAM, **DEAF)
    pad = "x" * 60_000
    for number in range(4):
        done = stage.bus.send("--to", "attacker", "--text", f"{number} {pad}", owner=stage.auth)
        assert done.returncode == 0, done
        assert done.stdout.rstrip().endswith("(busy)")
    stage.prove()


# --- files


def helpers(bus: Bus, owner: Owner | ListenerProcess) -> list[Any]:
    """Runs the commands that act as a session."""
    return [
        bus.send("--to", "pay", "--text", "x", owner=owner),
        bus.zmqbus("inbox", owner=owner),
        bus.zmqbus("rename", "other", owner=owner),
        bus.zmqbus("list", "--self", owner=owner),
    ]


def garble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\0 no JSON")


def odd_types(path: Path) -> None:
    path.write_text('{"session_id": 1, "port": "x", "token": null}')


@pytest.mark.parametrize("damage", [garble, odd_types], ids=lambda f: f.__name__)  # more of them: session/test_state.py
def test_damaged_state_file_counts_as_none(bus: Bus, damage: Callable[[Path], None]) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    damage(auth.state_path)
    send, *others, own = helpers(bus, auth)
    for done in (send, *others):
        assert (done.returncode, done.stdout) == (1, ""), done
        cure = "/inter-session connect" if done is send else "zmqbus connect"
        assert done.stderr == f"error: not_connected: not connected; run {cure} first\n"
    assert (own.returncode, own.stderr) == (0, "")
    assert own.stdout.startswith("not connected")
    bus.deliver("auth", "still here", owner=pay)
    auth.wait_message("still here")


def readable_by_others(path: Path) -> None:
    path.chmod(0o644)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("damage", [readable_by_others, fifo], ids=lambda f: f.__name__)
def test_state_file_that_is_not_private_is_refused_with_the_cure(bus: Bus, damage: Callable[[Path], None]) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    damage(auth.state_path)
    for done in helpers(bus, auth):
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("error: unauthorized: "), done
        assert str(auth.state_path) in done.stderr
    bus.deliver("auth", "still here", owner=pay)
    auth.wait_message("still here")


def refused(bus: Bus, path: Path) -> list[str]:
    """Runs every program that starts on this data directory; each must refuse and name the path. Returns the texts."""
    said = []
    for done in (
        bus.run("list.py"),
        bus.send("--to", "x", "--text", "x", "--as", "me"),
        bus.zmqbus("broker"),
        bus.zmqbus("broker", "--foreground"),
    ):
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("error: unauthorized: "), done
        said.append(done.stderr)
    listener = bus.listener("auth", connected=False)
    assert listener.wait_exit() == 1
    assert listener.errors == []
    (line,) = listener.lines
    said.append(line)
    for text in said:
        assert str(path) in text, text
    return said


def test_data_directory_that_others_can_read_is_refused(bus: Bus) -> None:
    bus.data_dir.chmod(0o755)
    try:
        said = refused(bus, bus.data_dir)
    finally:
        bus.data_dir.chmod(0o700)
    assert all(f"chmod 700 '{bus.data_dir}'" in text for text in said)
    assert list(bus.data_dir.iterdir()) == []


def test_data_directory_that_is_a_link_is_refused(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    there = bus.data_dir.with_name("elsewhere")
    there.symlink_to(bus.data_dir)
    monkeypatch.setenv("INTER_SESSION_DATA_DIR", str(there))
    said = refused(bus, there)
    assert all("symbolic link" in text for text in said)


def _keys(bus: Bus) -> Path:
    """The key directory of a used data directory without running processes."""
    assert bus.zmqbus("broker").returncode == 0
    assert bus.zmqbus("broker", "--stop").returncode == 0
    return bus.data_dir / "keys"


def others_may_enter(keys: Path) -> Path:
    keys.chmod(0o750)
    return keys


def a_key_is_damaged(keys: Path) -> Path:
    path = keys / "client.key_secret"
    path.write_bytes(path.read_bytes().replace(b'secret-key = "', b'secret-key = "~~'))
    return path


@pytest.mark.parametrize("damage", [others_may_enter, a_key_is_damaged], ids=lambda f: f.__name__)
def test_unsafe_and_damaged_keys_are_refused(bus: Bus, damage: Callable[[Path], Path]) -> None:
    """By every program that starts; tests/security/test_keys.py has each way to be unsafe or damaged."""
    keys = _keys(bus)
    path = damage(keys)
    refused(bus, path)
    assert bus.broker_pid() is None


@pytest.mark.parametrize("who", ["broker", "client"])
def test_damaged_secret_key_is_reported_through_the_broker(bus: Bus, who: str) -> None:
    """A client never reads the broker's secret key; the broker that it starts reports the reason."""
    keys = _keys(bus)
    (keys / f"{who}.key_secret").write_bytes(b"junk")
    done = bus.run("list.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unauthorized: ")
    assert f"rm -r '{keys}'" in done.stderr


# --- a full disk


def _limit_file_size(process: psutil.Process, size_bytes: int) -> None:
    """Limits the size of files that a process may write: for it, the disk is full."""
    _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (size_bytes, hard))


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="only Linux sets limits of other processes")
def test_full_disk_refuses_only_messages_that_do_not_fit(bus: Bus) -> None:
    auth, pay = bus.listener("auth"), bus.listener("pay")
    broker = psutil.Process(bus.broker_pid())
    kept = [bus.deliver("pay", f"before {number}", owner=auth) for number in range(3)]
    pay.send_signal(signal.SIGSTOP)
    kept.append(bus.deliver("pay", "waits", owner=auth))
    size_bytes = bus.log_path.stat().st_size
    _limit_file_size(broker, max(size_bytes, 64 * 1024))
    _, hard = broker.rlimit(psutil.RLIMIT_FSIZE)
    for args in (("--to", "pay"), ("--all",)):
        done = bus.send(*args, "--text", "y" * 90_000, owner=auth)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("error: broker_unavailable: "), done
        assert "no room" in done.stderr
        assert "send again" in done.stderr
    assert [record["msg_id"] for record in bus.records() if "msg_id" in record] == kept
    broker.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
    pay.send_signal(signal.SIGCONT)
    kept.append(bus.deliver("pay", "there is room again", owner=auth))
    pay.wait_message("waits")
    pay.wait_message("there is room again")
    assert [record["msg_id"] for record in bus.records() if "msg_id" in record] == kept
    assert not [line for line in pay.lines if "yyy" in line]
    assert bus.broker_pid() == broker.pid


def test_full_file_system(bus: Bus) -> None:
    """The same on a file system of a megabyte, in a mount namespace of the test."""
    mount = ["unshare", "--mount", "--map-root-user", "--user"] if os.getuid() else ["unshare", "--mount"]
    script = f"""
set -e
mount -t tmpfs -o size=1m,mode=0700 tmpfs "$INTER_SESSION_DATA_DIR"
run() {{ {sys.executable} {ROOT}/bin/"$@"; }}
{sys.executable} {ROOT}/bin/client.py --name auth & auth=$!  # not by run: the pid would be that of a shell
until run list.py | grep -q auth; do :; done
run send.py --as me --to auth --text one >/dev/null
dd if=/dev/zero of="$INTER_SESSION_DATA_DIR/ballast" bs=4k 2>/dev/null || true
if head -c 60000 /dev/zero | tr '\\0' y | run send.py --as me --to auth --text-file - 2>err; then echo "it was sent"; fi
cat err; rm err
rm "$INTER_SESSION_DATA_DIR/ballast"
run send.py --as me --to auth --text two >/dev/null
kill $auth
wait $auth || true
run zmqbus broker --stop >&2
"""
    probe = subprocess.run([*mount, "mount", "-t", "tmpfs", "tmpfs", str(bus.data_dir)], capture_output=True)
    if probe.returncode:
        pytest.skip("mounting is not allowed here")
    owner = bus.owner()
    done = subprocess.run(
        [*mount, "sh", "-c", script], cwd=bus.cwd, env=bus.env(owner), capture_output=True, timeout=4 * DEADLINE_S
    )
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0, done
    assert re.fullmatch(rb"broker \(pid \d+\) stopped\n", done.stderr), done
    shown = [line.rpartition("] ")[2] for line in lines if line.startswith("[inter-session msg=")]
    assert shown == ["one", "two"], lines
    (error,) = [line for line in lines if not line.startswith("[inter-session")]
    assert error.startswith("error: broker_unavailable: there is no room"), lines
