"""What a user waits for: `send` and `list` as whole processes, beside the least that any client in Python has to do."""

from __future__ import annotations

from benchmarks import commands
from benchmarks.figures import OURS, Figure, Goal
from benchmarks.run import Run

#: Processes are short and their times scatter: more rounds than elsewhere.
ROUNDS = (25, 8)
#: The yardstick's name in the tables.
IMPORTS = "imports"
GOALS: dict[str, tuple[Goal, ...]] = {
    commands.SEND: (Goal(1.6, False, IMPORTS), Goal(1.3, False, IMPORTS, beyond=True)),
}


def measure(run: Run) -> None:
    """The commands and the yardstick, in turns."""
    found = commands.measure(ROUNDS[run.quick], 0.0, (commands.SEND, commands.LIST))
    yardstick = [time_s * 1000 for time_s in found.times_s[commands.YARDSTICK_NAME]]
    for name, key in ((commands.SEND, "process-send"), (commands.LIST, "process-list")):
        times = {OURS: [time_s * 1000 for time_s in found.times_s[name]], IMPORTS: yardstick}
        run.add(Figure("commands", key, f"{name}: whole process", "ms", False, times, GOALS.get(name, ())))
