"""Arguments of the kind that nearly all calls have, read without argparse.

That takes 3.5 ms to be imported, to be told of a dozen options and to look for a translation of its words; a command
that agents run all day lives for 45. What `plain` takes, argparse would take and understand the same way (a test
compares the two); whatever is not as plain as that is left to argparse: mistakes above all, and `--help`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def plain(argv: Sequence[str], values: Mapping[str, str], switches: Mapping[str, str]) -> dict[str, object] | None:
    """What was given, by field, where it is nothing but whole words out of `values` (each followed by its value) and
    `switches` (word → field), each field at most once. None: it is something else, or wrong."""
    given: dict[str, object] = {}
    words = iter(argv)
    for word in words:
        value: object
        if word in switches:
            field, value = switches[word], True
        elif word in values:
            field, value = values[word], next(words, None)
            # A value that looks like an option may be one, or a number, or a text with a dash before it.
            if value is None or value.startswith("-"):
                return None
        else:
            return None
        if field in given:
            return None
        given[field] = value
    return given
