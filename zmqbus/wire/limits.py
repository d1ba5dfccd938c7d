"""The limits of the wire, and the checks that a sender makes against them before it sends."""

from __future__ import annotations

from zmqbus.errors import TextTooLong
from zmqbus.wire.header import MAX_DETAIL_CHARS

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
#: Messages (or envelopes without any) in one ZeroMQ message: the rate is flat from about 128 on, and a bound keeps the
#: pauses short.
MAX_BATCH = 512
#: Messages in one SEND, DELIVER or BROADCAST: from here on a message costs no less for being with more of them.
MAX_ENVELOPE_MESSAGES = 256
#: Bodies in one ZeroMQ message, so that a batch stays far below what a slow peer could choke on.
MAX_BATCH_BYTES = 1024 * 1024
#: The first frame of a ZeroMQ message, with all its envelopes: a full batch (`MAX_BATCH`, `MAX_BATCH_BYTES`) whose
#: strings are all as long as they may be has less.
MAX_HEADER_BYTES = 4 * 1024 * 1024
#: Parts of that frame, arrays and their elements, at any depth: the decoder makes an object of each, of up to 70 bytes.
#: A full batch has half of it.
MAX_PARTS = 128 * 1024
#: Parts of one array,
MAX_ARRAY = 4 * 1024
#: and of one that goes to the broker, where a list has a thousand ids at most.
MAX_LIST = 2 * 1024
#: Longest body in a spool file, escaped as in the journal: the broker reads it at once.
MAX_SPELLED_BYTES = 16 * 1024 * 1024
#: Largest spool file: the bodies that a client may have unconfirmed, and as much again for escapes and gaps.
MAX_SPOOL_BYTES = 48 * 1024 * 1024
#: Sessions in one SESSIONS envelope; longer lists are paged, so that no reply is large.
LIST_PAGE = 200

#: Characters of each field that is a string, or of each string in a list, in any verb that a client sends. The client
#: checks them (`verbs.check_fields`), since it alone can name the envelope that is wrong; the broker checks them again.
#: What else holds for a field (the rules for names, labels, ids) is checked where the field is used.
FIELD_CHARS: dict[str, int] = {
    "after": 64,
    "cwd": 4_096,  # PATH_MAX of Linux
    "detail": MAX_DETAIL_CHARS,
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
    "state": 16,
    "states": 16,
    "target": 4_096,  # a project's path is the longest
    "token": 64,
    "topics": 40,
}
#: Elements of each field that is a list, where that is less than `MAX_LIST`.
FIELD_PARTS: dict[str, int] = {"bodies": MAX_ENVELOPE_MESSAGES, "groups": 256, "topics": 256, "piece": 4, "states": 8}


def check_size(size_bytes: int, *, to_many: bool) -> None:
    """Raises `TextTooLong` for a body over the limit of its audience. Both the sender and the broker call this."""
    limit_bytes = MAX_BROADCAST_BYTES if to_many else MAX_BODY_BYTES
    if size_bytes > limit_bytes:
        raise TextTooLong(
            f"{size_bytes:,} bytes; the limit is {limit_bytes:,} bytes {'to many' if to_many else 'to one receiver'}; "
            "write it to a file and send the path with --file"
        )
