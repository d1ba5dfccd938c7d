"""`zmqbus stats`: print the broker's metrics, for people, for programs, and for Prometheus."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from zmqbus.cli.broker import broker_figures
from zmqbus.cli.format import pause
from zmqbus.cli.jsonform import print_json
from zmqbus.cli.output import FAILED, fail
from zmqbus.cli.parser import Parser, seconds
from zmqbus.client.locate import find_broker
from zmqbus.errors import BrokerError, ZmqbusError
from zmqbus.process import is_alive
from zmqbus.session.identity import identify
from zmqbus.settings import Settings
from zmqbus.system.streams import write_raw
from zmqbus.text.display import sanitise
from zmqbus.wire.metrics_catalogue import FIGURES, PROCESS, REFUSED, about, prometheus, rates

#: The interval of --watch; a shorter one would load the broker itself.
MIN_WATCH_S, MAX_WATCH_S = 0.1, 86_400.0
#: Moves the cursor to the top left, and clears the screen from there.
_CLEAR = "\x1b[H\x1b[J"


def main(argv: list[str]) -> int:
    """Prints the metrics once, or at an interval. Starts no broker."""
    parser = Parser("stats", "Show the broker's metrics: messages, mailboxes, workers, refusals.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON; with --watch, one object each time")
    form.add_argument("--prometheus", action="store_true", help="print Prometheus's text format")
    parser.add_argument(
        "--watch",
        metavar="S",
        type=seconds(MIN_WATCH_S, MAX_WATCH_S),
        help="repeat every S seconds, with rates, until Ctrl-C",
    )
    parser.add_port()
    options = parser.parse_args(argv)
    if options.watch is not None and options.prometheus:
        parser.error("--prometheus does not go with --watch; its collector asks again by itself")
    try:
        settings = identify({"port": options.port}).settings
        if options.watch is not None:
            return _watch(settings, options.watch, as_json=options.json)
        figures = _measure(settings)
    except ZmqbusError as error:
        return fail(error)
    if options.prometheus:
        sys.stdout.write(prometheus(figures))
        return 0  # that no broker runs is a metric as well
    if options.json:
        print_json(figures)
    elif figures is None:
        print(f"no broker runs on port {settings.port}")
    else:
        print("\n".join(_table(figures, {})))
    return 0 if figures is not None else FAILED


def _measure(settings: Settings) -> dict[str, Any] | None:
    """The metrics of the broker and of its process."""
    figures = broker_figures(settings)
    if figures is not None:
        figures.update(_process(settings))
    return figures


def _process(settings: Settings) -> dict[str, float]:
    """The system's metrics of the broker's process; none where its pid may belong to another process here."""
    import psutil

    served = find_broker(settings)
    if served is None or served.process is None or not is_alive(served.process):
        return {}
    try:
        process = psutil.Process(served.pid)
        with process.oneshot():
            times = process.cpu_times()
            return {
                "memory_bytes": process.memory_info().rss,
                "cpu_s": round(times.user + times.system, 2),
                "open_files": process.num_fds(),
            }
    except psutil.Error:  # it has just ended, or this system does not tell
        return {}


def _watch(settings: Settings, interval_s: float, *, as_json: bool) -> int:
    before: dict[str, Any] | None = None
    before_s = 0.0
    screen = sys.stdout.isatty() and not as_json
    while True:
        now_s = time.monotonic()
        fault = f"no broker runs on port {settings.port}"
        try:
            figures = _measure(settings)
        except BrokerError as error:  # it is ending or starting: the next look will show
            figures, fault = None, f"{error.code}: {error}"
        speeds = rates(before, figures, now_s - before_s) if before and figures else {}
        if as_json:
            print_json(figures if figures is None else {**figures, "rates": speeds})
        else:
            lines = _table(figures, speeds) if figures is not None else [fault]
            if screen:
                write_raw(_CLEAR)
            print("\n".join([*lines, "" if not screen else f"(every {interval_s:g} s)"]))
        sys.stdout.flush()
        before, before_s = figures, now_s
        if pause(max(0.0, now_s + interval_s - time.monotonic())):
            return 0


def _table(figures: Mapping[str, Any], speeds: Mapping[str, float]) -> list[str]:
    """A line for each metric: name, value, rate, meaning. Without two looks, rates are averages since the start."""
    names = [name for name in (*FIGURES, *PROCESS) if name in figures]
    names += sorted(name for name in figures if name.startswith(REFUSED))
    names += [name for name in figures if name not in names and name not in ("pid", "port")]
    rows = []
    uptime_s = max(1, int(figures.get("uptime_s", 1)))
    for name in names:
        value = figures[name]
        figure = about(name)
        rate = ""
        if figure is not None and figure.kind == "counter" and name != "cpu_s":
            speed = speeds.get(name) if speeds else value / uptime_s
            rate = f"{speed:,.1f}/s" if speed else ""
        rows.append((name, _shown(value), rate, figure.says if figure is not None else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    head = f"broker on port {figures['port']}, pid {figures['pid']}" + ("" if speeds else "; rates since its start")
    return [
        head,
        *(f"{name:{widths[0]}}  {value:>{widths[1]}}  {rate:>{widths[2]}}  {says}" for name, value, rate, says in rows),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return sanitise(str(value), 200)
    return f"{value:,}"
