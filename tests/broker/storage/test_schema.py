"""The tables: their statements survive in SQLite, and invalid rows are recognised."""

from __future__ import annotations

import sqlite3

import pytest

from zmqbus.broker.storage.schema import OWED, TABLES, is_valid


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_sqlite_keeps_the_statement_of_a_table(table):
    db = sqlite3.connect(":memory:")
    db.execute(table.create)
    assert db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table.name,)).fetchone() == (table.create,)
    db.close()


def test_rows_with_impossible_values_are_invalid():
    row = (1, 1, "id", "s", "n", None, 0, "t", 0, None, 1.0, 1.0, 5, 1, 75, 9, 7)
    assert is_valid(OWED, row) and is_valid(OWED, (*row[:5], "label", *row[6:]))
    for number, value in (
        (0, "1"),
        (1, 0),
        (2, None),
        (2, b"id"),
        (6, 5),
        (8, 3),
        (10, 1),
        (12, -1),
        (13, 0),
        (14, 0),
        (15, 0),
        (16, None),
    ):
        assert not is_valid(OWED, (*row[:number], value, *row[number + 1 :]))
