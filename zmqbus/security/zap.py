"""Authentication in the broker's context (ZAP, RFC 27): who may connect to its sockets.

For each handshake, libzmq sends a request to an inproc socket. A handler has to listen there: without one, libzmq lets
in everyone who knows the broker's *public* key. The handlers of pyzmq need a thread or an event loop, and the broker is
one thread with a poller; so the rule is a pure function here (`zap_reply`), and the handler one more socket in the
broker's poll.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zmqbus.security.keys import BrokerKeys

if TYPE_CHECKING:
    import zmq

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
#: libzmq sends it along with each request; it only matters that it is set (see `curve_server`).
ZAP_DOMAIN = b"zmqbus"
ZAP_VERSION = b"1.0"
#: The size of a CURVE key as libzmq sends it.
RAW_KEY_BYTES = 32
#: version, request id, domain, address, identity, mechanism; the credentials follow.
_ZAP_FIXED_FRAMES = 6
#: Handshakes answered in one call. Only in a flood there are more, and then the messages of connected clients go first.
MAX_HANDSHAKES = 100
#: After so many answers the handler's socket is replaced (see `ZapHandler.renew`): 0.6 MB.
RENEW_AFTER = 100
#: The old socket is closed so much later: libzmq finds the handler and writes its request within microseconds. (In a
#: storm of connections, memory that is freed late leaves holes that stay: 4 MB for 1,000 sessions with 0.2 s.)
RETIRED_S = 0.05


def curve_server(socket: zmq.Socket[Any], keys: BrokerKeys) -> None:
    """Makes the socket a server that speaks only CURVE and asks the context's `ZapHandler`. Call it before it binds."""
    # Without it, a client with no mechanism (NULL) would get in.
    socket.curve_server = True
    # Without it, no handshake can be answered. (The public key follows from it.)
    socket.curve_secretkey = keys.secret
    # Without this and the next one, libzmq lets everyone in while the context has no handler (yet, or any more).
    socket.zap_domain = ZAP_DOMAIN
    # A draft option that stable builds have too. In a build without it, only a missing handler would let anyone in.
    _enforces_domain(socket)


def _enforces_domain(socket: zmq.Socket[Any]) -> bool:
    """Makes the socket refuse everyone while there is no handler; False if this libzmq cannot."""
    import zmq

    try:
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    except zmq.ZMQError:
        return False
    return True


def zap_reply(frames: list[bytes], allowed: frozenset[bytes]) -> list[bytes] | None:
    """The reply to a request of RFC 27, both without their routing envelope.

    Accepts (200, user id "user") a client of this machine that has proved with CURVE that it holds one of the `allowed`
    keys (Z85); refuses all others (400) with a reason. A request that breaks the RFC gets 500, or None if it has no id
    to reply to. Never raises.
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
    # The sockets are bound to loopback, so no other address occurs; if a change ever opens them, this still refuses.
    if not address.startswith(b"127."):
        return _zap_answer(request_id, b"400", b"not from this machine")

    from zmq.utils import z85

    # A public key is no secret, so the time that the comparison takes reveals nothing.
    if z85.encode(credentials[0]) not in allowed:
        return _zap_answer(request_id, b"400", b"unknown key")
    return _zap_answer(request_id, b"200", b"OK", user=b"user")


def _zap_answer(request_id: bytes, status: bytes, text: bytes, user: bytes = b"") -> list[bytes]:
    return [ZAP_VERSION, request_id, status, text, user, b""]


class ZapHandler:
    """Answers the handshakes of all sockets of a context. Its owner polls `sockets` for input and calls `handle`.

    Make it before the first socket of the context binds: earlier handshakes are refused.
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
        #: The sockets to poll; `renew` says when they change.
        self.sockets: tuple[zmq.Socket[bytes], ...] = (self.socket,)
        try:
            self._may_renew = _enforces_domain(self.socket)  # otherwise everyone would get in while no socket is bound
            self.socket.bind(ZAP_ENDPOINT)
        except BaseException:
            self.socket.close()
            raise

    def _open(self) -> zmq.Socket[bytes]:
        import zmq

        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        # Without it, ending the context could wait for replies to peers that have gone.
        socket.linger = 0
        return socket

    def handle(self) -> int:
        """Answers waiting requests, `MAX_HANDSHAKES` at most, without ever blocking; returns how many."""
        taken = 0
        for socket in self.sockets:
            while taken < MAX_HANDSHAKES and self._answer(socket):
                taken += 1
        return taken

    def _answer(self, socket: zmq.Socket[bytes]) -> bool:
        """Answers one request; False if there was none."""
        try:
            message = socket.recv_multipart(self._dont_wait)
        except self._again:
            return False
        # The envelope is the routing ids up to an empty frame.
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
        """Frees the memory of finished handshakes; call it now and then, with the monotonic time.

        Returns whether `sockets` has changed. libzmq connects to the handler for each handshake and keeps that
        connection as long as the peer is connected, though nothing will pass there again: 34 KB, of which 6 KB are
        touched. It ends with the socket that answered. So that socket is replaced, and closed when the requests that
        were on their way to it are answered. A handshake between the unbind and the bind is refused
        (`ZAP_ENFORCE_DOMAIN`), and its peer tries again within 40 ms.
        """
        if self._retired is not None:
            if now_s - self._retired_s < RETIRED_S:
                return False
            if self._answer(self._retired):  # a pause of this process delayed it, and there may be more
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
            return False  # no descriptor or socket is left: the old socket stays
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
