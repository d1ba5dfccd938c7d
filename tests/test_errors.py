"""The tree of errors: every code of the contract has its class, and comes back from the wire as that class."""

from __future__ import annotations

import pickle

import pytest

from zmqbus import errors

#: Errors that users meet.
CODES = (
    "unknown_peer",
    "ambiguous",
    "invalid_name",
    "invalid_label",
    "invalid_payload",
    "text_too_long",
    "rate_limited",
    "unauthorized",
    "not_connected",
    "broker_unavailable",
    "timeout",
    "poisoned",
)
#: Errors that only programs meet; the broker does not send them.
LOCAL_CODES = ("overloaded", "forked", "remote_error", "usage", "invalid_argument")


def all_errors(root: type[errors.ZmqbusError] = errors.ZmqbusError) -> list[type[errors.ZmqbusError]]:
    found = [cls for cls in root.__subclasses__() if cls.__module__ == errors.__name__]
    return [root, *(error for cls in found for error in all_errors(cls))]


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_class(code):
    error = errors.from_code(code, "what happened; what to do")
    assert error.code == code and type(error).code == code
    assert str(error) == "what happened; what to do"


def test_no_other_codes_exist():
    assert {error.code for error in all_errors()} == {*CODES, *LOCAL_CODES, "internal", "protocol"}


def test_taken_name_has_its_own_code_on_the_wire():
    error = errors.from_code("name_taken", "taken")
    assert type(error) is errors.NameTaken and isinstance(error, errors.InvalidName)
    assert (error.code, error.wire_code) == ("invalid_name", "name_taken")
    assert type(errors.from_code("invalid_name", "")) is errors.InvalidName


@pytest.mark.parametrize("code", ["", "unheard_of", "internal"])
def test_unknown_code_is_a_broker_error(code):
    error = errors.from_code(code, "text")
    assert type(error) is errors.BrokerError and str(error) == "text"


def test_branches():
    branches = (
        errors.LocalError,
        errors.DeliveryError,
        errors.BrokerError,
        errors.RemoteError,
        errors.ProtocolError,
    )
    for error in all_errors():
        if error is not errors.ZmqbusError:
            assert len([branch for branch in branches if issubclass(error, branch)]) == 1, error


def test_timeout_is_a_python_timeout():
    with pytest.raises(TimeoutError):
        raise errors.Timeout("no answer")


def test_held_port_is_reported_with_a_remedy():
    error = errors.PortHeld(9473)
    assert error.port == 9473 and isinstance(error, errors.BrokerUnavailable)
    assert "9473" in str(error) and "--port" in str(error)


def test_remote_error_can_be_pickled():
    error = errors.RemoteError("ValueError", "no such file", "Traceback …")
    assert str(error) == "ValueError: no such file"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.RemoteError
    assert (again.kind, again.text, again.traceback) == ("ValueError", "no such file", "Traceback …")
