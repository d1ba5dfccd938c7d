"""The picture: of whatever was measured."""

from __future__ import annotations

import pytest

from benchmarks import document, plot
from benchmarks.figures import Results

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("results", [Results({}, True, 3), document.load()], ids=["nothing", "everything"])
def test_it_is_drawn(results, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="it is in the extra bench")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    path = tmp_path / "picture.png"
    plot.draw(results, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
