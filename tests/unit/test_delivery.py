"""Ranges, types and names of files as answers."""

from __future__ import annotations

import pytest

from solvisor_service.api.delivery import disposition, part_of, type_of
from solvisor_service.api.problems import NoRange


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 6)),
        ("bytes=3-99", (3, 10)),
        ("bytes=9-9", (9, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes= 3-5 ", (3, 6)),
        ("bytes=0-1,3-4", None),
        ("bytes=5-3", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=a-b", None),
        ("bytes=\u0661-\u0662", None),
        ("items=0-1", None),
        ("bytes=" + "9" * 19 + "-", None),
    ],
)
def test_one_range_or_all(wanted: str | None, part: tuple[int, int] | None) -> None:
    assert part_of(wanted, 10) == part


@pytest.mark.parametrize(
    ("wanted", "size"), [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)]
)
def test_a_range_behind_the_end_is_refused(wanted: str, size: int) -> None:
    with pytest.raises(NoRange, match=f"{size:,} bytes"):
        part_of(wanted, size)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("output/a.png", "image/png"),
        ("output/a.b.SVG", "image/svg+xml"),
        ("output/png", "application/octet-stream"),
        ("output/x.png/data", "application/octet-stream"),
        ("stdout.log", "text/plain; charset=utf-8"),
        ("output/a.frd", "application/octet-stream"),
        ("output/clip.mp4", "video/mp4"),
    ],
)
def test_types_are_those_of_a_table(path: str, kind: str) -> None:
    assert type_of(path) == kind


@pytest.mark.parametrize(
    ("path", "inline", "shown"),
    [
        ("output/a.png", True, "inline; filename*=UTF-8''a.png"),
        ("output/a.png", False, "attachment; filename*=UTF-8''a.png"),
        ("output/a.html", True, "attachment; filename*=UTF-8''a.html"),
        ("output/a.xml", True, "attachment; filename*=UTF-8''a.xml"),
        ("output/a.frd", True, "attachment; filename*=UTF-8''a.frd"),
        ('output/a"; x=\r\n.txt', True, "inline; filename*=UTF-8''a%22%3B%20x%3D%0D%0A.txt"),
        ("output/käse.pdf", True, "inline; filename*=UTF-8''k%C3%A4se.pdf"),
        ("output/a\\xffb", False, "attachment; filename*=UTF-8''a%FFb"),
    ],
)
def test_names_cannot_break_out_of_their_header(path: str, inline: bool, shown: str) -> None:
    assert disposition(path, type_of(path), inline=inline) == shown
