"""Hide arguments of this process from the process list.

Every user of the machine can read the command line of every process (`/proc/<pid>/cmdline`, `ps`). A text given as an
argument would stay there as long as the command lives, which with `--wait` is minutes. `hide` overwrites it with `***`
in the memory of this process, where the system reads it.

The kernel keeps the arguments at the start of the stack and tells where; a process may write its own memory as a file.
So this takes some 50 µs and only the interpreter. Two limits: the text is visible until the interpreter has started
(about 20 ms), and a shell that was itself started with the whole command (`sh -c 'send.py --text …'`, as agents do)
keeps its own copy. Give a secret on standard input or in a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

#: Replaces a hidden argument in the process list.
MASK = b"***"
#: Fields of /proc/self/stat after the name in brackets, counted from 0: where the arguments begin and end.
_ARG_START, _ARG_END = 45, 46


def hide(arguments: Iterable[str | None]) -> bool:
    """Overwrites these arguments, or values of arguments (`--text=value`), in the process list.

    Returns False if the system cannot do that (not Linux). Never raises.
    """
    values = {os.fsencode(argument) for argument in arguments if argument}
    if not values:
        return True
    try:
        start, end = _region()
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            place = start
            for word in os.pread(memory, end - start, start).split(b"\0"):
                # Only the first "=" ends the name of an option: its value may have more of them.
                name, equals, value = word.partition(b"=")
                if word in values:
                    _overwrite(memory, place, len(word))
                elif equals and name.startswith(b"--") and value in values:
                    _overwrite(memory, place + len(name) + 1, len(value))
                place += len(word) + 1
        finally:
            os.close(memory)
    except (OSError, ValueError, IndexError):
        return False
    return True


def _region() -> tuple[int, int]:
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[_ARG_START]), int(fields[_ARG_END])


def _overwrite(memory: int, place: int, size: int) -> None:
    os.pwrite(memory, MASK.ljust(size, b"\0")[:size], place)  # guards: process list [=> return]
