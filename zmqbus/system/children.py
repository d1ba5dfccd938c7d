"""Child processes that run a module of this package: the broker, the indexer, a search.

A child has to import the same package and the same dependencies as this process, from a checkout, an environment of its
own or the virtual environment that the bootstrap has put on the path; and it has to search in the same order.
PYTHONPATH cannot do that: its entries come before the standard library, so a stray `typing` or `enum34` among the
packages would replace the modules of those names. So a child gets the import path of this process in a variable, and
uses it before it imports anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: The import path of the parent. The child removes it from its environment: grandchildren have a path of their own.
PATH_VARIABLE = "INTER_SESSION_IMPORT_PATH"

_START = (
    f"import os, sys; sys.path[:] = os.environ.pop('{PATH_VARIABLE}').split(os.pathsep); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *args: str) -> list[str]:
    """The command that runs a module of this package, like `python -m module args…`; needs `environ`."""
    return [sys.executable, "-c", _START, module, *args]


def environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: that of this process, the import path, and `extra`."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # A relative entry, or "", means the current directory: anybody's repository, and not that of the child.
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    if package not in path:
        path.insert(0, package)
    return {**os.environ, PATH_VARIABLE: os.pathsep.join(path), **(extra or {})}
