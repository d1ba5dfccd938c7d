"""Register the handler of each verb beside its code: `@handles(verbs.Ping)`, collected by `handlers_of`.

The verb table (`zmqbus.wire.verbs.TABLE`) says which verbs exist; a core passes those that it receives, and the classes
that handle them. A verb without a handler, with two, or of the other direction fails there, when the core is imported,
and not when the first peer sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., None])
_ATTRIBUTE = "handled_verbs"


def handles(*verbs: type[Any]) -> Callable[[_Function], _Function]:
    """Marks a method as the handler of these verbs."""

    def mark(function: _Function) -> _Function:
        setattr(function, _ATTRIBUTE, verbs)
        return function

    return mark


def handlers_of(received: Iterable[type[Any]], *parts: type[Any]) -> dict[type[Any], tuple[type[Any], str]]:
    """Returns for each verb of `received` the class among `parts` that handles it and the name of its method.

    Raises `TypeError` where that is not exactly one method a verb.
    """
    found: dict[type[Any], tuple[type[Any], str]] = {}
    for part in parts:
        for name, function in vars(part).items():
            for verb in getattr(function, _ATTRIBUTE, ()):
                if verb in found:
                    raise TypeError(f"{verb.__name__} has two handlers: {found[verb]} and {(part, name)}")
                found[verb] = part, name
    wanted = set(received)
    if missing := sorted(verb.__name__ for verb in wanted.difference(found)):
        raise TypeError(f"verbs without a handler: {', '.join(missing)}; see zmqbus.wire.handlers")
    if foreign := sorted(verb.__name__ for verb in set(found).difference(wanted)):
        raise TypeError(f"handlers of verbs that are not received here: {', '.join(foreign)}")
    return found
