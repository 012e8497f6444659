"""Durations, sizes, placeholders, and TOML as text."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvisor import template, tomltext
from solvisor.units import describe_duration, format_duration, format_size, parse_duration, parse_size

# --- durations and sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("0.5s", 0.5), ("30m", 1800.0), ("2h", 7200.0), ("1d", 86400.0), ("0s", 0.0), ("1.5 h", 5400.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "1e3s", "1 hour", "1h30m", "1S", ".5s", "5s ", "99999d", "٣s", None, True, [], "1s\n"]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match=r"^(it has no unit.*|it is longer.*)?$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("2GB", 2 * 10**9), ("512kB", 512_000), ("1.5 KiB", 1536), ("7B", 7), (0, 0), (4096, 4096)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "2gb", "2 G", "-1B", "1e3B", -1, 1.5, True, None, 1 << 63, "9999999999TB"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"^(it is negative|it is larger than any disk)?$"):
        parse_size(text)


@given(st.decimals(0, 10**4, places=6, allow_nan=False).map(str), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_is_written_as_it_is_read(number: str, unit: str) -> None:
    seconds = parse_duration(number + unit)
    assert seconds >= 0
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, (1 << 63) - 1))
def test_a_size_is_written_as_it_is_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**6), st.sampled_from([("TiB", 1 << 40), ("GB", 10**9), ("MiB", 1 << 20), ("kB", 1000)]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    assert parse_size(f"{number}{unit[0]}") == number * unit[1]


def test_short_spellings() -> None:
    assert [format_duration(s) for s in (7200.0, 0.5, 90.0, 86400.0, 0.0, 1.25)] == [
        "2h",
        "500ms",
        "90s",
        "1d",
        "0s",
        "1.25s",
    ]
    assert [describe_duration(s) for s in (1800.0, 7200.0, 90.0)] == ["30 min", "2 h", "90 s"]
    assert [format_size(s) for s in (2 << 30, 10**6, 1_000_001, 0, 512)] == ["2GiB", "1MB", 1_000_001, 0, 512]


# --- placeholders -----------------------------------------------------------------------------------------------------

VALUES = {"input": "a b.inp", "stem": 'q"$(x)', "cpus": "4", "params.load": "{input} {{}}"}


def test_a_placeholder_is_one_element_or_part_of_one() -> None:
    assert template.expand("-i={stem}.{cpus}", VALUES) == '-i=q"$(x).4'
    assert template.expand("{{{cpus}}} {{stem}}", VALUES) == "{4} {stem}"
    assert template.expand("", VALUES) == ""


def test_a_value_is_not_expanded_again() -> None:
    assert template.expand("{params.load}", VALUES) == "{input} {{}}"


@pytest.mark.parametrize("text", ["{", "}", "{a", "a}", "{a{b}", "{{}", "}{"])
def test_a_lone_brace_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a single [{}]; write \{\{ or \}\} for a literal brace$"):
        template.split(text)


@given(st.lists(st.one_of(st.text(), st.sampled_from(["input", "stem", "params.a"]).map(template.Field))), st.data())
def test_expansion_puts_values_between_the_pieces(pieces: list[str | template.Field], data: st.DataObject) -> None:
    hostile = st.text(alphabet="{} \"'$`;\\\n-abc") | st.sampled_from(["{stem}", "{{input}}", "}{", "{params.a}"])
    values = {name: data.draw(hostile) for name in ("input", "stem", "params.a")}
    written = "".join(
        f"{{{piece.name}}}" if isinstance(piece, template.Field) else piece.replace("{", "{{").replace("}", "}}")
        for piece in pieces
    )
    want = "".join(values[piece.name] if isinstance(piece, template.Field) else piece for piece in pieces)
    assert template.expand(written, values) == want
    assert template.names(written) == tuple(piece.name for piece in pieces if isinstance(piece, template.Field))


# --- TOML text --------------------------------------------------------------------------------------------------------

TEXT = '''\
# a comment = not a key
a = 1
"b c".d = """x
y = 2, no key either
"""
[solver.ccx]
command = ["ccx",   # one [ bracket
  "-i",
  "]"]
params = { load = { type = "float" }, 'q"' = {} }
[[x.y]]
z = 1
[[x.y]]
z = [ { a = 1 },
  { b = [1,
    2] } ]
[x.y.sub]
k = \'\'\'v
\'\'\'
d = 1979-05-27T07:32:00Z
'''


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_key_is_found_on_its_line(line_end: str) -> None:
    text = TEXT.replace("\n", line_end)
    lines = tomltext.locate(text)
    assert tomltext.parse(text)["x"]["y"][1]["z"][1] == {"b": [1, 2]}
    assert {path: lines[path] for path in lines if path[0] in ("a", "b c")} == {("a",): 2, ("b c",): 3, ("b c", "d"): 3}
    assert lines["solver", "ccx"] == 6
    assert [lines["solver", "ccx", "command", n] for n in range(3)] == [7, 8, 9]
    assert lines["solver", "ccx", "params", "load", "type"] == lines["solver", "ccx", "params", 'q"'] == 10
    assert [lines[path] for path in (("x", "y", 0), ("x", "y", 0, "z"), ("x", "y", 1))] == [11, 12, 13]
    assert [lines["x", "y", 1, "z", n] for n in range(2)] == [14, 15]
    assert lines["x", "y", 1, "z", 1, "b", 1] == 16
    assert lines["x", "y", 1, "sub", "k"] == 18
    assert lines["x", "y", 1, "sub", "d"] == 20


def test_what_is_not_written_is_where_its_table_is() -> None:
    lines = tomltext.locate(TEXT)
    assert tomltext.line_of(("solver", "ccx", "success", "exit"), lines) == 6
    assert tomltext.line_of(("inbox",), lines) is None


SIZE = 64 << 10
BOMBS = {
    "a dotted key": "a." * (SIZE // 2) + "b = 1",
    "a dotted key of quoted parts": '"a".' * (SIZE // 4) + "b = 1",
    "a dotted header": "[" + "a." * (SIZE // 2) + "b]",
    "a dotted key in an inline table": "x = {" + "a . " * (SIZE // 4) + "b = 1}",
    "arrays in arrays": "a = " + "[" * SIZE,
    "tables in tables": "a = " + "{b=" * (SIZE // 3),
    "a bare word": "a" * SIZE,
    "a number": "a = " + "9" * SIZE,
    "behind a string that hides nothing": 'x = "\\"" # "\n' + "a." * (SIZE // 2) + "b = 1",
    "quotes": '"' * SIZE,
    "strings never closed": '"""\\""' * (SIZE // 6),
    "escapes": 'a = "' + "\\n" * (SIZE // 2 - 3) + '"',
    "blanks": "a =" + " " * SIZE + "1",
    "many keys": "\n".join(f"a.b.c.d.e.f.g.h.k{n} = 1" for n in range(2500)),
    "many tables": "\n".join(f"[[a.b.c.d.e{n % 7}]]" for n in range(4000)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_fault_75_no_text_is_slow(bomb: str) -> None:
    """The plain parser takes 8 s and more for the first of these."""
    text = BOMBS[bomb]
    started = time.process_time()
    with contextlib.suppress(ValueError):
        tomltext.parse(text)
        tomltext.locate(text)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ok = 1\n" + "a." * 9 + "b = 1", "line 2: a key of more than 9 parts or 200 bytes"),
        ('x = """\n\n"""\n' + "k" * 201 + " = 1", "line 4: a key of more than 9 parts or 200 bytes"),
        ("x = [" + "[" * 32 + "]" * 33, "line 1: brackets nested deeper than 32"),
        ("x = " + "9" * 150 + "e", "line 1, column"),
        ("x =", "end of document: "),
    ],
)
def test_a_fault_has_its_line(text: str, want: str) -> None:
    with pytest.raises(ValueError, match=f"^{want}"):
        tomltext.parse(text)


def test_what_is_within_bounds_is_read() -> None:
    assert tomltext.parse("a." * 8 + "b = 1")["a"]
    assert tomltext.parse("k" * 200 + " = 1")
    assert tomltext.parse("x = " + "[" * 32 + "]" * 32)
    assert tomltext.parse("x = '" + "a." * 500 + "[[[[" * 50 + "'")
    assert tomltext.parse("x = 1 # " + "a." * 500)
