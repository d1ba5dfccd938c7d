"""The results as text: a table for the terminal, and the same for docs/performance.md."""

from __future__ import annotations

from benchmarks.figures import OURS, Figure, Results

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
    return [
        f"{name} {value(figure.median(name), figure.unit)} ({ratio(figure.ratio(name))})"
        for name in figure.values
        if name != OURS
    ]


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
    """The whole, for whoever has run it."""
    lines = [", ".join(f"{name} {what}" for name, what in results.machine.items())]
    lines.append(f"medians of {results.rounds} interleaved rounds; in brackets what zmqbus is by that, as a ratio")
    case = ""
    for figure in results.figures:
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
