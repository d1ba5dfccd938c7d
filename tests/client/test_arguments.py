"""Arguments: each is checked where it comes in, with an error that names it and says what it has to be."""

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


def test_values_are_shown_short_and_harmless():
    assert arguments.shown(5) == "5 (int)"
    assert len(arguments.shown("x" * 10_000)) < 100
    assert "cannot be shown" in arguments.shown(Odd()) and "Odd" in arguments.shown(Odd())
    assert "\x1b" not in arguments.shown(type("Red", (), {"__repr__": lambda self: "\x1b[31m"})())


@pytest.mark.parametrize("value", ["5", b"5", None, True, math.nan, [1], Odd(), 1j])
def test_what_is_no_number_of_seconds(value):
    with pytest.raises(errors.InvalidArgument, match="timeout is a number of seconds"):
        arguments.seconds(value)


@pytest.mark.parametrize(("value", "number"), [(0, 0.0), (1, 1.0), (2.5, 2.5), (-1, -1.0)])
def test_seconds(value, number):
    assert arguments.seconds(value) == arguments.seconds_or_none(value) == number


@pytest.mark.parametrize("value", [math.inf, 1e300, 10**400])
def test_endless_is_as_long_as_a_thread_can_wait(value):
    if value == 10**400:
        with pytest.raises(errors.InvalidArgument):
            arguments.seconds(value)
        return
    assert arguments.seconds(value) == threading.TIMEOUT_MAX
    assert arguments.seconds_or_none(value) is None


def test_the_error_is_pythons_own_too():
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
def test_what_is_wrong_is_said(check: Any, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as caught:
        check(value)
    assert says in str(caught.value)


def test_what_is_right_passes():
    assert arguments.names("a", "topic") == ("a",)
    assert arguments.names(["a", "b"], "topic") == arguments.names((x for x in "ab"), "topic") == ("a", "b")
    assert arguments.label(None) is arguments.label("") is None
    assert arguments.port(None) is None and arguments.port(9473) == 9473
    assert arguments.targets(("a", "b")) == ["a", "b"]
    items = iter([1])
    assert arguments.items(items) is items
    assert arguments.message_id(None) is None
