"""The results as data: figures of several systems in the same rounds, curves, and goals.

Theory of operation
===================

A time by itself says more about the machine, and about what else it had to do, than about a system. So each round
measures every system once, and what counts is the *ratio* of two systems in the same round: the median of these ratios
over the rounds, not the ratio of the medians, so that a round that was slow for both counts as any other.

A ratio is ours divided by theirs, of rates and of times alike: 1.2 × of a rate is better, 1.2 × of a time is worse.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: The system that the ratios are about.
OURS = "zmqbus"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure of zmqbus should reach: a value, or a ratio to another system's."""

    bound: float
    at_least: bool
    against: str | None = None  #: the other system; None: the figure itself
    beyond: bool = False  #: not what it should reach, but what would be better still

    def said(self, unit: str) -> str:
        """Formats the goal."""
        sign = "≥" if self.at_least else "≤"
        if self.against is not None:
            return f"{sign} {self.bound:g} × {self.against}"
        return f"{sign} {self.bound:,.10g} {unit}"

    def met(self, figure: Figure) -> bool | None:
        """Returns whether it is reached, or None if one of the two was not measured."""
        value = figure.median(OURS) if self.against is None else figure.ratio(self.against)
        if value is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(slots=True)
class Figure:
    """One quantity, of each system, in each round."""

    case: str  #: what was done, as its command-line name
    key: str  #: of this figure, unique among all
    title: str
    unit: str
    more_is_better: bool
    values: dict[str, list[float]]  #: system → its value in each round
    goals: tuple[Goal, ...] = ()
    cpu_us: dict[str, dict[str, float]] = field(default_factory=dict)  #: system → process → µs for each message

    def median(self, system: str) -> float | None:
        """Returns the median of this system's rounds, or None if it was not measured."""
        rounds = self.values.get(system)
        return statistics.median(rounds) if rounds else None

    def ratio(self, system: str) -> float | None:
        """Returns ours divided by theirs, in the same rounds, or None if one was not measured."""
        ours, theirs = self.values.get(OURS), self.values.get(system)
        if not ours or not theirs or system == OURS:
            return None
        quotients = [a / b for a, b in zip(ours, theirs, strict=False) if b]
        return statistics.median(quotients) if quotients else None

    def as_json(self) -> dict[str, Any]:
        """For `results.json`: with the medians and ratios, which it is easier to look at than to compute."""
        found = asdict(self)
        found["medians"] = {name: self.median(name) for name in self.values}
        found["ratios"] = {
            name: self.ratio(name) for name in self.values if name != OURS and self.ratio(name) is not None
        }
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Figure:
        """What `as_json` gave."""
        fields = {name: found[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "goals": tuple(Goal(**goal) for goal in found["goals"])})


@dataclass(frozen=True, slots=True)
class Curve:
    """How one quantity grows with another."""

    case: str
    key: str
    title: str
    x: str  #: what grows
    unit: str
    points: dict[str, list[tuple[float, float]]]  #: system → (x, value)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Curve:
        """What `dataclasses.asdict` gave, by way of JSON."""
        points = {name: [(x, y) for x, y in some] for name, some in found["points"].items()}
        return cls(**{**found, "points": points})


@dataclass(slots=True)
class Results:
    """A run."""

    machine: dict[str, str]
    quick: bool
    rounds: int
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  #: system, and where it is not all of it the case → why
    failed: dict[str, str] = field(default_factory=dict)  #: case → why there are no figures of it

    def by_case(self) -> list[Figure]:
        """The figures, those of one case together."""
        order = {case: number for number, case in enumerate(dict.fromkeys(figure.case for figure in self.figures))}
        return sorted(self.figures, key=lambda figure: order[figure.case])

    def as_json(self) -> dict[str, Any]:
        """For `results.json`."""
        found = asdict(self)
        found["figures"] = [figure.as_json() for figure in self.figures]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Results:
        """What `as_json` gave."""
        return cls(
            **{
                **found,
                "figures": [Figure.from_json(one) for one in found["figures"]],
                "curves": [Curve.from_json(one) for one in found["curves"]],
            }
        )
