"""The results as text: a table for the terminal, and the same for docs/performance.md."""

from __future__ import annotations

import textwrap

from benchmarks.figures import OURS, Curve, Figure, Results

WORDS = {True: "reached", False: "missed", None: "not measured"}
UNIT_DIGITS = {"MB": 1, "%": 2, "s": 2, "ms": 1}


def value(number: float | None, unit: str) -> str:
    """A value with as many digits as mean something, without its unit."""
    if number is None:
        return "–"
    digits = UNIT_DIGITS.get(unit, 0)
    if unit == "/s" and number < 100:
        digits = 1
    return f"{number:,.{digits}f}"


def ratio(number: float | None) -> str:
    """A ratio."""
    if number is None:
        return ""
    return f"{number:.2f} ×" if number < 10 else f"{number:,.0f} ×"


def others(figure: Figure) -> list[str]:
    """Each of the others: its median, and the ratio of ours to it."""
    return [beside(figure, name) for name in figure.values if name != OURS]


def beside(figure: Figure, name: str) -> str:
    """The median of another one, and the ratio of ours to it where there is one."""
    by = ratio(figure.ratio(name))
    return f"{name} {value(figure.median(name), figure.unit)}{f' ({by})' if by else ''}"


def goals(figure: Figure) -> list[str]:
    """Each goal, and whether it is reached."""
    lines = []
    for goal in figure.goals:
        told = WORDS[goal.met(figure)]
        lines.append(f"{'beyond: ' if goal.beyond else ''}{goal.said(figure.unit)}: {told}")
    return lines


def spread(figure: Figure) -> str:
    """The slowest and the fastest of our rounds."""
    rounds = figure.values.get(OURS, [])
    return f"({value(min(rounds), figure.unit)} … {value(max(rounds), figure.unit)})" if len(rounds) > 1 else ""


def terminal(results: Results) -> str:
    """Formats the results for the terminal."""
    lines = [", ".join(f"{name} {what}" for name, what in results.machine.items())]
    lines.append(
        f"medians of up to {results.rounds} interleaved rounds; in brackets what zmqbus is by that, as a ratio"
    )
    case = ""
    for figure in results.by_case():
        if figure.case != case:
            case = figure.case
            lines.append("")
        ours = f"{value(figure.median(OURS), figure.unit)} {figure.unit}"
        lines.append(f"{figure.title:<44} {ours:>16} {spread(figure)}")
        if len(figure.values) > 1:
            lines.append(f"    beside: {'; '.join(others(figure))}")
        if figure.goals:
            lines.append(f"    goals:  {'; '.join(goals(figure))}")
        for name, parts in figure.cpu_us.items():
            lines.append(f"    cpu µs: {name}: {', '.join(f'{who} {spent:.1f}' for who, spent in parts.items())}")
    for curve in results.curves:
        lines += ["", f"{curve.title}, by {curve.x}"]
        for name, points in curve.points.items():
            lines.append(
                f"    {name}: " + ", ".join(f"{x:,.10g}: {value(y, curve.unit)}" for x, y in points) + f" {curve.unit}"
            )
    if results.left_out:
        lines += ["", *(f"left out: {what}: {why}" for what, why in results.left_out.items())]
    lines += [f"failed: {case}: {why}" for case, why in results.failed.items()]
    return "\n".join(lines)


# --- for the page -----------------------------------------------------------------------------------------------

CASES = {
    "directed": "Directed messages, pipelined",
    "latency": "Latency",
    "broadcast": "Broadcasts",
    "commands": "Commands",
    "pool": "Worker pools",
    "sessions": "A thousand sessions",
    "backlog": "A backlog of unread messages",
}


def markdown(results: Results) -> str:
    """Formats the results for docs/performance.md."""
    machine = ", ".join(f"{name} {what}" for name, what in results.machine.items())
    kind = "A quick run" if results.quick else "A full run"
    first = f"{kind}, medians of up to {results.rounds} interleaved rounds. {machine}."
    lines = [textwrap.fill(first, 120, break_on_hyphens=False), ""]
    lines += _goals_table(results)
    for case in dict.fromkeys(figure.case for figure in results.by_case()):
        lines += _case_table(case, [figure for figure in results.figures if figure.case == case])
    lines += _cpu_table(results)
    for curve in results.curves:
        lines += _curve_table(curve)
    if results.left_out or results.failed:
        lines += ["### Left out", ""]
        lines += [f"- {what}: {why}" for what, why in {**results.left_out, **results.failed}.items()]
        lines.append("")
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _goals_table(results: Results) -> list[str]:
    rows = []
    for figure in results.figures:
        for goal in figure.goals:
            if goal.against is None:
                found = f"{value(figure.median(OURS), figure.unit)} {figure.unit}"
            else:
                found = ratio(figure.ratio(goal.against)) or "–"
            said = goal.said(figure.unit) + (" (beyond)" if goal.beyond else "")
            rows.append([figure.title, said, found, WORDS[goal.met(figure)]])
    return ["### Goals", "", *_table(["what", "goal", "measured", ""], rows)] if rows else []


def _case_table(case: str, figures: list[Figure]) -> list[str]:
    systems = list(dict.fromkeys(name for figure in figures for name in figure.values))
    rows = []
    for figure in figures:
        row = [f"{figure.title}, {figure.unit}"]
        for name in systems:
            by = f" ({ratio(figure.ratio(name))})" if figure.ratio(name) is not None else ""
            row.append((value(figure.median(name), figure.unit) if name in figure.values else "") + by)
        rows.append(row)
    return [f"### {CASES.get(case, case)}", "", *_table(["", *systems], rows)]


def _cpu_table(results: Results) -> list[str]:
    figures = [figure for figure in results.by_case() if figure.cpu_us]
    systems = list(dict.fromkeys(name for figure in figures for name in figure.cpu_us))
    rows = [[figure.title, *(_parts(figure.cpu_us.get(name, {})) for name in systems)] for figure in figures]
    return (
        [
            "### Processor time for a message, µs: sender + what is in the middle + receiver",
            "",
            *_table(["", *systems], rows),
        ]
        if rows
        else []
    )


def _curve_table(curve: Curve) -> list[str]:
    xs = sorted({x for points in curve.points.values() for x, _ in points})
    rows = []
    for name, points in curve.points.items():
        known = dict(points)
        rows.append([f"{name}, {curve.unit}", *(value(known[x], curve.unit) if x in known else "" for x in xs)])
    head = [curve.x, *(f"{x:,.10g}" for x in xs)]
    return [f"### {curve.title[0].upper()}{curve.title[1:]}, by {curve.x.split(',')[0]}", "", *_table(head, rows)]


def _parts(cpu_us: dict[str, float]) -> str:
    """Sender, middle, receiver: what there is of them."""
    told = (cpu_us[who] for who in ("sender", "middle", "receiver", "receivers") if who in cpu_us)
    return " + ".join(f"{spent_us:,.0f}" if spent_us >= 100 else f"{spent_us:.1f}" for spent_us in told)
