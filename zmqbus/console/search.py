"""Searches the log in a process of its own: `python -m zmqbus.console.search` reads one query and writes its result.

A regular expression can run for ever, and Python cannot interrupt it: in the console's own process it would block every
page. A search process is killed after `TIMEOUT_S`. Words are looked up in the search index
(`zmqbus.journal.search_index`); a regular expression scans the log backwards, a bounded part for each query, and the
result says where to continue.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from zmqbus.console.views import of_entry, parse_place, place_text
from zmqbus.errors import InvalidPayload, Timeout, ZmqbusError
from zmqbus.journal.filter import Wanted
from zmqbus.journal.history import History
from zmqbus.journal.search_query import Search, parse
from zmqbus.settings import Paths
from zmqbus.system import children

Mode: TypeAlias = Literal["words", "regex"]

#: Time limit of one query. In 1 GB, words take a tenth of it.
TIMEOUT_S = 10.0
#: Bytes of the log that one query scans for a regular expression, so that the page can show progress.
SCAN_BYTES = 64 * 1024 * 1024
#: Messages in one result.
MAX_FOUND = 100
#: Nobody types longer queries, and they are slow.
MAX_QUERY_CHARS = 500


@dataclass(frozen=True, slots=True)
class Query:
    """A search for words or for a regular expression."""

    text: str
    mode: Mode
    before: str | None = None  # continue from this place (`views.place_text`)

    def check(self) -> None:
        """Raises `InvalidPayload` for an invalid query."""
        if len(self.text) > MAX_QUERY_CHARS:
            raise InvalidPayload(f"the search is longer than {MAX_QUERY_CHARS} characters; shorten it")
        if self.mode == "regex":
            self.pattern()
        else:
            parse(self.words())

    def pattern(self) -> re.Pattern[str]:
        """Compiles the regular expression. Raises `InvalidPayload` for an invalid one."""
        try:
            return re.compile(self.text)
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidPayload(f"invalid regular expression: {error}; correct it, or search for words") from None

    def words(self) -> str:
        """Returns the query for the index (`zmqbus.journal.search_query`). Its last word matches as a prefix, since the
        page searches while it is typed."""
        return f"{self.text}*" if self.text[-1:].isalnum() and self.text.count('"') % 2 == 0 else self.text


def search(paths: Paths, query: Query) -> dict[str, Any]:
    """Runs a query in a search process and waits for its result.

    Raises `InvalidPayload` for an invalid query and where the log cannot be read, `Timeout` after `TIMEOUT_S`.
    """
    query.check()
    request = {"data_dir": paths.data_dir, "text": query.text, "mode": query.mode, "before": query.before}
    try:
        done = subprocess.run(
            children.command("zmqbus.console.search"),
            input=json.dumps(request).encode(),
            capture_output=True,
            cwd="/",
            env=children.environ(),
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise Timeout(
            f"the search took longer than {TIMEOUT_S:g} s and was stopped; use a simpler expression, or words"
        ) from None
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise ZmqbusError(f"the search failed ({last or done.returncode}); try again, and report this") from None
    if "error" in result:
        raise InvalidPayload(result["error"])
    return result


def run_query(request: dict[str, Any]) -> dict[str, Any]:
    """Searches in this process; see `search` for the request."""
    query = Query(request["text"], request["mode"], request["before"])
    started_s = time.monotonic()
    before = parse_place(query.before)
    paths = Paths(request["data_dir"])
    if query.mode == "regex":
        wanted = Wanted(pattern=query.pattern())
        page = History(paths.log).page(before, limit=MAX_FOUND, wanted=wanted, limit_bytes=SCAN_BYTES)
    else:
        page = Search(paths.log, paths.search_index, query.words()).page(before, limit=MAX_FOUND)
    return {
        "items": [of_entry(entry) for entry in page.entries],
        "before": place_text(page.before),
        "tookMs": round((time.monotonic() - started_s) * 1000),
    }


def main() -> int:
    """Reads a query from standard input and writes its result to standard output, both as JSON."""
    try:
        result = run_query(json.loads(sys.stdin.buffer.read()))
    except ZmqbusError as error:
        result = {"error": str(error)}
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
