"""Authentication in the broker's context (ZAP, RFC 27): who may connect to its sockets.

libzmq asks for each handshake with a request to an inproc socket. That handler has to be there: without one, libzmq
lets in everyone who knows the broker's *public* key. The handlers that come with pyzmq want a thread or an event loop
(theirs is a coroutine), and the broker is one thread with a poller; so the rule is a pure function here (`zap_reply`),
and the handler one more socket in the broker's poll.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zmqbus.security.keys import BrokerKeys

if TYPE_CHECKING:
    import zmq

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
#: libzmq sends it along with each request; that it is set at all is what matters (see `curve_server`).
ZAP_DOMAIN = b"zmqbus"
ZAP_VERSION = b"1.0"
#: A CURVE key as libzmq hands it over.
RAW_KEY_BYTES = 32
#: version, request id, domain, address, identity, mechanism; the credentials follow.
_ZAP_FIXED_FRAMES = 6
#: Handshakes answered in one go. More are waiting only in a flood, and then the messages of those who are in go first.
MAX_HANDSHAKES = 100
#: A handler's socket that has answered so many gives way to another one (see `ZapHandler.renew`): 0.6 MB.
RENEW_AFTER = 100
#: And is closed so much later: libzmq finds the handler and writes its request in one go, within microseconds. (In a
#: storm, what has not been let go of yet makes holes that stay: with 0.2 s they were 4 MB for 1,000 sessions.)
RETIRED_S = 0.05


def curve_server(socket: zmq.Socket[Any], keys: BrokerKeys) -> None:
    """Makes the socket a server that talks CURVE only, and asks the context's `ZapHandler`. To be called before it
    binds."""
    # Without it, a client with no mechanism (NULL) would get in.
    socket.curve_server = True
    # Without it, no handshake can be answered. (The public key follows from it.)
    socket.curve_secretkey = keys.secret
    # Without these two, libzmq takes a context that has no handler (yet, or no more) to mean that all may come in.
    socket.zap_domain = ZAP_DOMAIN
    # Declared as a draft, though the stable builds have it too. In one without it, the handler that has to be there
    # anyway does the refusing; this was for the day when it is missing.
    _enforces_domain(socket)


def _enforces_domain(socket: zmq.Socket[Any]) -> bool:
    """Has the socket refuse all while there is no handler; whether this libzmq can."""
    import zmq

    try:
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    except zmq.ZMQError:
        return False
    return True


def zap_reply(frames: list[bytes], allowed: frozenset[bytes]) -> list[bytes] | None:
    """The answer to a request of RFC 27, both without their routing envelope.

    Lets in (200, user id "user") who has proved with CURVE that it holds one of the `allowed` keys (Z85) and comes from
    this machine; refuses all others (400) with a reason. A request that breaks the RFC gets 500, or None where it has
    not even an id to answer to. Never raises.
    """
    if len(frames) < 2:
        return None
    if frames[0] != ZAP_VERSION:
        return _zap_answer(frames[1], b"500", b"unknown version of ZAP")
    if len(frames) < _ZAP_FIXED_FRAMES:
        return _zap_answer(frames[1], b"500", b"frames are missing")
    _, request_id, _, address, _, mechanism, *credentials = frames
    if mechanism != b"CURVE":
        return _zap_answer(request_id, b"400", b"only CURVE is spoken here")
    if len(credentials) != 1 or len(credentials[0]) != RAW_KEY_BYTES:
        return _zap_answer(request_id, b"500", b"CURVE takes one key of 32 bytes")
    # The sockets are bound to loopback, so no other address occurs; should a change ever open them, this stays shut.
    if not address.startswith(b"127."):
        return _zap_answer(request_id, b"400", b"not from this machine")

    from zmq.utils import z85

    # A public key is no secret, so the time that the comparison takes tells nothing.
    if z85.encode(credentials[0]) not in allowed:
        return _zap_answer(request_id, b"400", b"unknown key")
    return _zap_answer(request_id, b"200", b"OK", user=b"user")


def _zap_answer(request_id: bytes, status: bytes, text: bytes, user: bytes = b"") -> list[bytes]:
    return [ZAP_VERSION, request_id, status, text, user, b""]


class ZapHandler:
    """Answers the handshakes of all sockets of a context. Its owner polls `sockets` for input and calls `handle`.

    Has to be there before the first socket of the context binds: handshakes that come earlier are refused.
    """

    def __init__(self, context: zmq.Context[Any], allowed: frozenset[bytes]) -> None:
        import zmq

        self._context = context
        self.allowed = allowed
        #: Handshakes answered with anything but 200.
        self.refused = 0
        self._again: type[Exception] = zmq.Again
        self._error: type[Exception] = zmq.ZMQError
        self._dont_wait = zmq.DONTWAIT
        self._answered = 0  # by the socket
        self._retired_s = 0.0
        self._retired: zmq.Socket[bytes] | None = None
        #: Where handshakes are asked for now.
        self.socket = self._open()
        #: What is to be polled; others after a `renew` that says so.
        self.sockets: tuple[zmq.Socket[bytes], ...] = (self.socket,)
        try:
            self._may_renew = _enforces_domain(self.socket)  # else all would get in while no socket is bound
            self.socket.bind(ZAP_ENDPOINT)
        except BaseException:
            self.socket.close()
            raise

    def __repr__(self) -> str:
        return f"<ZapHandler: {len(self.allowed)} keys allowed, {self.refused} handshakes refused>"

    def _open(self) -> zmq.Socket[bytes]:
        import zmq

        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        # Without it, ending the context could wait for answers to peers that have gone.
        socket.linger = 0
        return socket

    def handle(self) -> int:
        """Answers what is waiting, `MAX_HANDSHAKES` at most, without ever blocking; returns how many it took."""
        taken = 0
        for socket in self.sockets:
            while taken < MAX_HANDSHAKES and self._answer(socket):
                taken += 1
        return taken

    def _answer(self, socket: zmq.Socket[bytes]) -> bool:
        """Answers one request; whether there was one."""
        try:
            message = socket.recv_multipart(self._dont_wait)
        except self._again:
            return False
        # The envelope: the way back, ended by an empty frame.
        body = message.index(b"") + 1 if b"" in message else len(message)
        answer = zap_reply(message[body:], self.allowed)
        self._answered += 1
        if answer is None or answer[2] != b"200":
            self.refused += 1
        if answer is not None:
            # A ROUTER drops what it cannot deliver (here: the peer hung up), so this does not block either.
            socket.send_multipart(message[:body] + answer, self._dont_wait)
        return True

    def renew(self, now_s: float) -> bool:
        """Lets go of what connections that are in still hold here; to be called now and then, with the monotonic time.
        Returns whether there are other `sockets` than before.

        libzmq connects to the handler anew for each handshake, and keeps that as long as the peer is connected, though
        nothing will pass there again: 34 KB, of which 6 KB are touched. It ends with the socket that answered. So that
        one is replaced; and closed when whoever had found it has had his answer. A handshake that falls between the
        unbind and the bind is refused (`ZAP_ENFORCE_DOMAIN`), and its peer comes again within 40 ms.
        """
        if self._retired is not None:
            if now_s - self._retired_s < RETIRED_S:
                return False
            if self._answer(self._retired):  # a pause kept it from being answered before, and there may be more
                self._retired_s = now_s
                return False
            self._retired.close()
            self._retired = None
            self.sockets = (self.socket,)
            return True
        if self._answered < RENEW_AFTER or not self._may_renew:
            return False
        try:
            fresh = self._open()
        except self._error:
            return False  # no file or socket is left: the old one goes on
        self.socket.unbind(ZAP_ENDPOINT)
        fresh.bind(ZAP_ENDPOINT)
        self._retired, self._retired_s = self.socket, now_s
        self.socket, self._answered = fresh, 0
        self.sockets = (fresh, self._retired)
        return True

    def close(self) -> None:
        """Frees the endpoint. Handshakes from now on are refused."""
        for socket in self.sockets:
            socket.close()
