"""Findings of the checks, and how they are printed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Literal, NamedTuple

from zmqbus.system.streams import takes_unicode
from zmqbus.text.display import sanitise, to_json

Level = Literal["ok", "warning", "fault"]


class Finding(NamedTuple):
    """The result of one check. The field names are keys of `zmqbus doctor --json`."""

    check: str  # one word: the subject
    level: Level
    says: str  # the state, or what is wrong and what follows from it
    mend: str | None = None  # command for a POSIX shell that fixes it; None: nothing to fix, or no single command


def ok(check: str, says: str) -> Finding:
    """Returns a finding without a fault."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, mend: str | None = None) -> Finding:
    """Returns a finding about something that works but is not as it should be."""
    return Finding(check, "warning", says, mend)


def fault(check: str, says: str, mend: str | None = None) -> Finding:
    """Returns a finding about something that does not work."""
    return Finding(check, "fault", says, mend)


def command(*words: str) -> str:
    """Returns a command line, quoted for a POSIX shell."""
    return " ".join(map(shlex.quote, words))


def for_people(findings: Iterable[Finding]) -> str:
    """Returns a line for each finding, with the command that fixes it below, and a summary."""
    rows = list(findings)
    width = max((len(row.check) for row in rows), default=0)
    lines = []
    for row in rows:
        lines.append(f"{row.level:8} {row.check:{width}}  {sanitise(row.says)}")
        if row.mend is not None:
            lines.append(f"{'':9}{'':{width}}  fix: {sanitise(row.mend)}")
    faults, warnings = count(rows, "fault"), count(rows, "warning")
    if faults or warnings:
        lines.append(f"{_number(faults, 'fault')}, {_number(warnings, 'warning')}")
    else:
        lines.append("all is well")
    return "\n".join(lines)


def for_programs(findings: Iterable[Finding]) -> str:
    """Returns the findings as one JSON object."""
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
    """Returns how many findings have this level."""
    return sum(finding.level == level for finding in findings)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
