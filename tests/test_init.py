"""The public names of the package, and the cost of importing it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zmqbus
from zmqbus import errors

ROOT = Path(__file__).resolve().parent.parent


def names_for_type_checkers() -> dict[str, str]:
    tree = ast.parse((ROOT / "zmqbus" / "__init__.py").read_text("utf-8"))
    return {
        alias.asname or alias.name: node.module or ""
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_three_lists_of_names_agree() -> None:
    assert set(zmqbus.__all__) == {"__version__", *zmqbus._EXPORTS}
    assert {name: module for name, module in names_for_type_checkers().items() if module != "zmqbus"} == zmqbus._EXPORTS
    assert list(zmqbus.__all__) == sorted(zmqbus.__all__)


@pytest.mark.parametrize("name", zmqbus.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(zmqbus, name) is not None
    assert name in dir(zmqbus)


@pytest.mark.parametrize("name", sorted(zmqbus._SUBMODULES))
def test_public_modules_are_attributes(name: str) -> None:
    assert getattr(zmqbus, name) is sys.modules[f"zmqbus.{name}"]


def test_all_errors_are_public() -> None:
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == "zmqbus.errors"
    }
    assert defined <= set(zmqbus.__all__)
    assert zmqbus.Timeout is errors.Timeout


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        zmqbus.conect  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(zmqbus, "__path_of_nothing__")


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import zmqbus; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['zmqbus']\n"


def test_the_version_can_be_read_without_importing() -> None:
    tree = ast.parse((ROOT / "zmqbus" / "__init__.py").read_text("utf-8"))
    [value] = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__version__"
        and isinstance(node.value, ast.Constant)
    ]
    assert value == zmqbus.__version__
