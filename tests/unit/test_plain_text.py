"""Numbers and foreign text as people read them."""

from __future__ import annotations

import pytest

from solvisor.filetext import one_line
from solvisor.units import describe_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1 << 10, "1 KiB"),
        (23129018368, "21.5 GiB"),
        (8 << 30, "8 GiB"),
        (5 << 50, "5.12e+03 TiB"),
    ],
)
def test_sizes_in_sentences(size: int, text: str) -> None:
    assert describe_size(size) == text


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[1mlength\x1b[0m must be positive",
        "length must be\x1b]0;a title\x07 positive",
        "length \x1b]8;;file:///x\x1b\\must\x1b]8;;\x1b\\ be positive",
        "length\tmust\n  be \x1b(Bpositive\x07",
    ],
)
def test_nothing_of_what_a_terminal_would_obey_is_left_in_a_sentence(text: str) -> None:
    assert one_line(text, 100) == "length must be positive"


def test_a_long_sentence_says_that_it_goes_on() -> None:
    assert one_line("x" * 20, 10) == "xxxxxxx..."
