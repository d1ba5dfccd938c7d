"""Named tuples of our own making, beside those of `typing`."""

from __future__ import annotations

import collections
import copy
import inspect
import pickle
import sys
import threading
import typing
from typing import Any

import pytest

from zmqbus import tuples
from zmqbus.tuples import NamedTuple


class Point(NamedTuple):
    """A place."""

    x: int
    y: int = 2
    name: str | None = None

    @property
    def far(self) -> bool:
        return self.x > 10


class TheirPoint(typing.NamedTuple):
    """A place."""

    x: int
    y: int = 2
    name: str | None = None


class Nothing(NamedTuple):
    """No field."""


class Secret(NamedTuple):
    word: str

    def __repr__(self) -> str:
        return "Secret(…)"


class Further(Point):
    """A class below one."""


def build() -> Any:
    """A class of which there has been no instance."""

    class Fresh(NamedTuple):
        one: int
        two: str = "b"

    return Fresh


@pytest.mark.parametrize(
    ("values", "named"), [((1,), {}), ((1, 3), {}), ((), {"x": 1, "name": "n"}), ((1, 2, "n"), {}), ((4,), {"y": 5})]
)
def test_is_made_and_looks_like_theirs(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours: Any = Point(*values, **named)
    theirs: Any = TheirPoint(*values, **named)
    assert ours == theirs == tuple(theirs) and hash(ours) == hash(theirs)
    assert repr(ours) == repr(theirs).replace("TheirPoint", "Point")
    assert (ours.x, ours.y, ours.name) == (theirs.x, theirs.y, theirs.name)
    assert ours._asdict() == theirs._asdict()
    assert ours._replace(x=9) == theirs._replace(x=9)
    assert type(ours._replace(x=9)) is Point
    assert Point._make([1, 2, None]) == (1, 2, None)


def test_the_class_looks_like_theirs() -> None:
    assert Point.__mro__ == (Point, tuple, object)
    assert Point._fields == TheirPoint._fields == Point.__match_args__
    assert Point._field_defaults == TheirPoint._field_defaults
    assert Point.__doc__ == "A place." and Point.__module__ == __name__ and Point.__name__ == "Point"
    assert not hasattr(Point(1), "__dict__")
    assert Point(11).far
    assert typing.get_type_hints(Point) == typing.get_type_hints(TheirPoint)
    ours: Any = Point.x
    assert ours.__doc__ == "Field number 0"


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3, 4), {}), ((1,), {"z": 2}), ((1,), {"x": 2})])
def test_wrong_arguments_are_refused_the_first_time_too(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    fresh = build()
    for _ in range(2):
        with pytest.raises(TypeError, match="__new__"):
            fresh(*values, **named)
    with pytest.raises(TypeError, match="Expected 2 arguments, got 3"):
        fresh._make([1, 2, 3])
    with pytest.raises(TypeError, match="unexpected field names"):
        fresh(1)._replace(z=1)


def test_the_constructor_that_stays_is_as_the_standard_librarys() -> None:
    """The hot paths are measured with it: no wrapper, no `*args`."""
    fresh = build()
    first = fresh.__new__
    assert fresh(1) == (1, "b")
    assert fresh.__new__ is not first
    theirs: Any = collections.namedtuple("theirs", "one two")
    assert fresh.__new__.__code__.co_code == theirs.__new__.__code__.co_code
    assert list(inspect.signature(fresh).parameters) == ["one", "two"]


def test_threads_that_make_the_first_at_once() -> None:
    for _ in range(50):
        fresh, start = build(), threading.Barrier(4)
        made: list[Any] = []

        def make(fresh: Any = fresh, made: list[Any] = made, start: threading.Barrier = start) -> None:
            start.wait(90)
            made.append(fresh(1, two="c"))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [(1, "c")] * 4


def test_without_fields() -> None:
    assert Nothing() == () and repr(Nothing()) == "Nothing()" and Nothing._fields == ()
    with pytest.raises(TypeError):
        Nothing(1)  # type: ignore[call-arg]


def test_methods_of_its_own_come_first() -> None:
    assert repr(Secret("x")) == "Secret(…)"


def test_a_class_below_one() -> None:
    first = Further(1)
    assert type(first) is Further and first == Point(1) and repr(first).startswith("Further(x=1")


def test_is_matched_by_position() -> None:
    match Point(1, 2, "n"):
        case Point(x, y, name):
            assert (x, y, name) == (1, 2, "n")


def test_can_be_copied_and_pickled() -> None:
    point = Point(1, name="n")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(point, protocol))
        assert again == point and type(again) is Point
    assert copy.deepcopy(point) == point
    if sys.version_info >= (3, 13):
        assert copy.replace(point, x=2) == point._replace(x=2)


def test_a_field_without_a_default_may_not_follow_one_with() -> None:
    with pytest.raises(TypeError, match="without a default"):

        class Wrong(NamedTuple):
            a: int = 1
            b: int  # type: ignore[misc]


def test_annotations_that_are_a_function_are_left_to_typing() -> None:
    """As python 3.14 has them. (Here with what earlier ones have, too, which is what their `typing` reads.)"""
    namespace = {
        "__annotate_func__": lambda form: {"a": int},
        "__annotations__": {"a": int},
        "__module__": __name__,
        "__qualname__": "New",
    }
    made: Any = tuples._made("New", namespace)
    assert made(3).a == 3 and made._fields == ("a",)
    assert made._make.__func__ is not Point._make.__func__  # type: ignore[attr-defined]
