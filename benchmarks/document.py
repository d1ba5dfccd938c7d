"""Writes the tables of docs/performance.md, and its picture, from `benchmarks/results.json`.

    python -m benchmarks.document [--check]

`make bench` does this at its end; run it by hand after a change of the words around the figures. `--check` only tells
whether the page shows the results, which a test checks as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from benchmarks import plot, report
from benchmarks.figures import Results
from benchmarks.stage import ROOT

RESULTS = os.path.join(ROOT, "benchmarks", "results.json")
PAGE = os.path.join(ROOT, "docs", "performance.md")
PICTURE = os.path.join(ROOT, "docs", "images", "performance.png")
#: The part of the page between these lines is generated.
BEGIN = "<!-- figures: written by python -m benchmarks.document -->\n"
END = "<!-- end of the figures -->\n"


def load(path: str = RESULTS) -> Results:
    """Reads the results of the last stored run."""
    with open(path, encoding="utf-8") as file:
        return Results.from_json(json.load(file))


def save(results: Results, path: str = RESULTS) -> None:
    """Stores the results of a run."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results.as_json(), file, indent=1, ensure_ascii=False)
        file.write("\n")


def with_figures(page: str, results: Results) -> str:
    """Returns the page with these results in it. Raises `ValueError` if it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {(BEGIN if not begin else END).strip()}")
    return f"{before}{BEGIN}\n{report.markdown(results)}\n{END}{after}"


def write(results: Results) -> str:
    """Writes page and picture; returns a remark, or ""."""
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(with_figures(page, results))
    if not plot.possible():
        return "no picture: matplotlib is not installed (pip install -e '.[bench]')"
    os.makedirs(os.path.dirname(PICTURE), exist_ok=True)
    plot.draw(results, PICTURE)
    return ""


def main() -> int:
    """Writes the page, or checks it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description="The page with the figures.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page shows other figures")
    options = parser.parse_args()
    results = load()
    if not options.check:
        print(write(results) or f"{os.path.relpath(PAGE)} and {os.path.relpath(PICTURE)} are written")
        return 0
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    if page == with_figures(page, results):
        return 0
    print("docs/performance.md shows other figures than benchmarks/results.json: run python -m benchmarks.document")
    return 1


if __name__ == "__main__":
    sys.exit(main())
