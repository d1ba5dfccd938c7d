"""The order of the house: imports run downhill, start-up stays cheap, and each module has a test of its own.

The sources are parsed, not imported, so imports inside functions count as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zmqbus"

#: Part of the package -> height. A part imports itself and lower parts, never its equals.
RANKS = {
    "text": 0,
    "tuples": 0,
    "errors": 1,
    "settings": 2,
    "wire": 2,
    "security": 3,
    "journal": 4,
    "process": 4,
    "system": 5,
    "bootstrap": 6,
    "broker": 7,
    "client": 7,
    "aio": 8,
    "session": 8,
    "agents": 9,
    "testing": 9,
    "doctor": 9,
    "console": 10,
    "cli": 11,
    "__main__": 12,
}

#: Lower, and still not to be imported: (importer, imported).
FORBIDDEN = {
    # Below the commands, and used by them and the console alone.
    *((part, "agents") for part in RANKS if part not in ("agents", "cli", "console")),
    # A session and the console talk to the broker over the wire like everyone else.
    ("session", "broker"),
    ("console", "broker"),
    # It runs before everything else; only install-deps and the doctor share its knowledge of the venv.
    *((part, "bootstrap") for part in RANKS if part not in ("bootstrap", "cli", "doctor", "__main__")),
}

#: Rooms of the broker that do I/O; all others are pure: they decide, and a shell acts.
BROKER_SHELLS = (
    "broker.shell.",
    "broker.storage.file",
    "broker.storage.repair",
    "broker.storage.schema",
    "broker.storage.sqlite",
)
#: No pure room imports these: shells, sockets, clocks, files, processes, randomness.
IMPURE = {
    *("fcntl", "io", "multiprocessing", "os", "pathlib", "psutil", "random", "secrets", "select", "shutil", "signal"),
    *("socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "zmq"),
    *("zmqbus.journal.reader", "zmqbus.journal.writer", "zmqbus.process", "zmqbus.settings", "zmqbus.system"),
    *("zmqbus.wire.sockets", "zmqbus.wire.wakeup"),
}
#: What requests to worker groups know of the rest of the broker.
BELOW_GROUPS = {"body_checks", "events", "groups", "metrics", "sessions"}

DEPENDENCIES = {"zmq", "msgpack", "psutil"}
#: Dependencies of an extra: importing these modules may raise ImportError.
EXTRAS = {
    "cli.tui": {"rich"},
    "console.app": {"starlette"},
    "console.responses": {"starlette"},
    "console.server": {"uvicorn"},
    "console.connections": {"uvicorn"},
}
#: Optional: module -> modules that it may try to import when needed.
OPTIONAL = {"security.digest": {"_sha2", "_sha256"}, "client.message": {"numpy"}, "client.fanout": {"tqdm"}}

#: Imported by `send` and other short-lived commands, whose whole run is a few dozen milliseconds.
HOT = (
    "errors",
    "text.display",
    "system.cmdline",
    "tuples",
    "bootstrap",
    "system.streams",
    "text.wording",
    "wire.naming",
    "process",
    "system.network",
    "settings",
    "security.private_files",
    "security.keys",
    "system.pidfile",
    "journal.checksum",
    "journal.record",
    "journal.reader",
    "journal.writer",
    "wire.verbs",
    "wire.codec",
    "wire.sockets",
    "session.owner",
    "session.owner_files",
    "session.state",
    "session.identity",
    "session.leftovers",
    "session.shown_log",
    "session.plugin_options",
    "cli.hook",
    "agents.permission",
    "cli.approve",
    "cli.output",
    "cli.send_args",
    "text.units",
    "cli.send",
)
#: Each of these costs 1 to 50 ms to import, which only rare functions may spend.
COSTLY = {
    "asyncio",
    "concurrent",
    "dataclasses",
    "hashlib",
    "importlib",
    "inspect",
    "logging",
    "multiprocessing",
    "pathlib",
    "psutil",
    "secrets",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "uuid",
}

#: Module -> test file, below tests/, that covers it where a file of its own would say nothing more.
TESTED_ELSEWHERE: dict[str, str] = {
    # Commands and the listener are tested as users see them, in real processes.
    "__main__": "test_bin.py",
    "cli.auto_start": "plugin/test_auto_start.py",
    "cli.broker": "real/test_list.py",
    "cli.connect": "real/test_listener.py",
    "cli.console": "console/test_server.py",
    "console.background": "console/test_log_tail.py",
    "console.link_issuer": "console/test_server.py",
    "console.messages": "console/test_app.py",
    "console.responses": "console/test_app.py",
    "cli.disconnect": "real/test_list.py",
    "cli.hook": "real/test_hook.py",
    "agents.hooks": "real/test_hook.py",
    "agents.waiter": "real/test_waiter.py",
    "cli.inbox": "real/test_list.py",
    "cli.jsonform": "real/test_jsonform.py",
    "cli.list": "real/test_list.py",
    "cli.main": "real/test_list.py",
    "cli.output": "real/test_send.py",
    "cli.rename": "real/test_list.py",
    "cli.send": "real/test_send.py",
    "cli.doctor": "real/test_doctor.py",
    "cli.stats": "real/test_stats.py",
    "cli.watch": "real/test_watch.py",
    "cli.wait": "real/test_wait.py",
    # Parts of one subject, tested through its report.
    "doctor.broker": "real/test_doctor.py",
    "doctor.keys": "real/test_doctor.py",
    "doctor.leftovers": "doctor/test_checks.py",
    "doctor.listener": "real/test_doctor.py",
    "doctor.permissions": "real/test_doctor.py",
    "doctor.environment": "doctor/test_checks.py",
    "doctor.report": "doctor/test_checks.py",
    "doctor.storage": "real/test_doctor.py",
    "session.listener": "real/test_listener.py",
    # Types without logic, and logic that only shows in the whole core.
    "client.events": "client/test_core.py",
    "client.requests": "client/test_core.py",
    # Two halves of one thing.
    "wire.codec": "wire/test_verbs.py",
    "wire.msg_ids": "wire/test_verbs.py",
    "wire.channels": "wire/test_verbs.py",
    "wire.header": "wire/test_verbs.py",
    "wire.limits": "wire/test_verbs.py",
    "broker.connections": "broker/test_core.py",
    "broker.directory": "broker/test_core.py",
    "broker.membership": "broker/test_core.py",
    "broker.events": "broker/test_core.py",
    "broker.delivery": "broker/test_core.py",
    "broker.admission": "broker/test_core.py",
    # Seen through the request broker.
    "broker.groups.ledger": "broker/groups/test_requests.py",
    "broker.shell.endpoints": "broker/shell/test_server.py",
    "broker.groups.model": "broker/groups/test_requests.py",
    "broker.fetch": "broker/test_core.py",
    "broker.retention": "broker/test_recovery.py",
    # Half of the simulated network.
    "testing.simclient": "testing/test_simnet.py",
    # One suite for the database and for the store that stands in for it.
    "testing.store": "broker/storage/test_api.py",
}


class Import(NamedTuple):
    line: int
    module: str  # absolute; for `from a import b` it is a.b where that is a module, else a
    at_start: bool  # runs when the importing module is imported


def modules() -> list[str]:
    """All modules below the package, as `part.module`; a package is its `__init__`."""
    found = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return [".".join(path.parts) for path in found if path.parts != ("__init__",)]


def source(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports(module: str) -> Iterator[Import]:
    package = ["zmqbus", *module.split(".")[:-1]]
    yield from _imports(ast.parse(source(module).read_text("utf-8")).body, package, True)


def _imports(nodes: list[ast.stmt], package: list[str], at_start: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, at_start)
        elif isinstance(node, ast.ImportFrom):
            # Level 1 is the package itself, each further one the package above.
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{parent}.{alias.name}"
                yield Import(node.lineno, inner if is_module(inner) else parent, at_start)
        else:
            only_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                statements = [child] if isinstance(child, ast.stmt) else getattr(child, "body", [])
                if isinstance(statements, list):
                    yield from _imports(statements, package, at_start and not inside and not only_types)


def part(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", modules())
def test_imports_run_downhill(module: str) -> None:
    own = part(module)
    assert own in RANKS, f"give zmqbus.{own} a place in RANKS"
    uphill = []
    for line, name, _ in imports(module):
        top, _, inner = name.partition(".")
        if top != "zmqbus" or not inner:  # the bare package holds the version and imports nothing
            continue
        target = part(inner)
        assert target in RANKS, f"give zmqbus.{target} a place in RANKS"
        if target != own and (RANKS[target] >= RANKS[own] or (own, target) in FORBIDDEN):
            uphill.append(f"{source(module).relative_to(ROOT)}:{line} imports {name}")
    assert not uphill, "\n".join(uphill)


def is_shell_of_the_broker(module: str) -> bool:
    return module.startswith(BROKER_SHELLS)


@pytest.mark.parametrize("module", [m for m in modules() if part(m) == "broker" and not is_shell_of_the_broker(m)])
def test_pure_rooms_of_the_broker_import_no_shell(module: str) -> None:
    found = {name for _, name, _ in imports(module)}
    impure = {name for name in found if any(name == one or name.startswith(f"{one}.") for one in IMPURE)}
    assert not impure
    assert not {name for name in found if is_shell_of_the_broker(name.removeprefix("zmqbus."))}


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith("broker.groups.")])
def test_groups_stand_below_the_core(module: str) -> None:
    of_broker = [name.split(".")[2] for _, name, _ in imports(module) if name.startswith("zmqbus.broker.")]
    assert set(of_broker) <= BELOW_GROUPS


@pytest.mark.parametrize("module", modules())
def test_only_the_declared_dependencies_are_imported(module: str) -> None:
    allowed = DEPENDENCIES | {"zmqbus"} | sys.stdlib_module_names | EXTRAS.get(module, set())
    found = {(name.partition(".")[0], start) for _, name, start in imports(module)}
    assert {name for name, at_start in found if at_start} <= allowed
    assert {name for name, _ in found} <= allowed | OPTIONAL.get(module, set())


def loaded_with(module: str) -> set[str]:
    """A module and all modules of the package that are imported with it."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in found and source(name).is_file():
            found.add(name)
            waiting += [used.removeprefix("zmqbus.") for _, used, start in imports(name) if start and "zmqbus." in used]
    return found


@pytest.mark.parametrize("module", HOT)
def test_modules_of_every_command_are_cheap_to_import(module: str) -> None:
    at_start = {name.partition(".")[0] for used in loaded_with(module) for _, name, start in imports(used) if start}
    assert not at_start & COSTLY


def test_errors_and_bootstrap_import_next_to_nothing() -> None:
    assert {name for _, name, _ in imports("errors")} <= {"__future__", "typing", "zmqbus.text.display"}
    assert not [name for _, name, start in imports("errors") if start and name.startswith("zmqbus")]
    light = {"zmqbus.system.streams", "zmqbus.text.wording"}
    assert {name for _, name, start in imports("bootstrap") if start} == {"os", "sys"} | light
    assert {name for _, name, _ in imports("bootstrap") if name.startswith("zmqbus")} == {"zmqbus.settings"} | light
    for module in light:
        assert {name for _, name, start in imports(module.removeprefix("zmqbus.")) if start} <= {"io", "os", "sys"}


def test_package_imports_nothing() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    assert not [found for found in _imports(tree.body, ["zmqbus"], True) if found.at_start]


def test_install_deps_needs_no_dependency() -> None:
    """It runs before any is installed, with everything that it imports."""
    waiting, seen = ["cli.install_deps"], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for _, name, start in imports(module):
            if not start:
                continue
            assert name.partition(".")[0] not in DEPENDENCIES, module
            if name.startswith("zmqbus."):
                waiting.append(name.removeprefix("zmqbus."))
    assert {"settings", "bootstrap", "errors"} <= seen


@pytest.mark.parametrize("module", [name for name in modules() if not name.endswith("__init__")])
def test_each_module_has_a_test_of_its_own(module: str) -> None:
    if module in TESTED_ELSEWHERE:
        assert (ROOT / "tests" / TESTED_ELSEWHERE[module]).is_file()
        return
    *packages, name = module.split(".")
    name = name.strip("_")
    candidates = [Path(*packages, f"test_{name}.py"), Path(f"test_{'_'.join([*packages, name])}.py")]
    if [other.rpartition(".")[2] for other in modules()].count(name) == 1:  # no doubt whose it is
        candidates.append(Path(f"test_{name}.py"))
    assert any((ROOT / "tests" / path).is_file() for path in candidates), f"add tests/{candidates[0]}"


def test_import_reader() -> None:
    text = (
        "import os\nfrom zmqbus.wire import naming\nfrom . import core\nfrom ..errors import Timeout\n"
        "if TYPE_CHECKING:\n    import zmq\n"
        "try:\n    import json\nexcept ImportError:\n    import re\n"
        "def f():\n    with x:\n        import uuid\n"
        "class A:\n    import csv\n    def g(self):\n        import cmd\n"
        "match x:\n    case 1:\n        import this\n"
    )
    found = [(name, start) for _, name, start in _imports(ast.parse(text).body, ["zmqbus", "broker"], True)]
    assert found == [
        ("os", True),
        ("zmqbus.wire.naming", True),
        ("zmqbus.broker.core", True),
        ("zmqbus.errors", True),
        ("zmq", False),
        ("json", True),
        ("re", True),
        ("uuid", False),
        ("csv", True),
        ("cmd", False),
        ("this", True),
    ]
