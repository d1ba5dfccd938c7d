"""A search: the words that somebody looks for, in the index and in what is not indexed yet.

A search is always complete. For each segment it asks the index about the part that is indexed, and looks through the
rest itself: most lines are passed over by their bytes, and what is left goes into an FTS5 table in memory with the
same tokenizer, so that both parts find the same. Without any index everything is "the rest", which takes longer.

What can be asked: words (all of them have to be in the text; case and accents do not matter), `"words in this order"`,
`begin*` for words that begin so, and `-word` for one that must not be there. What joins letters in one word of a
program, as in `test_login` or `src/auth.py`, makes words in this order of it.
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
from zmqbus.journal.search_index import TOKENIZE, Done, Index, IndexFault, Texts, is_of
from zmqbus.journal.segments import Place, segments_back

#: More words than this no text is looked for with; FTS5 would need long for thousands.
MAX_TERMS = 50

#: Minus, "words in this order", or one word.
_TERM = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')
_PLAIN = re.compile("[a-z0-9]+")


class Query(NamedTuple):
    """What is looked for, in two languages."""

    fts: str  # FTS5's
    plain: tuple[bytes, ...]  # a text in ASCII that does not hold all of these, in lower case, is none of those

    def may_be(self, line: bytes) -> bool:
        """Whether the text in this line of the log can be one that is looked for; quickly."""
        if not self.plain or not line.isascii() or b"\\u" in line:
            return True
        lower = line.lower()
        return all(part in lower for part in self.plain)


def parse(words: str) -> Query:
    """The query in somebody's words. Raises `InvalidPayload` if there is no word in them."""
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


def focus(words: str) -> re.Pattern[str]:
    """What to look at in a text that was found: the first of the words that has to be there, as far as it is spelled
    alike. Raises `InvalidPayload` if there is no word in them."""
    parse(words)
    for minus, phrase, word in _TERM.findall(words):
        parts = re.findall(r"\w+", (phrase or word).rstrip("*"))
        if not minus and parts:
            return re.compile(r"\W+".join(map(re.escape, parts)), re.IGNORECASE)
    return re.compile(r"(?!)")


class Search:
    """Looks for words in the log at `log_path`, with the index at `index_path` as far as there is one.

    Raises `InvalidPayload` if there is no word to look for. All methods raise `Unauthorized` for files that are open to
    others, and `JournalError` where the log cannot be read. For one thread at a time.
    """

    def __init__(self, log_path: str, index_path: str, words: str) -> None:
        self._log_path = log_path
        self._index_path = index_path
        self._query = parse(words)
        #: Why the index was not used, where there is one that cannot be; for whoever wants to mend it.
        self.fault: str | None = None

    def __repr__(self) -> str:
        return f"<Search for {self._query.fts}>"

    def page(self, before: Place | None = None, *, limit: int = 50, wanted: Wanted = ALL) -> Page:
        """The newest `limit` entries that lie before a place (None: the end of the log), hold the words and are wanted.
        `Page.before` is None if there are no more."""
        entries: list[Entry] = []
        for entry in self.entries(before, wanted=wanted):
            if len(entries) == limit:
                return Page(entries, entries[-1].place if entries else before, 0)
            entries.append(entry)
        return Page(entries, None, 0)

    def entries(self, before: Place | None = None, *, wanted: Wanted = ALL) -> Iterator[Entry]:
        """The same as one stream, the newest first; all that there are."""
        line_filter = LineFilter(wanted)
        index = Index.look(self._index_path)
        done: dict[int, Done] = {}
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

    def _offsets(self, index: Index | None, done: Done | None, fd: int, serial: int, end: int) -> Iterator[int]:
        """Where those records of a segment begin that lie before `end` and hold the words, the last one first."""
        indexed = done.done if done is not None and index is not None and is_of(done, fd) else 0
        if end > indexed:
            yield from self._looked_through(fd, serial, indexed, end)
            end = indexed
        if index is None or not indexed:
            return
        try:
            for offset in index.matches(serial, self._query.fts, end):
                yield offset
                end = offset
        except IndexFault as error:
            self.fault = str(error)
            yield from self._looked_through(fd, serial, 0, end)

    def _looked_through(self, fd: int, serial: int, begin: int, end: int) -> list[int]:
        """The same for a part that is not indexed."""
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
