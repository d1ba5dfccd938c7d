"""A coverage-guided fuzz target for the decoder: arbitrary bytes as the frames of one message.

    make fuzz-codec                                     five minutes, from the seeds below and what earlier runs found
    python -m tests.fuzz.codec_target CORPUS            libFuzzer's options; `-help=1` lists them
    python -m tests.fuzz.codec_target crash-1f2e…       replays one input, with the traceback

It needs atheris (the extra `fuzz`), which instruments `zmqbus.wire`. OSS-Fuzz can run this file as it is: atheris takes
over `sys.argv`. `check` needs nothing but zmqbus, so that the tests of this folder run it as well.

An input is one byte for the decoder (even: the broker's, odd: a client's) and the frames, each behind its length in
three bytes. A length beyond the end means the rest, so that every input is some message.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from zmqbus.errors import ProtocolError

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["zmqbus.wire"]):
        from zmqbus.wire import codec, verbs
else:
    from zmqbus.wire import codec, verbs

#: The first numbers of the broker's verbs; smaller ones are its clients'.
FIRST_OF_BROKER = 32
LENGTH_BYTES = 3


def pack(frames: Sequence[bytes], *, from_broker: bool) -> bytes:
    """Returns the input that stands for these frames."""
    framed = [len(frame).to_bytes(LENGTH_BYTES, "big") + frame for frame in frames]
    return bytes([from_broker]) + b"".join(framed)


def unpack(data: bytes) -> tuple[bool, list[bytes]]:
    """Returns the direction and the frames of an input; there is always one frame, which may be empty."""
    from_broker = bool(data[:1] and data[0] % 2)
    frames: list[bytes] = []
    at = 1
    while at < len(data) or not frames:
        end = at + LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES], "big")
        frames.append(data[at + LENGTH_BYTES : end])
        at = end
    return from_broker, frames


def check(data: bytes) -> None:
    """Decodes one input. Raises `AssertionError` where valid envelopes do not survive encoding, and lets every
    exception but `ProtocolError` through."""
    from_broker, frames = unpack(data)
    decoder = codec.Decoder(from_broker=from_broker)
    try:
        envelopes = decoder.decode(frames)
    except ProtocolError:
        return
    valid = [envelope for envelope in envelopes if not isinstance(envelope, verbs.Faulty)]
    if any(isinstance(envelope, verbs.Hello) and envelope.version != verbs.VERSION for envelope in valid):
        return  # a HELLO of another version is read as far as its first two fields
    encoded = codec.encode(valid)
    assert codec.encode(decoder.decode(encoded)) == encoded, valid


def seeds() -> Iterator[bytes]:
    """Yields inputs for each verb as the codec encodes them: small, filled, with a body in its own frame."""
    for code, cls in verbs.VERBS.items():
        for filled, parts in ((False, 1), (False, 2), (True, 1)):
            for body in (b"body", b"x" * (verbs.INLINE_BYTES + 1)):
                fields = [_sample(name, kind, filled, parts, body) for name, kind in cls.__annotations__.items()]
                yield pack(codec.encode([cls(*fields)]), from_broker=code >= FIRST_OF_BROKER)


def _sample(name: str, kind: Any, filled: bool, parts: int, body: bytes) -> Any:
    """A valid value of a field: an optional one is there if `filled`, and a list has so many parts."""
    if isinstance(kind, UnionType):
        return _sample(name, get_args(kind)[0], filled, parts, body) if filled else None
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        return (_sample(name, part, filled, parts, body),) * parts if part in (str, int, bytes) else ()
    if hasattr(kind, "_fields"):
        return kind(*(_sample(field, part, filled, parts, body) for field, part in kind.__annotations__.items()))
    if name == "version":
        return verbs.VERSION
    if kind is bytes:
        return body
    return {int: 1, bool: filled, float: 1.0, str: "q2gb1n07g0j4"}[kind]


def write_seeds(corpus: Path) -> None:
    """Writes the seeds into a corpus, beside what earlier runs have found."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number:03d}").write_bytes(seed)


def main() -> None:
    for argument in sys.argv[1:]:
        if not argument.startswith("-") and not Path(argument).is_file():
            write_seeds(Path(argument))
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
