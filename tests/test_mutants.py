"""The list of mutants is in step with the sources: each line is there, once, and its tests are."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, check


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_line_is_there(mutant: Mutant) -> None:
    changed = check(mutant)
    compile(changed, mutant.path, "exec")
    assert all((ROOT / path).is_file() for path in mutant.tests.split())


def test_each_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_line_that_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 times"):
        check(MUTANTS[0]._replace(old="no such line"))
