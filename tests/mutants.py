"""Mutation testing by tags in the source: a comment beside a line says that a test has to notice when the line goes.

    python -m tests.mutants [-n N] [TOPIC|PATH]…        (make mutants)

A tag stands at the end of the line that it guards, or on a line of its own above it, where several may stand:

    # guards: TOPIC
    # guards: TOPIC: a note for the reader
    # guards: TOPIC [CHANGE]

TOPIC is a key of `TOPICS`, which names the test files one of which must turn red. What is mutated is the statement
that begins on the guarded line, or, where the line is inside a longer statement, what stands on that line alone.
CHANGE says how:

    (none)          the statement, with its body, becomes `pass`; a line inside a statement is taken out
    [off]           the condition of an `if`, `elif` or `while` is False
    [on]            the condition is True
    [old => new]    the code `old`, which has to be there once, becomes `new`, which may be empty; of a statement
                    with a body, only the head is searched; spaces and line ends do not matter
    [=> new]        all of it becomes `new`

Copies of the tree are changed, never the tree itself. `tests/test_mutants.py` checks that every tag can be applied.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MARK = "# guards: "
#: A run that takes longer hangs, which counts as a failing test.
PATIENCE_S = 300.0

#: The test files of each topic, those that run shortest first.
TOPICS: dict[str, str] = {
    "admission": "tests/broker/test_admission.py tests/contract/test_batches.py",
    "batch delivery": "tests/broker/test_admission.py tests/contract/test_batches.py",
    "broadcasts": "tests/broker/test_broadcast_batches.py",
    "broker start": "tests/system/test_network.py tests/broker/shell/test_daemon.py",
    "client dedup": "tests/client/test_core.py tests/client/test_reorder.py",
    "coalescing": "tests/client/test_coalesce.py tests/broker/test_pending.py",
    "console access": "tests/console/test_auth.py tests/console/test_guard.py tests/console/test_connections.py",
    "consumer": "tests/client/test_message.py tests/client/test_consumer.py",
    "credit": "tests/broker/test_mailbox.py",
    "dead peers": "tests/contract/test_sessions.py tests/broker/groups/test_workers.py "
    "tests/broker/groups/test_request_machine.py",
    "dedup": "tests/broker/test_dedup.py tests/broker/test_core.py tests/broker/test_mishaps.py "
    "tests/broker/test_recovery.py tests/contract/test_repeats.py",
    "durability": "tests/broker/shell/test_server.py tests/broker/storage/test_api.py "
    "tests/broker/storage/test_sqlite.py "
    "tests/broker/test_recovery.py tests/broker/test_machine.py",
    "ephemeral sessions": "tests/contract/test_passing.py",
    "failover": "tests/broker/groups/test_failover.py tests/broker/groups/test_workers.py "
    "tests/broker/groups/test_callers.py tests/broker/groups/test_request_machine.py",
    "hooks": "tests/cli/test_hook.py tests/real/test_hook.py",
    "I/O thread": "tests/client/test_io_thread.py",
    "import path": "tests/test_bootstrap.py",
    "in-flight window": "tests/broker/test_in_flight.py tests/broker/test_mailbox.py tests/broker/test_admission.py",
    "journal": "tests/journal/test_writer.py tests/journal/test_reader.py",
    "journal format": "tests/journal/test_record.py tests/journal/test_large_record.py tests/wire/test_verbs.py "
    "tests/journal/test_writer.py",
    "listener": "tests/session/test_listener.py tests/real/test_listener.py tests/real/test_shown.py",
    "mailbox limits": "tests/broker/test_mailbox.py tests/broker/test_core.py tests/broker/test_mishaps.py "
    "tests/broker/test_broadcast_batches.py",
    "memory pressure": "tests/broker/shell/test_pressure.py",
    "message limits": "tests/wire/test_verbs.py tests/client/test_core.py tests/broker/test_admission.py",
    "notices": "tests/broker/test_agent_states.py",
    "order": "tests/broker/test_mailbox.py tests/broker/test_core.py tests/broker/test_mishaps.py "
    "tests/broker/test_recovery.py tests/broker/test_machine.py",
    "permission": "tests/agents/test_permission.py tests/cli/test_approve.py",
    "process liveness": "tests/test_process.py tests/session/test_leftovers.py",
    "process list": "tests/system/test_cmdline.py",
    "producer": "tests/client/test_producer.py",
    "rate limits": "tests/broker/test_agent_states.py tests/broker/test_admission.py tests/broker/test_core.py "
    "tests/broker/test_mishaps.py "
    "tests/broker/test_broadcast_batches.py tests/real/test_hostile.py",
    "reading": "tests/broker/test_core.py tests/broker/test_mishaps.py tests/contract/test_reading.py",
    "reconnect": "tests/client/test_transport.py",
    "recovery": "tests/broker/test_recovery.py",
    "reordering": "tests/client/test_reorder.py tests/client/test_core.py tests/testing/test_simnet.py",
    "reply routing": "tests/broker/test_reply_routing.py",
    "requests": "tests/broker/groups/test_requests.py tests/broker/groups/test_queues.py "
    "tests/broker/groups/test_callers.py tests/broker/groups/test_workers.py "
    "tests/broker/groups/test_request_machine.py",
    "retention": "tests/broker/shell/test_compaction.py tests/journal/test_writer.py",
    "retransmission": "tests/client/test_core.py tests/client/test_reorder.py tests/broker/test_core.py "
    "tests/broker/test_mishaps.py tests/broker/test_recovery.py",
    "safe output": "tests/text/test_display.py tests/system/test_streams.py tests/real/test_surroundings.py",
    "session files": "tests/session/test_owner_files.py tests/session/test_owner.py tests/session/test_identity.py "
    "tests/session/test_leftovers.py",
    "sessions": "tests/broker/test_core.py tests/broker/test_mishaps.py tests/broker/test_recovery.py "
    "tests/broker/test_machine.py",
    "signals": "tests/wire/test_wakeup.py",
    "spool files": "tests/broker/shell/test_spool_reader.py tests/client/test_spool_writer.py "
    "tests/client/test_transport.py "
    "tests/broker/test_admission.py",
    "takeover": "tests/broker/test_takeover.py",
    "worker": "tests/client/test_core.py tests/broker/groups/test_requests.py tests/broker/groups/test_workers.py "
    "tests/broker/groups/test_request_machine.py",
    "waiter": "tests/session/test_wake.py tests/agents/test_mail.py tests/contract/test_reading.py "
    "tests/real/test_waiter.py",
}

_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


class Tag(NamedTuple):
    """A mutant, as its tag describes it."""

    path: str
    line: int  # the guarded one
    topic: str
    change: str  # what stands between the brackets; "" if there are none

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.topic}" + (f" [{self.change}]" if self.change else "")


def tags_of(source: str, path: str = "") -> list[Tag]:
    """The tags of a source, in its order."""
    found: list[Tag] = []
    above: list[str] = []  # tags on lines of their own whose line is yet to come
    code_line = 0
    for token in _tokens(source):
        line = token.start[0]
        if token.type == tokenize.COMMENT and token.string.startswith(MARK):
            if code_line == line:
                found.append(_parsed(path, line, token.string))
            else:
                above.append(token.string)
        elif token.type not in _LAYOUT:
            found += [_parsed(path, line, comment) for comment in above]
            above.clear()
            code_line = token.end[0]
    if above:
        raise ValueError(f"nothing follows {above[0]!r}")
    return found


def _parsed(path: str, line: int, comment: str) -> Tag:
    head, bracket, change = comment.removeprefix(MARK).partition(" [")
    if bracket and not change.endswith("]"):
        raise ValueError(f"line {line}: {comment!r} does not end with ]")
    return Tag(path, line, head.partition(":")[0].strip(), change[:-1].strip())


def mutate(source: str, tag: Tag) -> str:
    """The source with the change; raises `ValueError` where it cannot be applied."""
    statement = _statements(source).get(tag.line)
    lines = range(tag.line, ((statement and statement.end_lineno) or tag.line) + 1)
    code = [token for token in _tokens(source) if token.start[0] in lines and token.type not in _LAYOUT]
    if not tag.change:
        return _replace(source, code, "" if statement is None else "pass")
    body = getattr(statement, "body", None)
    head = [token for token in code if not body or token.start[0] < max(body[0].lineno, tag.line + 1)]
    if tag.change in ("on", "off"):
        if not isinstance(statement, (ast.If, ast.While)) or head[-1].string != ":":
            raise ValueError(f"line {tag.line}: [{tag.change}] needs an if or while")
        return _replace(source, head[1:-1], str(tag.change == "on"))
    old, arrow, new = tag.change.partition("=>")
    if not arrow:
        raise ValueError(f"line {tag.line}: unknown change [{tag.change}]")
    return _replace(source, _occurrence(head, old, tag.line) if old.strip() else code, new.strip())


@lru_cache(maxsize=2)
def _statements(source: str) -> dict[int, ast.stmt]:
    """The outermost statement that begins on each line."""
    found: dict[int, ast.stmt] = {}
    for node in ast.walk(ast.parse(source)):  # breadth first
        if isinstance(node, ast.stmt):
            decorators: list[ast.expr] = getattr(node, "decorator_list", [])
            found.setdefault(min([node.lineno, *(one.lineno for one in decorators)]), node)
    return found


@lru_cache(maxsize=2)
def _tokens(source: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def _occurrence(code: Sequence[tokenize.TokenInfo], text: str, line: int) -> Sequence[tokenize.TokenInfo]:
    """The tokens that are this text, which must occur once."""
    sought = "".join(text.split())
    found = []
    for start in range(len(code)):
        seen = ""
        for end in range(start, len(code)):
            seen += "".join(code[end].string.split())
            if seen == sought:
                found.append(code[start : end + 1])
            if not sought.startswith(seen):
                break
    if len(found) != 1:
        raise ValueError(f"line {line}: {text.strip()!r} is there {len(found)} times")
    return found[0]


def _replace(source: str, code: Sequence[tokenize.TokenInfo], text: str) -> str:
    lines = source.splitlines(keepends=True)
    (first, begin), (last, end) = code[0].start, code[-1].end
    before, after = lines[first - 1][:begin], lines[last - 1][end:]
    return "".join([*lines[: first - 1], before, text, after, *lines[last:]])


def all_tags() -> list[Tag]:
    """The tags of all files, by file and line."""
    files = sorted((ROOT / "zmqbus").rglob("*.py"))
    return [tag for path in files for tag in tags_of(path.read_text("utf-8"), path.relative_to(ROOT).as_posix())]


def attempt(tag: Tag, copy: Path) -> str:
    """The first test that fails with this change in the copy, which is changed back; "" if the mutant lives."""
    path = copy / tag.path
    original = path.read_text("utf-8")
    path.write_text(mutate(original, tag), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *TOPICS[tag.topic].split()],
            cwd=copy,
            env={**os.environ, "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    finally:
        path.write_text(original, "utf-8")
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else "" if done.returncode == 0 else f"exit {done.returncode}"


def main(arguments: list[str]) -> int:
    """Tries all mutants, or those of some topics or files; status 1 if one lives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=os.cpu_count() or 1, metavar="N", help="how many to try at once")
    parser.add_argument("only", nargs="*", metavar="TOPIC|PATH", help="a topic, or a part of a file:line")
    options = parser.parse_args(arguments)
    tags = [tag for tag in all_tags() if not options.only or any(word in str(tag) for word in options.only)]
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis", ".*_cache")
    with tempfile.TemporaryDirectory(prefix="zmqbus-mutants-") as directory, ThreadPoolExecutor(options.n) as pool:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.n):
            copies.put(shutil.copytree(ROOT, Path(directory) / str(number), symlinks=True, ignore=ignored))

        def red_test(tag: Tag) -> str:
            copy = copies.get()
            try:
                return attempt(tag, copy)
            finally:
                copies.put(copy)

        living = 0
        for tag, red in zip(tags, pool.map(red_test, tags), strict=True):
            living += not red
            print(f"{tag!s:<90} {red or 'LIVES'}", flush=True)
    print(f"{len(tags)} mutants, {living} alive")
    return 1 if living else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
