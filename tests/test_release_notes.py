"""The fragments in changes/, of which towncrier makes the notes of a release."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHANGES = ROOT / "changes"
NOT_FRAGMENTS = {"README.md", "template.md"}
FRAGMENTS = sorted(path for path in CHANGES.iterdir() if path.name not in NOT_FRAGMENTS)
KINDS = re.findall(r'directory = "([a-z]+)", name =', (ROOT / "pyproject.toml").read_text("utf-8"))
NAME = re.compile(rf"[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(KINDS)})\.md")


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
class TestFragment:
    def test_name_is_a_slug_and_a_kind(self, path: Path) -> None:
        assert NAME.fullmatch(path.name), f"a fragment is called SLUG.KIND.md, where KIND is one of {KINDS}"

    def test_text_is_one_list_item(self, path: Path) -> None:
        text = path.read_text("utf-8")
        first, *rest = text.rstrip("\n").splitlines()
        assert text.endswith("\n") and not text.endswith("\n\n")
        assert not first.startswith(("- ", "* ", "#")), "towncrier adds the dash; a fragment has no heading"
        assert text.rstrip().endswith((".", "`", ")")), "a fragment is made of sentences"
        assert all(line and not line.startswith("#") for line in rest)
        assert max(map(len, text.splitlines())) <= 118, "two more columns are the list's"

    def test_text_names_no_issue(self, path: Path) -> None:
        assert not re.search(r"#\d", path.read_text("utf-8")), "say what changed; the history knows the issue"


def test_changelog_has_the_place_for_the_next_release() -> None:
    config = (ROOT / "pyproject.toml").read_text("utf-8")
    marker = re.search(r'start_string = "(.*)\\n"', config)
    assert marker and f"\n{marker[1]}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_readme_of_the_fragments_explains_every_kind() -> None:
    assert re.findall(r"^\| `([a-z]+)` \|", (CHANGES / "README.md").read_text("utf-8"), re.MULTILINE) == KINDS
