"""The processes of a benchmark, and the protocol that drives them.

Theory of operation
===================

Each part of a system under test is a process of its own: `python -m benchmarks.crew MODULE CLASS JSON` makes an
instance of that class, reports that it is ready, and then carries out commands: a line of JSON each on standard input,
and a line with the result on standard output. A class with work to do between commands (answering pings, say) has a
method `wait`, which does it until there is input. All systems are driven in the same way, so that none has an advantage
at the start.

A command is answered twice: when the process has begun, so that a receiver listens before its sender sends; and when it
is done, with the processor time that it took (of all threads, including ZeroMQ's).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.stage import PATIENCE_S, ROOT, end, raise_file_limit, start


class PeerFailed(Exception):
    """A system under test failed. It is left out, and the text says why."""


class Done(NamedTuple):
    """The result of a command."""

    value: Any
    cpu_s: float  #: that the process has used meanwhile


# --- the parent's side ------------------------------------------------------------------------------------------


class Actor:
    """A process that carries out commands."""

    def __init__(self, module: str, role: str, arguments: dict[str, Any], environ: dict[str, str]) -> None:
        self.what = f"{module.rpartition('.')[2].strip('_')} {role}"
        self._errors = os.path.join(environ["HOME"], f"{module}.{role}.{time.monotonic_ns()}.err")
        self._got = b""
        self._process = start(
            [sys.executable, "-m", "benchmarks.crew", module, role, json.dumps(arguments)],
            environ | {"PYTHONPATH": ROOT},
            errors=self._errors,
            pipes=True,
        )

    @property
    def pid(self) -> int:
        """Closes all connections."""
        return self._process.pid

    def ready(self) -> Any:
        """Waits until the process is ready. Raises `PeerFailed`, as all of these do."""
        return self._line()["ready"]

    def begin(self, command: str, **arguments: Any) -> None:
        """Begins a command; `finish` returns its result."""
        line = json.dumps({"do": command, "with": arguments}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError:
            raise self._failed("has ended") from None
        if "began" not in self._line():
            raise self._failed("does not begin")

    def finish(self) -> Done:
        """Waits for the result of the command that was begun."""
        line = self._line()
        return Done(line["value"], line["cpu_s"])

    def do(self, command: str, **arguments: Any) -> Done:
        """Carries out a command, and returns its result."""
        self.begin(command, **arguments)
        return self.finish()

    def close(self) -> None:
        """Ends the process."""
        end(self._process)

    def _line(self) -> Any:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline_s = time.monotonic() + PATIENCE_S
        while b"\n" not in self._got:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not _readable(descriptor, left_s):
                raise self._failed(f"has said nothing for {PATIENCE_S:g} s")
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise self._failed("has ended")
            self._got += part
        line, _, self._got = self._got.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{self.what}: {answer['error']}")
        return answer

    def _failed(self, what: str) -> PeerFailed:
        with open(self._errors, encoding="utf-8", errors="replace") as file:
            lines = file.read().strip().splitlines()
        return PeerFailed(f"{self.what} {what}{f': {lines[-1]}' if lines else ''}")


@contextlib.contextmanager
def actors(*parts: tuple[str, str, dict[str, Any]], environ: dict[str, str]) -> Iterator[list[Actor]]:
    """Starts a process for each (module, class, arguments), waits until all are ready, and ends them at the end."""
    with contextlib.ExitStack() as stack:
        crew: list[Actor] = []
        for module, role, arguments in parts:
            actor = Actor(module, role, arguments, environ)
            stack.callback(actor.close)
            actor.ready()
            crew.append(actor)
        yield crew


# --- the child's side -------------------------------------------------------------------------------------------


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _wait(descriptor: int) -> None:
    _readable(descriptor, PATIENCE_S)


def _readable(descriptor: int, timeout_s: float) -> bool:
    poller = select.poll()  # not select(), which ends at descriptor 1,023
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))


def _commands(wait: Callable[[int], None]) -> Iterator[Any]:
    """Yields commands until standard input ends; `wait` is called in between, until there is input."""
    got = b""
    while True:
        wait(0)
        part = os.read(0, 1 << 16)
        if not part:
            return
        *lines, got = (got + part).split(b"\n")
        yield from (json.loads(line) for line in lines)


def main(module: str, role: str, arguments: str) -> int:
    """Carries out commands until standard input ends."""
    raise_file_limit()
    try:
        player = getattr(importlib.import_module(module), role)(**json.loads(arguments))
        _say(ready=True)
        for command in _commands(getattr(player, "wait", _wait)):
            act = getattr(player, command["do"])
            gc.collect()  # garbage of the round before does not count
            _say(began=True)
            began_s = time.process_time()
            value = act(**command["with"])
            _say(value=value, cpu_s=time.process_time() - began_s)
        player.close()
    except KeyboardInterrupt:
        pass
    except Exception as error:
        traceback.print_exc()
        _say(error=f"{type(error).__name__}: {error}"[:500])
        # Not sys.exit: threads of a failed system may never end.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
