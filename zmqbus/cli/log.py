"""`zmqbus log`: print the history over all files of the log; filter it, search it, follow it."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator

from zmqbus.cli import jsonform
from zmqbus.cli.format import line_of, pause, since, width_of_terminal
from zmqbus.cli.output import fail
from zmqbus.cli.parser import Parser
from zmqbus.client.payload import damage
from zmqbus.errors import UnknownPeer, ZmqbusError
from zmqbus.journal.filter import Entry, Wanted
from zmqbus.journal.history import History
from zmqbus.journal.record import JournalError
from zmqbus.journal.search_query import Search, highlight_pattern
from zmqbus.journal.segments import Place, numbered_segments
from zmqbus.journal.tail import Follower
from zmqbus.settings import load
from zmqbus.system import cmdline
from zmqbus.text.display import sanitise
from zmqbus.wire import naming

#: Messages shown at a terminal where no bound is given: a screen or two, not 300 MB.
AT_A_TERMINAL = 200
#: Messages shown before following, as `tail -f` does.
BEFORE_FOLLOWING = 10


def main(argv: list[str]) -> int:
    """Prints messages, oldest first."""
    parser = Parser("log", "Print the messages that went over the bus, oldest first.")
    parser.add_argument("--from", dest="sender", metavar="N", help="only from the session with this name or id")
    parser.add_argument("--to", metavar="N", help="only to it; or to all, #topic, %%project or @group")
    parser.add_argument("--since", metavar="WHEN", help="only from then on: 90s, 30m, 2h, 7d, or an ISO time")
    parser.add_argument("--grep", metavar="RE", help="only texts that match this regular expression")
    parser.add_argument(
        "--search", metavar="WORDS", help='only texts with these words; also "in this order", begin*, -not'
    )
    parser.add_argument("--limit", metavar="N", help="only the newest N; 0: all (default at a terminal: 200)")
    parser.add_argument("--follow", "-f", action="store_true", help="then print new messages, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print a complete JSON object for each message")
    options = parser.parse_args(argv)
    cmdline.hide((options.grep, options.search))
    wanted = _wanted(parser, options)
    limit = _limit(parser, options)
    if options.follow and options.search is not None:
        parser.error("--search finds only stored messages; with --follow, use --grep")
    settings = load()
    try:
        return _Printer(settings.paths.log, settings.paths.search_index, wanted, options).run(limit)
    except ZmqbusError as error:
        return fail(error)


def _wanted(parser: Parser, options: argparse.Namespace) -> Wanted:
    since_ts = pattern = None
    if options.since is not None:
        try:
            since_ts = since(options.since, time.time())
        except ValueError as error:
            parser.error(f"--since: {error}")
    if options.grep is not None:
        try:
            pattern = re.compile(options.grep)
        except (re.error, OverflowError, RecursionError) as error:
            parser.error(
                f"--grep: invalid regular expression: {error}; put a \\ before a character that is meant literally"
            )
    return Wanted(options.sender, options.to, since_ts, pattern)


def _limit(parser: Parser, options: argparse.Namespace) -> int | None:
    """The largest number of messages to print; None: all."""
    if options.limit is not None:
        if not (options.limit.isascii() and options.limit.isdecimal() and len(options.limit) < 10):
            parser.error(f"--limit takes a number of messages, 0 for all, not '{sanitise(options.limit, 40)}'")
        return int(options.limit) or None
    if options.since is not None:
        return None
    if options.follow:
        return BEFORE_FOLLOWING
    return AT_A_TERMINAL if sys.stdout.isatty() and not options.json else None


class _Printer:
    """Prints entries, then hints and warnings about them."""

    def __init__(self, path: str, index: str, wanted: Wanted, options: argparse.Namespace) -> None:
        self._path = path
        self._history = History(path)
        self._wanted = wanted
        self._options = options
        self._search = Search(path, index, options.search) if options.search is not None else None
        self._highlight = wanted.pattern or (highlight_pattern(options.search) if options.search is not None else None)
        self._width = None if options.json else width_of_terminal()
        self._printed = self._cut = self._damaged = 0
        self._more = False

    def run(self, limit: int | None) -> int:
        end = self._history.end()  # following begins here
        self._print(self._past(limit, end))
        self._damaged += self._history.damaged
        if self._options.follow:
            with Follower(self._path, end, wanted=self._wanted) as follower:
                while True:
                    self._print(follower.poll())
                    sys.stdout.flush()
                    if follower.wait_s and pause(follower.wait_s):
                        return 0
        self._conclude(limit)
        return 0

    def _past(self, limit: int | None, end: Place) -> Iterable[Entry]:
        if self._search is not None:
            if limit is None:
                return reversed([*self._search.entries(end, wanted=self._wanted)])
            page = self._search.page(end, limit=limit, wanted=self._wanted)
        elif limit is None:
            return self._all(end)
        else:
            page = self._history.page(end, limit=limit, wanted=self._wanted)
        self._more = page.before is not None
        self._damaged += page.damaged
        return reversed(page.entries)

    def _all(self, end: Place) -> Iterator[Entry]:
        for entry in self._history.entries(wanted=self._wanted):
            if entry.place >= end:
                return  # arrived meanwhile: following prints it, and without following there would be no end
            yield entry

    def _print(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            try:
                if self._options.json:
                    line = jsonform.encode(jsonform.entry(entry, self._history.record))
                else:
                    line, cut = line_of(entry, self._history.text, self._width, self._highlight)
                    self._cut += cut
            except JournalError as error:
                # The damage is beyond the head of the entry, or its segment was deleted at this moment.
                print(f"warning: ignoring a message: {damage(entry.msg_id, entry.from_name, error)}", file=sys.stderr)
                continue
            self._printed += 1
            print(line)

    def _conclude(self, limit: int | None) -> None:
        sys.stdout.flush()
        if not self._printed:
            self._explain_nothing()
        if self._options.json:
            self._warn()
            return
        hints = []
        if self._more and self._options.limit is None and self._printed:
            hints.append(f"the newest {limit} are shown; all: --limit 0")
        if self._cut:
            hints.append("a message whole: zmqbus inbox --msg ID")
        if hints:
            print(f"({'; '.join(hints)})", file=sys.stderr)
        self._warn()

    def _explain_nothing(self) -> None:
        """Says why nothing was printed. Raises `UnknownPeer` where a name may have been mistyped."""
        if not numbered_segments(self._path)[0]:
            print(f"no messages yet: there is no {self._path}", file=sys.stderr)
            return
        names: tuple[set[str], set[str]] | None = None
        for place, (flag, name) in enumerate((("from", self._wanted.sender), ("to", self._wanted.receiver))):
            if name is None:
                continue
            names = names or self._names()
            if not any(known == name or (len(name) >= 8 and known.startswith(name)) for known in names[place]):
                others = [known for known in names[place] if not _ID.fullmatch(known)]
                near = naming.nearest(name, sorted(others))
                hint = f"; did you mean {', '.join(near)}?" if near else "; see the names with: zmqbus list --all"
                raise UnknownPeer(f"the log has no message {flag} '{sanitise(name, 60)}'{hint}")
        print("no matching messages", file=sys.stderr)

    def _names(self) -> tuple[set[str], set[str]]:
        """Names and ids of all senders, and of all receivers."""
        senders: set[str] = set()
        receivers: set[str] = set()
        for entry in History(self._path).entries():
            senders.update((entry.from_name, entry.from_session))
            receivers.update((entry.to, entry.to_session_id or ""))
        return senders, receivers

    def _warn(self) -> None:
        if self._damaged:
            lines = f"{self._damaged} damaged line{'' if self._damaged == 1 else 's'} of the log"
            print(f"warning: ignoring {lines}; see zmqbus doctor", file=sys.stderr)
        for name in numbered_segments(self._path)[1]:
            if os.path.lexists(name) and os.path.getsize(name):
                print(f"warning: ignoring {name}: its first line is damaged; see zmqbus doctor", file=sys.stderr)
        if self._search is not None and self._search.fault:
            print(f"warning: searched the log without its index: {self._search.fault}", file=sys.stderr)


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
