"""Checks of message bodies, whether they travel inside an envelope or lie in a spool file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zmqbus.errors import InvalidPayload, ProtocolError, Unauthorized
from zmqbus.tuples import NamedTuple
from zmqbus.wire import verbs
from zmqbus.wire.verbs import FORMAT_WORDS, MAX_BROADCAST_BYTES, Format

#: Name of a spool file: it contains no separator, so it cannot lead to another directory.
SPOOL_NAME = re.compile("[0-9a-f]{32}")
#: Bytes of JSON that one byte of text may take, as in `\u0000`.
MAX_ESCAPED_BYTES = 6
#: As an integer: looking up an enum member costs more than comparing it.
_TEXT = int(Format.TEXT)


def check_bodies(fmt: int, bodies: Sequence[bytes], size_bytes: int, *, to_many: bool) -> None:
    """Checks the format, size and encoding of bodies, which have `size_bytes` together.

    Raises `ProtocolError` for an unknown format, `TextTooLong` for a body over the limit, and `InvalidPayload` for text
    that is not UTF-8.
    """
    if fmt not in FORMAT_WORDS:
        raise ProtocolError(f"unknown body format {fmt}")
    if size_bytes > MAX_BROADCAST_BYTES:  # else none of them can be too large
        verbs.check_size(max(map(len, bodies)), to_many=to_many)
    if fmt == _TEXT and not b"".join(bodies).isascii():
        try:
            for body in bodies:
                body.decode()
        except UnicodeDecodeError as error:
            raise InvalidPayload(f"the text is not UTF-8 ({error.reason} at byte {error.start})") from None


class Spooled(NamedTuple):
    """Where a body lies in a spool file, escaped as in the journal."""

    file: str
    size_bytes: int  #: of the body
    offset: int
    length: int  #: of its escaped form
    crc: int  #: CRC-32 of that


def spooled_body(send: verbs.Send) -> Spooled | None:
    """Returns where the body of a SEND lies, checked before its file is opened; None if the body came along. Raises
    `ProtocolError`."""
    if send.file is None:
        return None
    if not SPOOL_NAME.fullmatch(send.file) or send.piece is None or len(send.piece) != 4:
        raise ProtocolError("SEND names a spool file by 32 hexadecimal digits, and a piece of it by four numbers")
    spooled = Spooled(send.file, *send.piece)
    size_bytes, length = spooled.size_bytes, spooled.length
    if not 0 <= spooled.offset <= verbs.MAX_SPOOL_BYTES or not 0 <= spooled.crc < 1 << 32:
        raise ProtocolError("SEND with an invalid offset or checksum of a spooled body")
    if send.fmt == Format.TEXT:
        fits = size_bytes <= length <= MAX_ESCAPED_BYTES * size_bytes
    else:
        fits = length == (size_bytes + 2) // 3 * 4
    if size_bytes <= verbs.SPILL_BYTES or length > verbs.MAX_SPELLED_BYTES or not fits:
        raise ProtocolError(f"SEND of a spooled body of {size_bytes} bytes that takes {length} in JSON")
    return spooled


def no_spools(route: bytes, spooled: Spooled) -> bytes:
    """Refuses every spooled body: the reader of a broker without files."""
    raise Unauthorized("this broker reads no files; send the body along")
