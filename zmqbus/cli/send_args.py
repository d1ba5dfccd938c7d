"""The arguments of `send` and `broadcast`.

Almost all calls are plain: whole words, each followed by its value. `parse` reads those without argparse, which takes
3.5 ms to import and to set up with a dozen options, of the 45 ms that the command lives; agents run it all day.
argparse would read a plain call the same way (a test compares the two). It reads everything else: mistakes and `--help`
above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zmqbus.cli.parser import Parser

#: How long `--wait` waits for an answer when no number is given.
WAIT_S = 120.0
#: From a millisecond to a year. A longer time is a mistake, and does not fit into a poll.
MIN_WAIT_S, MAX_WAIT_S = 0.001, 366 * 24 * 3600.0
# Words of a plain call → field. It has exactly one target and one content.
_TARGETS = {"--to": "to", "--group": "group", "--topic": "topic"}
_TARGET_SWITCHES = {"--all": "all", "--project": "project"}
_CONTENTS = {"--text": "text", "--text-file": "text_file", "--file": "file"}
_VALUES = {**_TARGETS, **_CONTENTS, "--reply-to": "reply_to", "--as": "sender", "--port": "port"}
_SWITCHES = {**_TARGET_SWITCHES, "--json": "json"}
_DEFAULTS = dict.fromkeys(_VALUES.values()) | dict.fromkeys(_SWITCHES.values(), False) | {"wait": None, "raw": False}


def parse(argv: Sequence[str], *, broadcast: bool) -> Any:
    """The options, as a namespace. Prints the usage and raises `SystemExit` where they are wrong."""
    options = (None if broadcast else parse_plain(argv)) or parse_any(argv, broadcast=broadcast)
    if broadcast and not (options.project or options.topic):
        options.all = True
    return options


def is_to_many(options: Any) -> bool:
    """Whether the message goes to all, to a project or to a topic."""
    return bool(options.all or options.project or options.topic)


def parse_plain(argv: Sequence[str]) -> Any:
    """The options of a plain call of `send`; None: it is not plain, or wrong."""
    given: dict[str, object] = {}
    words = iter(argv)
    for word in words:
        value: object
        if word in _SWITCHES:
            field, value = _SWITCHES[word], True
        elif word in _VALUES:
            field, value = _VALUES[word], next(words, None)
            # A value that looks like an option may be one, or a number, or a text that begins with a dash.
            if value is None or value.startswith("-"):
                return None
        else:
            return None
        if field in given:
            return None
        given[field] = value
    for choice in ({*_TARGETS.values(), *_TARGET_SWITCHES.values()}, set(_CONTENTS.values())):
        if len(choice & given.keys()) != 1:
            return None
    return SimpleNamespace(**_DEFAULTS | given)


def parse_any(argv: Sequence[str], *, broadcast: bool) -> Any:
    """The options of any call."""
    parser = _parser(broadcast)
    options = parser.parse_args(argv)
    if options.wait is not None and (is_to_many(options) or "," in (options.to or "")):
        parser.error("--wait takes one receiver: a name after --to, or a group")
    if options.raw and options.wait is None:
        parser.error("--raw goes with --wait")
    return options


def _parser(broadcast: bool) -> Parser:
    from zmqbus.cli.parser import Parser, seconds

    if broadcast:
        parser = Parser("broadcast", "Send a text to every session, to those of this project, or of a topic.")
    else:
        parser = Parser("send", "Send a text to a session, to several, or to many.")
    to = parser.add_mutually_exclusive_group(required=not broadcast)
    if not broadcast:
        to.add_argument("--to", metavar="T[,T…]", help="names, unique prefixes of names, or session ids")
        to.add_argument("--group", metavar="G", help="the least loaded member of a group")
    to.add_argument("--all", action="store_true", help="every session")
    to.add_argument("--project", action="store_true", help="every session of this project")
    to.add_argument("--topic", metavar="T", help="every session that has joined the topic")
    content = parser.add_mutually_exclusive_group(required=True)
    content.add_argument(
        "--text", metavar="S", help="the text; others see it in the process list for a moment: for secrets use a file"
    )
    content.add_argument(
        "--text-file", metavar="F", help="a file with the text, or - for standard input; the last line end is left out"
    )
    content.add_argument("--file", metavar="PATH", help="ask the receiver to read this file")
    parser.add_argument("--reply-to", metavar="ID", help="the message that this one answers")
    parser.add_argument("--as", dest="sender", metavar="NAME", help="send under this name, without a listener")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if not broadcast:
        parser.add_argument(
            "--wait",
            nargs="?",
            type=seconds(MIN_WAIT_S, MAX_WAIT_S),
            const=WAIT_S,
            metavar="S",
            help="wait for the answer, and print it",
        )
        parser.add_argument("--raw", action="store_true", help="with --wait: the answer unchanged, not made safe")
    parser.add_port()
    parser.set_defaults(to=None, group=None, wait=None, raw=False)
    return parser
