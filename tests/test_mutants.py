"""The tags can be applied and their tests exist; and what each form of tag does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.mutants import ROOT, TOPICS, Tag, all_tags, main, mutate, tags_of

TAGS = all_tags()
PATHS = sorted({tag.path for tag in TAGS})

SOURCE = '''\
def f(a, b):
    """Doc."""
    if a and b:
        a = b + b
    elif not b:
        return g(
            a,
            b,
        )
    else:
        b = "a b"  # why
    return a

@d(1)
@e(2)
def h(a):
    return a
'''


@pytest.mark.parametrize("path", PATHS)
def test_tags_of_a_file_can_be_applied(path: str) -> None:
    source = (ROOT / path).read_text("utf-8")
    for tag in TAGS:
        if tag.path == path:
            changed = mutate(source, tag)
            compile(changed, str(tag), "exec")
            assert changed.split() != source.split(), tag


def test_topics_are_known_and_used() -> None:
    assert {tag.topic for tag in TAGS} == set(TOPICS)


def test_test_files_exist() -> None:
    assert [path for paths in TOPICS.values() for path in paths.split() if not (ROOT / path).is_file()] == []


def test_no_tag_is_there_twice() -> None:
    assert len({(tag.path, tag.line, tag.change) for tag in TAGS}) == len(TAGS)


def test_tag_at_the_end_of_a_line() -> None:
    assert tags_of("a = 1\nb = 2  # guards: order\n") == [Tag("", 2, "order", "")]


def test_tags_above_a_line() -> None:
    source = "# guards: order [1 => 2]\n\n# why\n# guards: read ids [=> b = 0]\nb = 1\n"
    assert tags_of(source) == [Tag("", 5, "order", "1 => 2"), Tag("", 5, "read ids", "=> b = 0")]


def test_tag_with_a_note() -> None:
    assert tags_of("b = a[1]  # guards: order: as sent [a[1] => a[0]]\n") == [Tag("", 1, "order", "a[1] => a[0]")]


def test_tag_in_a_string_is_none() -> None:
    assert tags_of('b = "# guards: order"\n') == []


@pytest.mark.parametrize("source", ["a = 1\n# guards: order\n", "a = 1  # guards: order [off\n"])
def test_malformed_tag_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="guards: order"):
        tags_of(source)


@pytest.mark.parametrize(
    ("line", "change", "old", "new"),
    [
        (4, "", "a = b + b", "pass"),
        (12, "", "return a", "pass"),
        (7, "", "            a,", "            "),
        (7, "=> 0,", "            a,", "            0,"),
        (3, "off", "if a and b:", "if False:"),
        (3, "on", "if a and b:", "if True:"),
        (5, "on", "elif not b:", "elif True:"),
        (3, "a and =>", "if a and b:", "if  b:"),
        (6, "a, b, => b, a,", "a,\n            b,", "b, a,"),
        (11, '"a b" => a', 'b = "a b"  # why', "b = a  # why"),
        (4, "=> a = 1; b = 2", "a = b + b", "a = 1; b = 2"),
        (14, "e(2) => e(3)", "@e(2)", "@e(3)"),
    ],
)
def test_change(line: int, change: str, old: str, new: str) -> None:
    assert mutate(SOURCE, Tag("", line, "order", change)) == _with(old, new)


def test_statement_goes_with_its_body() -> None:
    begin, end = SOURCE.index("    if a"), SOURCE.index("    return a\n\n")
    assert mutate(SOURCE, Tag("", 3, "order", "")) == SOURCE[:begin] + "    pass  # why\n" + SOURCE[end:]


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (12, "off", "needs an if"),
        (4, "c => d", "0 times"),
        (4, "b => d", "2 times"),
        (3, "b + b => d", "0 times"),
        (4, "of", "unknown change"),
    ],
)
def test_change_that_cannot_be_applied_is_an_error(line: int, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mutate(SOURCE, Tag("", line, "order", change))


@pytest.mark.parametrize(("red", "status", "told"), [("test_x.py::test_y", 0, "0 alive"), ("", 1, "1 alive")])
def test_status_says_whether_one_lives(
    red: str, status: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def copied(source: object, target: object, **options: object) -> object:
        return target

    def attempted(tag: Tag, copy: object) -> str:
        return red

    monkeypatch.setattr("tests.mutants.shutil.copytree", copied)
    monkeypatch.setattr("tests.mutants.attempt", attempted)
    assert main(["-n", "2", str(TAGS[0])]) == status
    lines: Sequence[str] = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(TAGS[0])) and (red or "LIVES") in lines[0]
    assert told in lines[1]


def _with(old: str, new: str) -> str:
    assert SOURCE.count(old) == 1 or old == "return a"
    return SOURCE.replace(old, new, 1)
