"""Search, in a process of its own: python -m zmqbus.console.search reads one question and answers it.

A regular expression can take for ever, and Python cannot interrupt one: in the console's own process it would take all
pages with it. Here it has `PATIENCE_S`, and is ended then. Words are looked up in the index
(`zmqbus.journal.search_index`), an expression in the log, backwards, a bounded part for each question; the answer says
where to go on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from zmqbus.console.views import of_entry, place_of, place_text
from zmqbus.errors import InvalidPayload, Timeout, ZmqbusError
from zmqbus.journal.history import History, Wanted
from zmqbus.journal.search_query import Search, parse
from zmqbus.settings import Paths
from zmqbus.system import children

Mode: TypeAlias = Literal["words", "regex"]

#: What one question may take. Words take a tenth of it for 1 GB.
PATIENCE_S = 10.0
#: So much of the log an expression goes through before the page hears how far it is.
SLICE_BYTES = 64 * 1024 * 1024
#: Found messages in one answer.
MAX_FOUND = 100
#: Nobody types more; and what is longer is slow.
MAX_QUERY_CHARS = 500


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for."""

    text: str
    mode: Mode
    before: str | None = None  # go on from here

    def check(self) -> None:
        """Raises `InvalidPayload` for what cannot be looked for."""
        if len(self.text) > MAX_QUERY_CHARS:
            raise InvalidPayload(f"the search is longer than {MAX_QUERY_CHARS} characters; shorten it")
        if self.mode == "regex":
            self.pattern()
        else:
            parse(self.words())

    def pattern(self) -> re.Pattern[str]:
        """The expression that a text has to hold. Raises `InvalidPayload` for one that is none."""
        try:
            return re.compile(self.text)
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidPayload(f"this is no regular expression: {error}; mend it, or search for words") from None

    def words(self) -> str:
        """The words that a text has to hold (`zmqbus.journal.search_query`). The last one may be the beginning of
        one: the page searches while it is typed."""
        return f"{self.text}*" if self.text[-1:].isalnum() and self.text.count('"') % 2 == 0 else self.text


def search(paths: Paths, query: Query) -> dict[str, Any]:
    """Asks such a process. Raises `InvalidPayload`, `Timeout`, and what the log cannot be read for. Blocks."""
    query.check()
    question = {"data_dir": paths.data_dir, "text": query.text, "mode": query.mode, "before": query.before}
    try:
        done = subprocess.run(
            children.command("zmqbus.console.search"),
            input=json.dumps(question).encode(),
            capture_output=True,
            cwd="/",
            env=children.environ(),
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        raise Timeout(
            f"the search took longer than {PATIENCE_S:g} s and was ended; use a simpler expression, or words"
        ) from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        raise ZmqbusError(f"the search has failed ({last or done.returncode}); try again, and report this") from None
    if "error" in answer:
        raise InvalidPayload(answer["error"])
    return answer


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the process does."""
    query = Query(question["text"], question["mode"], question["before"])
    started_s = time.monotonic()
    before = place_of(query.before)
    paths = Paths(question["data_dir"])
    if query.mode == "regex":
        wanted = Wanted(pattern=query.pattern())
        page = History(paths.log).page(before, limit=MAX_FOUND, wanted=wanted, limit_bytes=SLICE_BYTES)
    else:
        page = Search(paths.log, paths.search_index, query.words()).page(before, limit=MAX_FOUND)
    return {
        "items": [of_entry(entry) for entry in page.entries],
        "before": place_text(page.before),
        "tookMs": round((time.monotonic() - started_s) * 1000),
    }


def main() -> int:
    """Reads a question from standard input, writes the answer to standard output."""
    try:
        result = answer(json.loads(sys.stdin.buffer.read()))
    except ZmqbusError as error:
        result = {"error": str(error)}
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
