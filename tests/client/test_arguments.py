"""Arguments of the Python API: an error names the argument and says what it must be."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from zmqbus import errors
from zmqbus.client import arguments


class Odd:
    def __repr__(self) -> str:
        raise SystemExit(1)


def test_values_are_shown_short_and_sanitised():
    assert arguments.shown(5) == "5 (int)"
    assert len(arguments.shown("x" * 10_000)) < 100
    assert "cannot be shown" in arguments.shown(Odd()) and "Odd" in arguments.shown(Odd())
    assert "\x1b" not in arguments.shown(type("Red", (), {"__repr__": lambda self: "\x1b[31m"})())


TIMES: list[Any] = [arguments.seconds, arguments.seconds_or_none, arguments.patience_or_none]


class TestSeconds:
    @pytest.mark.parametrize("check", TIMES)
    @pytest.mark.parametrize("value", ["5", b"5", True, math.nan, [1], Odd(), 1j, 10**400])
    def test_other_values_are_refused(self, check, value):
        with pytest.raises(errors.InvalidArgument, match=r"timeout.* is a number of seconds"):
            check(value)

    @pytest.mark.parametrize("check", TIMES)
    @pytest.mark.parametrize(("value", "number"), [(0, 0.0), (1, 1.0), (2.5, 2.5), (-0.0, 0.0)])
    def test_numbers_from_zero_on(self, check, value, number):
        assert check(value) == number

    @pytest.mark.parametrize("value", [-1, -0.5, -math.inf])
    def test_a_negative_deadline_is_refused_and_a_negative_wait_is_none(self, value):
        for check in (arguments.seconds, arguments.seconds_or_none):
            with pytest.raises(errors.InvalidArgument, match="is a number of seconds, 0 or more, not -"):
                check(value)
        assert arguments.patience_or_none(value) == 0.0

    @pytest.mark.parametrize("value", [math.inf, 1e300])
    def test_endless_is_the_longest_wait_of_a_thread(self, value):
        assert arguments.seconds(value) == threading.TIMEOUT_MAX
        assert arguments.seconds_or_none(value) is arguments.patience_or_none(value) is None

    def test_none_is_no_limit_and_no_number(self):
        assert arguments.seconds_or_none(None) is arguments.patience_or_none(None) is None
        with pytest.raises(errors.InvalidArgument):
            arguments.seconds(None)


def test_an_invalid_argument_is_a_type_and_value_error_too():
    for kind in (TypeError, ValueError, errors.LocalError):
        with pytest.raises(kind):
            arguments.flag("no", "wait")


@pytest.mark.parametrize(
    ("check", "value", "error", "says"),
    [
        (arguments.name, 5, errors.InvalidName, "a name is text, not 5"),
        (arguments.name, None, errors.InvalidName, "a name is text"),
        (arguments.label, 5, errors.InvalidLabel, "a label is text"),
        (lambda value: arguments.names(value, "topic"), 5, errors.InvalidArgument, "topic is a name, or several"),
        (lambda value: arguments.names(value, "topic"), [5], errors.InvalidName, "a topic is text"),
        (arguments.port, "9473", errors.InvalidArgument, "port is a number from 1 to 65535"),
        (arguments.port, 0, errors.InvalidArgument, "port"),
        (arguments.port, True, errors.InvalidArgument, "port"),
        (arguments.port, 70_000, errors.InvalidArgument, "port"),
        (arguments.message_id, 5, errors.InvalidArgument, "reply_to is the id of a message"),
        (arguments.targets, "auth", errors.InvalidArgument, "list of names, not the text 'auth'"),
        (arguments.targets, 5, errors.InvalidArgument, "list of names"),
        (arguments.items, "abc", errors.InvalidArgument, "several bodies"),
        (arguments.items, b"abc", errors.InvalidArgument, "several bodies"),
        (arguments.items, None, errors.InvalidArgument, "several bodies"),
        (lambda value: arguments.count(value, "concurrency"), 0, errors.InvalidArgument, "concurrency"),
        (lambda value: arguments.count(value, "concurrency"), 1.5, errors.InvalidArgument, "concurrency"),
        (lambda value: arguments.flag(value, "wait"), 1, errors.InvalidArgument, "wait is True or False"),
    ],
)
def test_errors_name_the_argument(check: Any, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        check(value)
    assert says in str(caught.value)


def test_valid_values_pass():
    assert arguments.names("a", "topic") == ("a",)
    assert arguments.names(["a", "b"], "topic") == arguments.names((x for x in "ab"), "topic") == ("a", "b")
    assert arguments.label(None) is arguments.label("") is None
    assert arguments.port(None) is None and arguments.port(9473) == 9473
    assert arguments.targets(("a", "b")) == ["a", "b"]
    items = iter([1])
    assert arguments.items(items) is items
    assert arguments.message_id(None) is None
