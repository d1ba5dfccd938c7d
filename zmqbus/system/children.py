"""Children of this process that run a part of this package: the broker, the indexer, a search.

A child has to find the same package, and the same dependencies, wherever this process found them: a checkout, an
environment of its own, the virtual environment that the bootstrap has put on the path. And it has to look for them in
the same order. PYTHONPATH cannot say that: what it names comes before the standard library, so that a directory of
packages in it makes a stray `typing` or `enum34` pass for the modules of those names. So a child is given the path of
this process, entry by entry, and takes it over before it imports anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: Holds the path of the parent. Taken out of the environment by the child: grandchildren have a path of their own.
PATH_VARIABLE = "INTER_SESSION_IMPORT_PATH"

_START = (
    f"import os, sys; sys.path[:] = os.environ.pop('{PATH_VARIABLE}').split(os.pathsep); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *args: str) -> list[str]:
    """The command that runs a module of this package, like `python -m module args…`. Goes with `environ`."""
    return [sys.executable, "-c", _START, module, *args]


def environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of such a child: this process's, the import path, and `extra`."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # What is relative, or "", means the current directory: anybody's repository, and not that of the child.
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    if package not in path:
        path.insert(0, package)
    return {**os.environ, PATH_VARIABLE: os.pathsep.join(path), **(extra or {})}
