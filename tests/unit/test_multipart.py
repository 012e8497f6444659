"""A submission in pieces of any size: the same parts, the same refusals, and never more in memory than a piece."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from socket_kit import BOUNDARY, file, job, multipart
from solvisor.errors import Refused
from solvisor_service.api.multipart import receive

TYPE = f"multipart/form-data; boundary={BOUNDARY}"


class Sink:
    """What came of a body."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.open: str | None = None
        self.largest = 0

    async def begin(self, name: str) -> None:
        assert self.open is None
        self.open = name
        self.files[name] = b""

    async def write(self, data: bytes) -> None:
        assert self.open is not None
        self.largest = max(self.largest, len(data))
        self.files[self.open] += data

    async def end(self) -> None:
        assert self.open is not None
        self.open = None


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(body: bytes, size: int = 1 << 16, kind: str = TYPE) -> tuple[dict[str, bytes], bytes | None]:
    sink = Sink()
    wishes = await receive(pieces(body, size), kind, sink.begin, sink.write, sink.end)
    assert sink.open is None
    assert sink.largest <= size + len(BOUNDARY) + 4  # what could have been the end was held back
    return sink.files, wishes


async def refusal(body: bytes, size: int = 1 << 16, kind: str = TYPE) -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        await read(body, size, kind)
    return refused.value.refusal, str(refused.value)


NASTY = f"\r\n--{BOUNDARY[:-1]}\r\n-".encode() + bytes(range(256)) + b"\r\n\r\n--"
"""What looks like the end of a part and is none."""


@pytest.mark.parametrize("size", [1, 2, 7, 61, 1 << 16])
async def test_parts_come_whole_whatever_the_pieces(size: int) -> None:
    body = multipart(file("a.inp", NASTY), job({"priority": 1}), file("mesh/b.inc"), file("ä.inp", b"\r\n"))
    assert await read(body, size) == ({"a.inp": NASTY, "mesh/b.inc": b"", "ä.inp": b"\r\n"}, b'{"priority": 1}')


@pytest.mark.parametrize("size", [1, 13, 1 << 16])
async def test_a_body_that_is_cut_off_anywhere_is_refused(size: int) -> None:
    body = multipart(file("a.inp", b"x" * 50), job({}))
    for end in range(0, len(body) - 4, 9):
        assert (await refusal(body[:end], size))[0] == "usage"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="file"; filename="a b;c.inp"', "a b;c.inp"),
        ('form-data; name="file"; filename="say \\"hi\\".inp"', 'say "hi".inp'),
        ("form-data; name=file; filename=plain.inp", "plain.inp"),
        ('FORM-DATA; NAME="file"; FILENAME="a.inp"', "a.inp"),
        ('form-data; filename="a.inp"', "a.inp"),
        ('form-data; name="other"; filename=""', ""),
    ],
)
async def test_names_as_clients_write_them(disposition: str, name: str) -> None:
    files, _ = await read(multipart(f"Content-Disposition: {disposition}\r\n\r\nx".encode()))
    assert files == {name: b"x"}


async def test_the_part_job_is_the_job_with_or_without_a_file_name() -> None:
    for part in (job(b"priority = 1"), file("any.toml", b"priority = 1", field="job")):
        assert await read(multipart(part, file("a.inp"))) == ({"a.inp": b""}, b"priority = 1")
    assert (await refusal(multipart(job(b""), job(b""))))[0] == "usage"


async def test_what_is_kept_in_memory_is_bounded() -> None:
    assert (await refusal(multipart(job(b"x" * ((64 << 10) + 1)))))[0] == "job_file_too_large"
    assert (await read(multipart(job(b"x" * (64 << 10)))))[1] == b"x" * (64 << 10)
    for header in (b"X: " + b"x" * 9000, b"X" * 9000 + b": x", b"\r\n".join([b"X: " + b"x" * 2000] * 6)):
        for size in (100, 1 << 16):
            assert (await refusal(multipart(header + b"\r\n" + file("a.inp")), size))[0] == "usage"


@pytest.mark.parametrize(
    "kind",
    [
        *("", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x"),
        f"multipart/form-data; boundary={'b' * 1000}",
    ],
)
async def test_a_body_of_another_kind_is_refused_with_what_to_do(kind: str) -> None:
    code, text = await refusal(multipart(file("a.inp")), kind=kind)
    assert code == "usage"
    assert "multipart/form-data" in text


async def test_an_unknown_part_is_named() -> None:
    code, text = await refusal(multipart(b'Content-Disposition: form-data; name="prio"\r\n\r\n1'))
    assert (code, "'prio'" in text) == ("usage", True)
    assert (await refusal(multipart(b"\r\n1")))[0] == "usage"
    assert (await refusal(multipart(file("x", filename=b"\xff"))))[0] == "name"
