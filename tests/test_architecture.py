"""The documents for contributors agree with the code: the drawing of the rooms, the state tables, paths and links."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from importlib import import_module
from pathlib import Path

import pytest

from tests.test_layering import PACKAGE, RANKS, ROOT

PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"])
#: The words of the glossary: what a newcomer can learn in one reading.
GLOSSARY_WORDS = 25

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:zmqbus|tests|benchmarks|docs|examples|plugin|bin|changes)/[\w./-]+\.\w+)`")


def section(heading: str) -> str:
    found = re.search(rf"^#+ {re.escape(heading)}.*?\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def test_drawing_shows_every_room_at_its_rank() -> None:
    drawn: dict[str, int] = {}
    for rank, rooms in re.findall(r"^ {4} ?(\d+)  (\S+(?: \S+)*)  ", section("The rooms"), re.MULTILINE):
        drawn.update(dict.fromkeys(rooms.split(), int(rank)))
    assert drawn == RANKS


def state_tables() -> list[tuple[str, str, str]]:
    """Heading, name and module of each table of transitions that the page shows."""
    found = re.findall(r"^### (.+?): `(\w+)` in `(zmqbus/[\w/]+)\.py`$", PAGE, re.MULTILINE)
    return [(heading, name, path.replace("/", ".")) for heading, name, path in found]


def test_page_shows_the_states_of_connections_sessions_messages_and_requests() -> None:
    assert {name for _, name, _ in state_tables()} >= {
        "CONNECTION_TRANSITIONS",
        "SESSION_TRANSITIONS",
        "NEXT_STAGES",
        "STAGE_TRANSITIONS",
    }


def in_words(state: Enum) -> str:
    """Returns a state as the page writes it; the value of some is an integer."""
    return state.name.lower().replace("_", " ")


@pytest.mark.parametrize(("heading", "name", "module"), state_tables())
def test_state_table_lists_the_transitions_of_the_code(heading: str, name: str, module: str) -> None:
    transitions: dict[Enum, frozenset[Enum]] = getattr(import_module(module), name)
    order: list[Enum] = [*type(next(iter(transitions)))]

    def words(states: Iterable[Enum]) -> str:
        return ", ".join(in_words(state) for state in order if state in states) or "(end)"

    expected = "".join(f"| {in_words(state)} | {words(following)} |\n" for state, following in transitions.items())
    assert f"|---|---|\n{expected}\n" in section(heading), f"the table has to be:\n{expected}"


def test_table_of_cores_and_shells_names_modules_that_exist() -> None:
    modules = {path.name for path in PACKAGE.rglob("*.py")}
    rows = [line for line in section("The rooms").splitlines() if line.startswith("|")]
    named = {name.rpartition("/")[2] for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)}
    assert len(named) > 10
    assert named <= modules


def test_named_attributes_exist() -> None:
    defined = {
        f"{cls.name}.{part.name}"
        for path in PACKAGE.rglob("*.py")
        for cls in ast.parse(path.read_text("utf-8")).body
        if isinstance(cls, ast.ClassDef)
        for part in cls.body
        if isinstance(part, ast.FunctionDef)
    }
    named = set(re.findall(r"`([A-Z][a-z]\w+\.\w+)`", PAGE))
    assert len(named) > 5
    assert named <= defined


def test_glossary_has_its_words_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", section("Glossary"), re.MULTILINE)[1:]
    assert len(rows) == len(set(rows)) == GLOSSARY_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_links_lead_to_files(self, page: Path) -> None:
        targets = [target for target in _LINK.findall(page.read_text("utf-8")) if "://" not in target]
        assert not [target for target in targets if not (page.parent / target).exists()]

    def test_named_files_exist(self, page: Path) -> None:
        assert not [path for path in _PATH.findall(page.read_text("utf-8")) if not (ROOT / path).exists()]

    def test_links_into_pages_lead_to_headings(self, page: Path) -> None:
        text = page.read_text("utf-8")
        for target, anchor in re.findall(r"\]\(([^)#\s]*\.md)?#([^)]+)\)", text):
            linked = (page.parent / target).read_text("utf-8") if target else text
            assert anchor in anchors(linked), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """The names under which GitHub links to the headings of a page, and those that the page sets itself."""
    found: dict[str, int] = defaultdict(int)
    names = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names
