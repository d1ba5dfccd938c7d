"""`NamedTuple` as in `typing`, at a third of what making such a class costs there.

A command lives for 45 ms and makes a hundred of these classes. Processor time of `send`, medians of 25 interleaved runs
(CPython 3.11): 60.0 ms with these classes and 67.6 ms with those of `typing`, which compiles the annotation of each
field and the constructor of each class; that is 1.28 and 1.42 times `python -c "import zmq, msgpack"`, and 1.3 is the
bound. Here nothing evaluates annotations, all classes share their methods, and a constructor is compiled at its first
call. From then on it is that of `collections.namedtuple`, and as fast. Type checkers see
`typing.NamedTuple`, and what they know of it holds, with two exceptions:

* `inspect.signature` knows the fields of a class only when there has been an instance of it;
* a class cannot be generic.

One private name of CPython is used, the descriptor of `namedtuple`'s fields. Where it is missing or behaves in another
way, a property takes its place: the same, and slower to read.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any


def _property(position: int, doc: str) -> Any:
    return property(itemgetter(position), doc=doc)


def _checked(getter: Any) -> Any:
    """The getter if it makes a descriptor of a field, as `namedtuple` uses it; otherwise `_property`."""
    try:
        field = getter(1, "doc")
        return getter if field.__get__((1, 2)) == 2 and field.__doc__ == "doc" else _property
    except Exception:  # whatever another implementation raises
        return _property


try:
    from _collections import _tuplegetter  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    _tuplegetter = None
_field = _checked(_tuplegetter)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NamedTuple
else:

    class _Maker(type):
        """The class of `NamedTuple` alone: a class derived from `NamedTuple` becomes a plain subclass of tuple."""

        def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
            return _make_class(name, namespace) if bases else super().__new__(cls, name, bases, namespace)

    class NamedTuple(metaclass=_Maker):
        """See the module."""


__all__ = ["NamedTuple"]


def _make_class(name: str, namespace: dict[str, Any]) -> type:
    if "__annotate_func__" in namespace or "__annotate__" in namespace:
        # Python 3.14 in a module without `from __future__ import annotations`: typing evaluates these.
        import types
        import typing

        return types.new_class(name, (typing.NamedTuple,), {}, lambda body: body.update(namespace))
    fields = tuple(namespace.get("__annotations__", ()))
    defaults = {field: namespace[field] for field in fields if field in namespace}
    if tuple(defaults) != fields[len(fields) - len(defaults) :]:
        raise TypeError(f"{name}: a field without a default follows a field with one")
    for position, field in enumerate(fields):
        namespace[field] = _field(position, f"Field number {position}")
    own = {"__slots__": (), "_fields": fields, "_field_defaults": defaults, "__match_args__": fields}
    return type(name, (tuple,), _SHARED | namespace | own)


# --- methods that all classes share ------------------------------------------------------------------------------


def _first_new(cls: Any, /, *values: Any, **named: Any) -> Any:
    """The constructor until its first call, which replaces it with the real one."""
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
