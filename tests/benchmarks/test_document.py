"""The page shows what the results are."""

from __future__ import annotations

import pytest

from benchmarks import document, report
from benchmarks.figures import Results


def test_the_page_is_that_of_the_results():
    """If this fails: python -m benchmarks.document"""
    with open(document.PAGE, encoding="utf-8") as file:
        page = file.read()
    assert document.with_figures(page, document.load()) == page


def test_only_what_stands_between_the_marks_is_written():
    results = Results({}, True, 3)
    page = document.with_figures(f"before\n{document.BEGIN}old\n{document.END}after\n", results)
    assert page == f"before\n{document.BEGIN}\n{report.markdown(results)}\n{document.END}after\n"
    assert document.with_figures(page, results) == page


@pytest.mark.parametrize("page", ["", document.BEGIN, document.END])
def test_a_page_without_marks_is_an_error(page):
    with pytest.raises(ValueError, match="the page has no"):
        document.with_figures(page, Results({}, True, 3))


def test_results_are_kept(tmp_path):
    results = Results({"cores": "2"}, True, 3)
    document.save(results, str(tmp_path / "results.json"))
    assert document.load(str(tmp_path / "results.json")) == results


def test_without_matplotlib_there_is_a_page_and_a_line(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(document.BEGIN + document.END)
    monkeypatch.setattr(document, "PAGE", str(page))
    monkeypatch.setattr("benchmarks.plot.possible", lambda: False)
    assert "matplotlib is not installed" in document.write(Results({"cores": "2"}, True, 3))
    assert "cores 2" in page.read_text()


def test_a_page_that_shows_something_else_is_told(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(document.BEGIN + "old\n" + document.END)
    monkeypatch.setattr(document, "PAGE", str(page))
    monkeypatch.setattr("sys.argv", ["document", "--check"])
    assert document.main() == 1
    assert "run python -m benchmarks.document" in capsys.readouterr().out
    page.write_text(document.with_figures(page.read_text(), document.load()))
    assert document.main() == 0
