"""The frames of one message: to a socket, and from it, by the shortest way that pyzmq has.

`recv_multipart` tells that nothing is there by an exception, and `send_multipart` combines its flags, which are enums,
for every frame. Of a message that is alone, whose way through python is all cold, that is a good part: 8 µs for an
exception that nobody is interested in. (pyzmq 27.3, python 3.11.)

A socket's descriptor is edge-triggered: it may be quiet although something is there, once the socket was touched in any
way. So whoever has touched a socket calls `receive` until it returns None before it sleeps on the descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_EVENTS = zmq.EVENTS
_RCVMORE = zmq.RCVMORE
_POLLIN = int(zmq.POLLIN)


def receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """The frames of the next message; None if there is none."""
    if not has_input(socket):
        return None
    try:
        frames = [socket.recv(_NOBLOCK)]
    except zmq.Again:  # it was not whole yet
        return None
    while socket.getsockopt(_RCVMORE):
        frames.append(socket.recv(_NOBLOCK))
    return frames


def send(socket: zmq.Socket[bytes], frames: Sequence[bytes]) -> None:
    """Sends one message, without waiting. Raises `zmq.ZMQError`: `EAGAIN` at the high-water mark, `EHOSTUNREACH` where
    a ROUTER knows no such route."""
    *first, last = frames
    for frame in first:
        socket.send(frame, _NOBLOCK_MORE)
    socket.send(last, _NOBLOCK)


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message is there. Has the socket look at what its I/O thread has for it."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)
