"""Durations and sizes as people say them."""

from __future__ import annotations

import pytest

from zmqbus.text.units import format_age, format_size


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (4.9, "4s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (86_399, "23h"),
        (172_800, "2d"),
    ],
)
def test_ages_are_rounded_down_to_one_unit(age_s: float, text: str) -> None:
    assert format_age(age_s) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (1536, "1.5 KB"),
        (1024 * 1024 - 1, "1.0 MB"),
        (2 * 1024 * 1024, "2.0 MB"),
        (10 * 1024 * 1024, "10.0 MB"),
    ],
)
def test_sizes_have_one_decimal(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
