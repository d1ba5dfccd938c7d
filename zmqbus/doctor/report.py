"""What a check finds, and how it is told."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Literal, NamedTuple

from zmqbus.system.streams import takes_unicode
from zmqbus.text.display import sanitise, to_json

Level = Literal["ok", "warning", "fault"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str  # one word: what was looked at
    level: Level
    says: str  # what there is, or what is wrong and what comes of it
    mend: str | None = None  # a command for a POSIX shell that mends it; None: there is nothing to mend, or no command


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, mend: str | None = None) -> Finding:
    """It works, and is not as it should be."""
    return Finding(check, "warning", says, mend)


def fault(check: str, says: str, mend: str | None = None) -> Finding:
    """Something does not work."""
    return Finding(check, "fault", says, mend)


def command(*words: str) -> str:
    """A command line, quoted for a POSIX shell."""
    return " ".join(map(shlex.quote, words))


def for_people(findings: Iterable[Finding]) -> str:
    """A line for each finding, the command that mends it below."""
    rows = list(findings)
    width = max((len(row.check) for row in rows), default=0)
    lines = []
    for row in rows:
        lines.append(f"{row.level:8} {row.check:{width}}  {sanitise(row.says)}")
        if row.mend is not None:
            lines.append(f"{'':9}{'':{width}}  mend it: {sanitise(row.mend)}")
    faults, warnings = count(rows, "fault"), count(rows, "warning")
    if faults or warnings:
        lines.append(f"{_number(faults, 'fault')}, {_number(warnings, 'warning')}")
    else:
        lines.append("all is well")
    return "\n".join(lines)


def for_programs(findings: Iterable[Finding]) -> str:
    """One JSON object."""
    rows = list(findings)
    return to_json(
        {
            "faults": count(rows, "fault"),
            "warnings": count(rows, "warning"),
            "checks": [row._asdict() for row in rows],
        },
        ascii_only=not takes_unicode(),
    )


def count(findings: Iterable[Finding], level: Level) -> int:
    """How many there are of a level."""
    return sum(finding.level == level for finding in findings)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
