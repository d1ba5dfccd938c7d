"""`NamedTuple` as in `typing`, at a third of what making such a class costs there.

A command lives for 45 ms, and a hundred of these classes took 7 of them: `typing` compiles the annotation of each
field, and `collections` the constructor of each class. Here nothing looks at annotations, what is the same for all is
shared by all, and a constructor is compiled when it is called first. From then on it is the one that `collections`
makes, and as fast. Type checkers see `typing.NamedTuple`; what they know of it holds, with these exceptions:

* `inspect.signature` knows the fields of a class only when there has been an instance of it;
* a class cannot be generic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from _collections import _tuplegetter as _field  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # another implementation of python than CPython: slower to make, and the same
    from operator import itemgetter

    def _field(position: int, doc: str) -> property:
        return property(itemgetter(position), doc=doc)


if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NamedTuple
else:

    class _Maker(type):
        """The class of `NamedTuple` alone: what derives from that is made a plain subclass of tuple."""

        def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
            return _made(name, namespace) if bases else super().__new__(cls, name, bases, namespace)

    class NamedTuple(metaclass=_Maker):
        """See the module."""


__all__ = ["NamedTuple"]


def _made(name: str, namespace: dict[str, Any]) -> type:
    if "__annotate_func__" in namespace or "__annotate__" in namespace:
        # From python 3.14 on, where the module does without `from __future__ import annotations`: left to who knows it.
        import types
        import typing

        return types.new_class(name, (typing.NamedTuple,), {}, lambda body: body.update(namespace))
    fields = tuple(namespace.get("__annotations__", ()))
    defaults = {field: namespace[field] for field in fields if field in namespace}
    if tuple(defaults) != fields[len(fields) - len(defaults) :]:
        raise TypeError(f"{name}: a field without a default follows one that has one")
    for position, field in enumerate(fields):
        namespace[field] = _field(position, f"Field number {position}")
    own = {"__slots__": (), "_fields": fields, "_field_defaults": defaults, "__match_args__": fields}
    return type(name, (tuple,), _SHARED | namespace | own)


# --- what all of them have ---------------------------------------------------------------------------------------


def _first_new(cls: Any, /, *values: Any, **named: Any) -> Any:
    """The constructor until it is called: makes the real one."""
    owner: Any = next(base for base in cls.__mro__ if "_fields" in base.__dict__)
    arguments = "".join(f"{field}, " for field in owner._fields)
    code = f"lambda _cls, {arguments}: _new(_cls, ({arguments}))"
    new = eval(code, {"_new": tuple.__new__, "__builtins__": {}, "__name__": owner.__module__})
    new.__name__, new.__qualname__ = "__new__", f"{owner.__qualname__}.__new__"
    new.__defaults__ = tuple(owner._field_defaults.values())
    owner.__new__ = new
    return new(cls, *values, **named)


def _make(cls: Any, iterable: Iterable[Any]) -> Any:
    made = tuple.__new__(cls, iterable)
    if len(made) != len(cls._fields):
        raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
    return made


def _replace(self: Any, /, **changes: Any) -> Any:
    made = self._make(map(changes.pop, self._fields, self))
    if changes:
        raise TypeError(f"Got unexpected field names: {list(changes)!r}")
    return made


def _asdict(self: Any) -> dict[str, Any]:
    return dict(zip(self._fields, self, strict=True))


def _repr(self: Any) -> str:
    fields = ", ".join(f"{field}={value!r}" for field, value in zip(self._fields, self, strict=True))
    return f"{self.__class__.__name__}({fields})"


def _getnewargs(self: Any) -> tuple[Any, ...]:
    return tuple(self)


_SHARED = {
    "__new__": _first_new,
    "_make": classmethod(_make),
    "_replace": _replace,
    "__replace__": _replace,
    "_asdict": _asdict,
    "__repr__": _repr,
    "__getnewargs__": _getnewargs,
    "__doc__": None,
}
