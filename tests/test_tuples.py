"""Named tuples that are cheap to make, compared with those of `typing`, with and without the private descriptor."""

from __future__ import annotations

import collections
import copy
import inspect
import pickle
import sys
import threading
import typing
from collections.abc import Iterator
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


def build() -> Any:
    """A class of which there has been no instance."""

    class Fresh(NamedTuple):
        one: int
        two: str = "b"

    return Fresh


@pytest.fixture(params=["private descriptor", "property"])
def fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "property":
        monkeypatch.setattr(tuples, "_field", tuples._property)
    yield build()


class TestFields:
    def test_read_by_name(self, fresh: Any) -> None:
        made = fresh(1, "c")
        assert (made.one, made.two) == (1, "c") == made
        assert fresh.two.__doc__ == "Field number 1"
        with pytest.raises(AttributeError):
            made.one = 2
        assert not hasattr(made, "__dict__")

    def test_private_descriptor_is_used_where_it_behaves_as_expected(self) -> None:
        """On every supported CPython: a python where this fails reads fields three times slower."""
        assert tuples._field is not tuples._property
        theirs: Any = collections.namedtuple("theirs", "one")
        assert type(build().one) is type(theirs.one)

    @pytest.mark.parametrize("getter", [None, lambda position, doc: object(), lambda position: None, property])
    def test_property_is_used_where_the_descriptor_differs(self, getter: Any) -> None:
        assert tuples._checked(getter) is tuples._property


class TestClass:
    @pytest.mark.parametrize(
        ("values", "named"),
        [((1,), {}), ((1, 3), {}), ((), {"x": 1, "name": "n"}), ((1, 2, "n"), {}), ((4,), {"y": 5})],
    )
    def test_instances_equal_those_of_typing(self, values: tuple[Any, ...], named: dict[str, Any]) -> None:
        ours: Any = Point(*values, **named)
        theirs: Any = TheirPoint(*values, **named)
        assert ours == theirs == tuple(theirs) and hash(ours) == hash(theirs)
        assert repr(ours) == repr(theirs).replace("TheirPoint", "Point")
        assert (ours.x, ours.y, ours.name) == (theirs.x, theirs.y, theirs.name)
        assert ours._asdict() == theirs._asdict()
        assert ours._replace(x=9) == theirs._replace(x=9)
        assert type(ours._replace(x=9)) is Point
        assert Point._make([1, 2, None]) == (1, 2, None)

    def test_attributes_equal_those_of_typing(self) -> None:
        assert Point.__mro__ == (Point, tuple, object)
        assert Point._fields == TheirPoint._fields == Point.__match_args__
        assert Point._field_defaults == TheirPoint._field_defaults
        assert Point.__doc__ == "A place." and Point.__module__ == __name__ and Point.__name__ == "Point"
        assert Point(11).far
        assert typing.get_type_hints(Point) == typing.get_type_hints(TheirPoint)

    def test_no_fields(self) -> None:
        class Nothing(NamedTuple):
            """No field."""

        assert Nothing() == () and repr(Nothing()) == "Nothing()" and Nothing._fields == ()
        with pytest.raises(TypeError):
            Nothing(1)  # type: ignore[call-arg]

    def test_own_methods_and_subclasses(self) -> None:
        class Secret(Point):
            def __repr__(self) -> str:
                return "Secret(…)"

        first = Secret(1)
        assert type(first) is Secret and first == Point(1) and repr(first) == "Secret(…)"

    def test_match_by_position(self) -> None:
        match Point(1, 2, "n"):
            case Point(x, y, name):
                assert (x, y, name) == (1, 2, "n")

    def test_copy_and_pickle(self) -> None:
        point = Point(1, name="n")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(point, protocol))
            assert again == point and type(again) is Point
        assert copy.deepcopy(point) == point
        if sys.version_info >= (3, 13):
            assert copy.replace(point, x=2) == point._replace(x=2)

    def test_field_without_a_default_after_one_with(self) -> None:
        with pytest.raises(TypeError, match="without a default"):

            class Wrong(NamedTuple):
                a: int = 1
                b: int  # type: ignore[misc]

    def test_annotations_that_are_a_function_are_left_to_typing(self) -> None:
        """As python 3.14 has them without the future import; `__annotations__` is for the `typing` of earlier ones."""
        namespace = {
            "__annotate_func__": lambda form: {"a": int},
            "__annotations__": {"a": int},
            "__module__": __name__,
            "__qualname__": "New",
        }
        made: Any = tuples._make_class("New", namespace)
        assert made(3).a == 3 and made._fields == ("a",)
        assert made._make.__func__ is not Point._make.__func__  # type: ignore[attr-defined]


class TestConstructor:
    @pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3, 4), {}), ((1,), {"z": 2}), ((1,), {"x": 2})])
    def test_wrong_arguments_at_the_first_call_and_later(
        self, fresh: Any, values: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        for _ in range(2):
            with pytest.raises(TypeError, match="__new__"):
                fresh(*values, **named)
        with pytest.raises(TypeError, match="Expected 2 arguments, got 3"):
            fresh._make([1, 2, 3])
        with pytest.raises(TypeError, match="unexpected field names"):
            fresh(1)._replace(z=1)

    def test_compiled_to_the_code_of_the_standard_library(self, fresh: Any) -> None:
        """The hot paths are measured with it: no wrapper, no `*args`."""
        first = fresh.__new__
        assert fresh(1) == (1, "b")
        assert fresh.__new__ is not first
        theirs: Any = collections.namedtuple("theirs", "one two")
        assert fresh.__new__.__code__.co_code == theirs.__new__.__code__.co_code
        assert list(inspect.signature(fresh).parameters) == ["one", "two"]

    def test_first_calls_in_several_threads(self) -> None:
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
