"""The results as a picture (docs/images/performance.png); needs matplotlib, from the extra `bench`.

What is compared is drawn, not everything that was measured: rates by size and by audience, latencies, no-ops of worker
pools, and what grows. A panel whose case was not measured says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks.cases.broadcast import SESSIONS
from benchmarks.cases.directed import SIZES, named
from benchmarks.figures import OURS, Figure, Results

#: One colour for each system in all panels; ours stands out, also for those who see no colours, by its width.
COLOURS = {
    OURS: "#c2410c",
    "forwarder": "#52525b",
    "pub": "#52525b",
    "nats": "#2563eb",
    "jetstream": "#7c3aed",
    "redis": "#059669",
    "Pool": "#2563eb",
    "ProcessPoolExecutor": "#7c3aed",
    "ipyparallel": "#059669",
    "dask": "#b45309",
}
OTHER_COLOUR = "#9ca3af"
MARKS = {OURS: "o", "forwarder": "s", "pub": "s", "nats": "^", "jetstream": "v", "redis": "D"}


def possible() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Results, path: str) -> None:
    """Draws all panels into one file."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot

    figures = {figure.key: figure for figure in results.figures}
    picture, axes = pyplot.subplots(4, 2, figsize=(12, 16), layout="constrained")
    panels: list[Callable[[Any, dict[str, Figure], Results], bool]] = [
        _sizes,
        _rates,
        _audiences,
        _latencies,
        _pools,
        _processors,
        _by_sessions,
        _by_messages,
    ]
    for axis, panel in zip(axes.flat, panels, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        if not panel(axis, figures, results):
            axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes, color=OTHER_COLOUR)
            axis.set_xticks([])
            axis.set_yticks([])
    picture.suptitle(f"zmqbus and others, in one run ({results.machine.get('cores', '?')} cores)", fontsize=14)
    picture.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(picture)


def _line(axis: Any, name: str, xs: list[float], ys: list[float], label: str | None = None) -> None:
    axis.plot(
        xs,
        ys,
        marker=MARKS.get(name, "o"),
        color=COLOURS.get(name, OTHER_COLOUR),
        linewidth=3 if name == OURS else 1.5,
        zorder=3 if name == OURS else 2,
        label=label or name,
    )


def _bars(axis: Any, rows: dict[str, float], words: Callable[[float], str]) -> None:
    names = list(reversed(rows))
    axis.barh(names, [rows[name] for name in names], color=[COLOURS.get(name, OTHER_COLOUR) for name in names])
    most = max(rows.values())
    for place, name in enumerate(names):
        axis.text(rows[name] + most * 0.01, place, words(rows[name]), va="center", fontsize=9)
    axis.set_xlim(right=most * 1.2)


def _medians(figure: Figure) -> dict[str, float]:
    return {name: value for name in figure.values if (value := figure.median(name)) is not None}


def _series(figures: dict[str, Figure], keys: dict[str, float]) -> dict[str, list[tuple[float, float]]]:
    """system → (x, median), over several figures."""
    found: dict[str, list[tuple[float, float]]] = {}
    for key, x in keys.items():
        if key in figures:
            for name, value in _medians(figures[key]).items():
                found.setdefault(name, []).append((x, value))
    return found


def _sizes(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    keys = {f"directed-{named(size).replace(' ', '').lower()}": float(size) for size in SIZES}
    series = _series(figures, keys)
    for name, points in series.items():
        _line(axis, name, [x for x, _ in points], [x * y / 1e6 for x, y in points])
    axis.set(title="Directed, pipelined: by size", ylabel="MB/s", xscale="log", yscale="log")
    axis.set_xticks(list(SIZES), [named(size) for size in SIZES])
    axis.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    if series:
        axis.legend(frameon=False, fontsize=9)
    return bool(series)


def _rates(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    figure = figures.get("directed-100b")
    if figure is None:
        return False
    _bars(axis, {name: value / 1000 for name, value in _medians(figure).items()}, lambda value: f"{value:,.0f}")
    axis.set(title="Directed 100 B, pipelined", xlabel="thousand messages a second")
    return True


def _audiences(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    series = _series(figures, {f"broadcast-{number}": float(number) for number in SESSIONS})
    for name, points in series.items():
        _line(axis, name, [x for x, _ in points], [y / 1000 for _, y in points])
    axis.set(title="Broadcast of 100 B: by audience", ylabel="thousand deliveries a second", xscale="log")
    axis.set_ylim(bottom=0)
    axis.set_xticks(list(SESSIONS), [f"{number:,}" for number in SESSIONS])
    axis.set_xlabel("sessions")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    if series:
        axis.legend(frameon=False, fontsize=9)
    return bool(series)


def _latencies(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    there = [figures[key] for key in ("one-way-p50", "one-way-p99", "request-p50", "request-p99") if key in figures]
    if not there:
        return False
    names = list(there[0].values)
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(there))]
        heights = [figure.median(name) or float("nan") for figure in there]
        axis.bar(places, heights, width * 0.9, color=COLOURS.get(name, OTHER_COLOUR), label=name)
    axis.set(title="Latency of 100 B at a gentle rate", ylabel="µs (less is better)", yscale="log")
    axis.set_yticks([100, 1000, 10000], ["100", "1,000", "10,000"])
    axis.minorticks_off()
    axis.set_xticks(range(len(there)), [figure.key.replace("-", " ") for figure in there])
    axis.legend(frameon=False, fontsize=9, ncols=len(names), loc="upper left", columnspacing=0.9)
    axis.set_ylim(top=3 * max(value for figure in there for value in _medians(figure).values()))
    return True


def _pools(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    figure = figures.get("pool-rate")
    if figure is None:
        return False
    _bars(axis, {name: value / 1000 for name, value in _medians(figure).items()}, lambda value: f"{value:,.1f}")
    axis.set(title="No-ops by two workers, pipelined", xlabel="thousand requests a second")
    return True


def _processors(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    figure = figures.get("directed-100b")
    if figure is None or not figure.cpu_us:
        return False
    names = list(reversed(figure.cpu_us))
    left = [0.0] * len(names)
    for who, shade in (("sender", 1.0), ("middle", 0.65), ("receiver", 0.35)):
        widths = [figure.cpu_us[name].get(who, 0.0) for name in names]
        colours = [COLOURS.get(name, OTHER_COLOUR) for name in names]
        bars = axis.barh(names, widths, left=left, color=colours)
        for bar, width in zip(bars, widths, strict=True):
            bar.set_alpha(shade)
            if width > 2:
                axis.text(
                    bar.get_x() + width / 2, bar.get_y() + 0.4, f"{width:.0f}", ha="center", va="center", fontsize=8
                )
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axis.set(title="Processor time for 100 B: sender, middle, receiver", xlabel="µs")
    return True


def _by_sessions(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    return _memory(axis, results, "growth-sessions-memory", "connected sessions")


def _by_messages(axis: Any, figures: dict[str, Figure], results: Results) -> bool:
    return _memory(axis, results, "growth-messages-memory", "unread messages")


def _memory(axis: Any, results: Results, key: str, x: str) -> bool:
    curve = next((curve for curve in results.curves if curve.key == key), None)
    if curve is None:
        return False
    for name, points in curve.points.items():
        _line(axis, name, [x for x, _ in points], [y for _, y in points])
    axis.set(title=f"Memory of the broker, by {x}", ylabel="MB", xlabel=x)
    axis.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    return True
