"""Checks that attributes of state change along their tables of legal transitions only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any


class IllegalTransition(AssertionError):
    """A state has followed another one that the table does not allow it to follow."""


def check_transitions(owner: type, transitions: Mapping[Any, Set[Any]], attribute: str = "state") -> Callable[[], None]:
    """Replaces the slot `attribute` of a class by a property that raises `IllegalTransition`. Returns the undoing."""
    slot = vars(owner)[attribute]

    def change(self: Any, new: Any) -> None:
        try:
            old = slot.__get__(self)
        except AttributeError:  # the first state
            old = new
        if new is not old and new not in transitions[old]:
            raise IllegalTransition(f"{old} → {new} of {self!r}")
        slot.__set__(self, new)

    setattr(owner, attribute, property(slot.__get__, change))
    return lambda: setattr(owner, attribute, slot)
