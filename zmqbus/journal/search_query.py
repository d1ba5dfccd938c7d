"""Search the texts of the log for words, in the index and in the part that is not indexed yet.

A search is always complete. For each segment it queries the index for the indexed part and scans the rest itself: it
rejects most lines by their bytes and puts the others into an FTS5 table in memory with the same tokenizer, so that both
parts find the same. Without an index it scans everything, which takes longer.

A query has words (all of them must be in the text; case and accents are ignored), `"words in this order"`, `begin*` for
words with this beginning, and `-word` for a word that must not be there. A name of a program, such as `test_login` or
`src/auth.py`, counts as words in this order.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from zmqbus.errors import InvalidPayload
from zmqbus.journal.filter import ALL, Entry, LineFilter, Wanted
from zmqbus.journal.history import Page, entry_at
from zmqbus.journal.lines import lines_forward
from zmqbus.journal.record import JournalError
from zmqbus.journal.search_index import TOKENIZE, Index, IndexFault, Progress, Texts, is_same_file
from zmqbus.journal.segments import Place, segments_back

#: Most words of a query; FTS5 would take long for thousands.
MAX_TERMS = 50

#: Minus, "words in this order", or one word.
_TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')
_PLAIN = re.compile("[a-z0-9]+")


class Query(NamedTuple):
    """A query in two forms."""

    fts: str  # for FTS5
    plain: tuple[bytes, ...]  # every matching ASCII text holds all of these, in lower case

    def may_be(self, line: bytes) -> bool:
        """Whether the text in this line of the log may match; a quick test."""
        if not self.plain or not line.isascii() or b"\\u" in line:
            return True
        lower = line.lower()
        return all(part in lower for part in self.plain)


def parse(words: str) -> Query:
    """Parses the words of a user. Raises `InvalidPayload` if no word must be there."""
    wanted: list[str] = []
    unwanted: list[str] = []
    plain: list[bytes] = []
    for minus, phrase, word in _TERM.findall(words):
        term = phrase or word
        begins = bool(word) and word.endswith("*")
        if not any(character.isalnum() for character in term):
            continue
        fts = '"' + term.replace('"', " ").replace("\0", " ") + '"' + ("*" if begins else "")
        if minus:
            unwanted.append(fts)
        else:
            wanted.append(fts)
            if term.isascii():
                plain += [part.encode() for part in _PLAIN.findall(term.lower())]
    if not wanted:
        raise InvalidPayload(
            "a search takes words that have to be there, as in: zmqbus log --search 'login failed -old'"
        )
    if len(wanted) + len(unwanted) > MAX_TERMS:
        raise InvalidPayload(f"a search takes {MAX_TERMS} words at most; leave some out")
    fts = " AND ".join(wanted)
    return Query(f"({fts}) NOT ({' OR '.join(unwanted)})" if unwanted else fts, tuple(dict.fromkeys(plain)))


def highlight_pattern(words: str) -> re.Pattern[str]:
    """A pattern for the first word that must be there, to show that part of a found text.

    It does not find the word in another spelling. Raises `InvalidPayload` if no word must be there.
    """
    parse(words)
    for minus, phrase, word in _TERM.findall(words):
        parts = re.findall(r"\w+", (phrase or word).rstrip("*"))
        if not minus and parts:
            return re.compile(r"\W+".join(map(re.escape, parts)), re.IGNORECASE)
    return re.compile(r"(?!)")


class Search:
    """Searches the log at `log_path` for words, with the index at `index_path` as far as it goes.

    Raises `InvalidPayload` if no word must be there. All methods raise `Unauthorized` for files that are open to
    others, and `JournalError` where the log cannot be read. For one thread at a time.
    """

    def __init__(self, log_path: str, index_path: str, words: str) -> None:
        self._log_path = log_path
        self._index_path = index_path
        self._query = parse(words)
        #: Why an existing index could not be used, for a message with the remedy.
        self.fault: str | None = None

    def page(self, before: Place | None = None, *, limit: int = 50, wanted: Wanted = ALL) -> Page:
        """The newest `limit` matching entries that lie before a place (None: the end of the log) and are wanted.

        `Page.before` is None if there are no more.
        """
        entries: list[Entry] = []
        for entry in self.entries(before, wanted=wanted):
            if len(entries) == limit:
                return Page(entries, entries[-1].place if entries else before, 0)
            entries.append(entry)
        return Page(entries, None, 0)

    def entries(self, before: Place | None = None, *, wanted: Wanted = ALL) -> Iterator[Entry]:
        """All matching entries before a place, the newest first."""
        line_filter = LineFilter(wanted)
        index = Index.open_existing(self._index_path)
        done: dict[int, Progress] = {}
        try:
            if index is not None:
                try:
                    done = index.segments()
                except IndexFault as error:
                    self.fault = str(error)
            for serial, fd, end in segments_back(self._log_path, before, wanted.since_ts):
                for offset in self._offsets(index, done.get(serial), fd, serial, end):
                    entry = entry_at(fd, Place(serial, offset), line_filter)
                    if entry is not None:
                        yield entry
        finally:
            if index is not None:
                index.close()

    def _offsets(self, index: Index | None, done: Progress | None, fd: int, serial: int, end: int) -> Iterator[int]:
        """Offsets of the matching records of a segment before `end`, the last one first."""
        indexed = done.done if done is not None and index is not None and is_same_file(done, fd) else 0
        if end > indexed:
            yield from self._scan(fd, serial, indexed, end)
            end = indexed
        if index is None or not indexed:
            return
        try:
            for offset in index.matches(serial, self._query.fts, end):
                yield offset
                end = offset
        except IndexFault as error:
            self.fault = str(error)
            yield from self._scan(fd, serial, 0, end)

    def _scan(self, fd: int, serial: int, begin: int, end: int) -> list[int]:
        """Offsets of the matching records in a part that is not indexed."""
        memory = sqlite3.connect(":memory:", isolation_level=None)
        try:
            memory.execute(
                f"CREATE VIRTUAL TABLE texts USING fts5(text, content='', columnsize=0, tokenize=\"{TOKENIZE}\")"
            )
            memory.execute("BEGIN")
            for offset, text in self._candidates(fd, serial, begin, end):
                memory.execute("INSERT INTO texts (rowid, text) VALUES (?, ?)", (offset, text))
            found = memory.execute(
                "SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rowid DESC", (self._query.fts,)
            ).fetchall()
        except sqlite3.Error as error:
            # Most likely it was built without FTS5.
            raise JournalError(
                f"the SQLite of this python ({sqlite3.sqlite_version}) cannot search texts: {error}; use --grep"
            ) from None
        finally:
            memory.close()
        return [row[0] for row in found]

    def _candidates(self, fd: int, serial: int, begin: int, end: int) -> Iterator[tuple[int, str]]:
        texts = Texts()
        for start, length, line in lines_forward(fd, begin):
            if start >= end:
                return
            if len(line) < length or self._query.may_be(line):
                text = texts.of(fd, Place(serial, start), length, line)
                if text:
                    yield start, text
