"""What a command was called with, taken out of the process list.

Every user of the machine reads the command line of every process (`/proc/<pid>/cmdline`, `ps`). A text that was given
as an argument would stand there for as long as the command lives, which with `--wait` is minutes. `hide` overwrites it
in this process's own memory, where the system looks for it: what is left is `***`.

The system keeps the arguments where the stack begins, and tells where; the memory of a process is a file that it may
write itself. So this takes some 50 us, and nothing beyond the interpreter. Two things it cannot do: the text is there
until the interpreter has started (about 20 ms), and a shell that was itself started with the whole command (`sh -c
'send.py --text …'`, as agents do it) keeps its own copy. What others must not see comes from standard input or a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

#: What stands in the process list instead.
MASK = b"***"
#: Fields of /proc/self/stat behind the name in brackets, counted from 0: where the arguments begin and end.
_ARG_START, _ARG_END = 45, 46


def hide(arguments: Iterable[str | None]) -> bool:
    """Overwrites these arguments, or values of arguments (`--text=value`), wherever the process list shows them.

    Returns whether none of them is shown any more; False where the system has no way to do it (not Linux). Never
    raises.
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
