"""The figures of a broker: which there are, what they mean, and how they look to a collector of metrics.

The broker tells them in HEALTH, as pairs of a name and a value; `zmqbus broker --status` and `zmqbus stats` print them.
*Counters* only rise, and begin at 0 with each broker (`epoch` tells one from the next); *gauges* are what holds at the
moment; the others are words. `refused_<code>` is a family: a counter for each code that anybody was refused with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["counter", "gauge", "word"]


class Figure(NamedTuple):
    """What a figure is."""

    kind: Kind
    says: str


#: All figures, in the order in which they are shown.
FIGURES: dict[str, Figure] = {
    "release": Figure("word", "release of the broker"),
    "protocol": Figure("word", "version of the protocol that it speaks"),
    "epoch": Figure("word", "life of the broker; another one after each start"),
    "uptime_s": Figure("gauge", "seconds since the broker started"),
    "sessions": Figure("gauge", "connected sessions"),
    "busy": Figure("gauge", "of them, those that have not taken their messages for 5 seconds"),
    "away": Figure("gauge", "sessions that are known, and not connected"),
    "connections": Figure("gauge", "connections: sessions, and the commands that act for them"),
    "accepted": Figure("counter", "messages accepted, broadcasts included"),
    "accepted_bytes": Figure("counter", "bytes of their bodies"),
    "delivered": Figure("counter", "receivers that had taken a message when its sender was told"),
    "queued": Figure("counter", "receivers for which a message was queued when its sender was told"),
    "taken": Figure("counter", "messages that receivers have acknowledged, queued ones included"),
    "repeated": Figure("counter", "messages that a sender said again, and that were known already"),
    "broadcasts": Figure("counter", "messages to many"),
    "broadcasts_resent": Figure("counter", "broadcasts that one receiver had missed, and got again: gaps repaired"),
    "unread": Figure("gauge", "messages in all mailboxes"),
    "unread_bytes": Figure("gauge", "bytes of their bodies"),
    "longest_mailbox": Figure("gauge", "messages in the mailbox that holds most"),
    "under_way": Figure("gauge", "messages sent to their receivers and not acknowledged: credit in use"),
    "under_way_bytes": Figure("gauge", "bytes of credit in use"),
    "untold": Figure("gauge", "messages whose senders have not been told what became of them"),
    "workers": Figure("gauge", "sessions that work for a group"),
    "groups": Figure("gauge", "groups that have workers or requests"),
    "requests_accepted": Figure("counter", "requests to groups that were accepted"),
    "requests_answered": Figure("counter", "of them, those whose callers have got the answer"),
    "requests_waiting": Figure("gauge", "requests that no worker has yet"),
    "requests_in_hand": Figure("gauge", "requests that a worker has"),
    "requests_redispatched": Figure("counter", "requests that were taken from workers that are gone"),
    "log_kept_bytes": Figure("gauge", "bytes of the disk that unread mail keeps of old parts of the log"),
    "connections_closed": Figure("counter", "connections that were closed since they filled the broker's memory"),
    "handshakes_refused": Figure("counter", "connections that did not hold the user's key"),
    "notices": Figure("word", "what was found damaged or set aside"),
}
#: Names of this family end with the code of a refusal.
REFUSED = "refused_"
#: About the broker's process; added by the client that asks, since it runs on the same machine.
PROCESS: dict[str, Figure] = {
    "memory_bytes": Figure("gauge", "memory of the broker's process (resident)"),
    "cpu_s": Figure("counter", "processor time of the broker's process, in seconds"),
    "open_files": Figure("gauge", "files and sockets that the broker has open"),
}

#: Names of metrics begin so.
PREFIX = "zmqbus_"


def about(name: str) -> Figure | None:
    """What the figure with this name is; None: one of another release."""
    if name.startswith(REFUSED):
        return Figure("counter", f"refusals with the code {name[len(REFUSED) :]}")
    return FIGURES.get(name) or PROCESS.get(name)


def counters(figures: Mapping[str, Any]) -> dict[str, float]:
    """Those of the figures that only rise."""
    found = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if (figure := about(name)) and figure.kind == "counter"}


def rates(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """How much each counter rose a second between two looks. Empty if another broker has come in between."""
    if seconds <= 0 or before.get("epoch") != after.get("epoch"):
        return {}
    earlier = counters(before)
    return {name: max(0.0, value - earlier.get(name, 0)) / seconds for name, value in counters(after).items()}


def prometheus(figures: Mapping[str, Any] | None) -> str:
    """The figures in Prometheus's text format, version 0.0.4. None: no broker runs, which is a figure as well."""
    lines: list[str] = []
    _metric(lines, "up", "gauge", "Whether a broker answers.", [("", 1 if figures is not None else 0)])
    if figures is None:
        return "\n".join(lines) + "\n"
    words = ",".join(
        f'{name}="{_label(str(figures[name]))}"' for name in ("release", "protocol", "epoch") if name in figures
    )
    _metric(lines, "broker_info", "gauge", "What the broker is, in its labels.", [(f"{{{words}}}", 1)])
    for name, figure in {**FIGURES, **PROCESS}.items():
        value = figures.get(name)
        if figure.kind == "word" or not isinstance(value, int | float):
            continue
        metric = _unit_last(name) + ("_total" if figure.kind == "counter" else "")
        _metric(lines, metric, figure.kind, figure.says[0].upper() + figure.says[1:] + ".", [("", value)])
    refused = [
        (f'{{code="{_label(name[len(REFUSED) :])}"}}', value)
        for name, value in figures.items()
        if name.startswith(REFUSED) and isinstance(value, int)
    ]
    _metric(lines, "refused_total", "counter", "What was refused, by the code of the refusal.", sorted(refused))
    return "\n".join(lines) + "\n"


def _unit_last(name: str) -> str:
    """The unit in words, as is the custom there."""
    return f"{name[:-2]}_seconds" if name.endswith("_s") else name


def _metric(lines: list[str], name: str, kind: str, says: str, samples: list[tuple[str, Any]]) -> None:
    lines.append(f"# HELP {PREFIX}{name} " + says.replace("\\", "\\\\").replace("\n", "\\n"))
    lines.append(f"# TYPE {PREFIX}{name} {kind}")
    lines += [f"{PREFIX}{name}{labels} {value}" for labels, value in samples]


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
