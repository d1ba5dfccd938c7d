"""docs/python.md: every block of code is Python and runs as it is.

Each section runs on a bus of its own. Its blocks are one program, after the prelude at the beginning of the page;
blocks marked `runs beside` are programs that run meanwhile in all sections, and those marked `a file` are separate
programs.
Other sessions on the bus answer every message of the guide.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import zmqbus
import zmqbus.aio
from tests.real.conftest import ROOT, Bus, wait_until

PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
#: A fence, and the comment on the line before it.
BLOCK = re.compile(r"(?:<!-- (?P<mark>[a-z ]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE_S = 90.0

#: Sessions to which the guide sends, and a program that sends to two sessions of the guide.
AROUND = """
import signal, threading
import zmqbus

over = threading.Event()


def visit():
    # Somebody wants something of the two sessions that the guide plays, as soon as they are there.
    waiting = {"reviewer", "importer"}
    with zmqbus.connect() as bus:
        while waiting and not over.wait(0.15):  # there may be ten lists a second
            for session in bus.sessions():
                if session.name in waiting:
                    waiting.discard(session.name)
                    bus.request(session.name, "please have a look")
        over.wait()


buses = [zmqbus.connect(name, topics=["deploys"]) for name in ("auth", "pay", "docs")]
threads = [
    threading.Thread(target=bus.serve, args=(lambda m: f"done: {m.text}",), kwargs={"stop": over}) for bus in buses
]
threads.append(threading.Thread(target=visit))
for thread in threads:
    thread.start()
signal.signal(signal.SIGTERM, lambda *_: over.set())
for thread in threads:
    thread.join()
for bus in buses:
    bus.close()
"""


class Block(NamedTuple):
    section: str
    mark: str | None
    code: str


def blocks() -> list[Block]:
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        title = section.partition("\n")[0]
        for match in BLOCK.finditer(section):
            assert match["kind"] == "python"
            assert match["mark"] in (None, "prelude", "runs beside", "a file")
            found.append(Block(title, match["mark"], match["code"]))
    return found


BLOCKS = blocks()
PRELUDE = next(block.code for block in BLOCKS if block.mark == "prelude")
SECTIONS = [*dict.fromkeys(block.section for block in BLOCKS if block.mark != "prelude")]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.section)
def test_compiles(block: Block) -> None:
    compile(block.code, block.section, "exec")


def test_names_what_there_is() -> None:
    """Every `bus.this` and `zmqbus.That` in the text exists."""
    for name in re.findall(r"\bbus\.(\w+)\(", PAGE):
        assert hasattr(zmqbus.Bus, name) or hasattr(zmqbus.aio.Bus, name), name
    for name in re.findall(r"\bzmqbus\.([A-Za-z_]\w*)", PAGE):
        assert hasattr(zmqbus, name), name


def test_has_every_error() -> None:
    told = PAGE.partition("## When something goes wrong")[2]
    for name in zmqbus.__all__:
        one = getattr(zmqbus, name)
        if isinstance(one, type) and issubclass(one, Exception) and one not in (zmqbus.ProtocolError,):
            assert f"`{name}`" in told or f"zmqbus.{name}`" in told, name


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_runs(section: str, bus: Bus, tmp_path: Path) -> None:
    beside = [AROUND, *(block.code for block in BLOCKS if block.mark == "runs beside")]
    mine = [block for block in BLOCKS if block.section == section]
    joined = PRELUDE + "\n".join(block.code for block in mine if block.mark is None)
    programs = [joined, *(block.code for block in mine if block.mark == "a file")]
    started = [_start(bus, tmp_path / f"beside_{number}.py", code) for number, code in enumerate(beside)]
    try:
        wait_until(lambda: len(bus.list()) == len(beside) - 1 + 3, "the sessions and workers of the guide are there")
        for number, code in enumerate(programs):
            program = _start(bus, tmp_path / f"program_{number}.py", code)
            started.append(program)
            said, _ = program.communicate(timeout=PATIENCE_S)
            assert program.returncode == 0, said
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(PATIENCE_S)
            if process.stdout is not None:
                process.stdout.close()


def _start(bus: Bus, path: Path, code: str) -> subprocess.Popen[bytes]:
    path.write_text(code, "utf-8")
    env = {**bus.env(), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(path)], env=env, cwd=bus.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
