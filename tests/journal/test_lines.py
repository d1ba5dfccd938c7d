"""Lines of a file, forwards and backwards, at every size of a piece."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbus.journal import lines
from zmqbus.journal.lines import find_backward, line_at, lines_backward, lines_forward, whole_line_at
from zmqbus.journal.record import HEAD_BYTES


@given(
    st.lists(st.integers(0, 40) | st.just(HEAD_BYTES + 10), max_size=8),
    st.sampled_from([b"", b"torn", b"x" * 300]),
    st.sampled_from([1, 7, 64, 10**6]),
    st.data(),
)
def test_lines_are_those_that_split_finds(sizes: list[int], torn: bytes, piece_bytes: int, data: st.DataObject) -> None:
    whole = [bytes([97 + at]) * size for at, size in enumerate(sizes)]
    starts = [sum(len(line) + 1 for line in whole[:at]) for at in range(len(whole))]
    expected = [(start, len(line), line[:HEAD_BYTES]) for start, line in zip(starts, whole, strict=True)]
    content = b"".join(line + b"\n" for line in whole)
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        file.write(content + torn)
        file.flush()
        fd = file.fileno()
        patch.setattr(lines, "PIECE_BYTES", piece_bytes)
        patch.setattr(lines, "_END_BYTES", piece_bytes)
        begin = data.draw(st.sampled_from([*starts, 0]))
        heads = [(start, length, line[:HEAD_BYTES]) for start, length, line in lines_forward(fd, begin)]
        assert [
            (start, length, line[: len(found)])
            for (start, length, line), (_, _, found) in zip(
                [one for one in expected if one[0] >= begin], heads, strict=True
            )
        ] == heads
        backwards = list(lines_backward(fd, begin, len(content) + len(torn)))
        assert [(start, length) for start, length, _ in reversed(backwards)] == [
            (start, length) for start, length, _ in heads
        ]
        assert find_backward(fd, len(content), b"\n") == len(content) - 1
        for start, line in zip(starts, whole, strict=True):
            assert line_at(fd, start) == (len(line), line[:HEAD_BYTES])
            assert whole_line_at(fd, start) == line
        assert line_at(fd, len(content)) is None and whole_line_at(fd, len(content)) is None
