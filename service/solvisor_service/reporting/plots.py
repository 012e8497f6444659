"""Plots as inline SVG: something over time, stacked or not, and bars. No script: a pointer that rests sees titles.

Rules: colours are classes of the page's style sheet, so that they follow light, dark and paper. A plot is as wide as
``WIDTH`` in its own units and scales with the page. What is not known (no daemon ran) is a grey band and no zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from .markup import Markup, join, tag

WIDTH: Final = 920
_LEFT: Final = 46
_RIGHT: Final = 10
_TOP: Final = 8
_BELOW: Final = 22

_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)

Values = Sequence[float | None]


class Layer(NamedTuple):
    """One thing over time; ``colour`` is the class it is drawn with."""

    name: str
    values: Values
    colour: str


class _Frame(NamedTuple):
    """Where values lie: from ``since`` on in steps, up to ``top``."""

    since: datetime
    step: timedelta
    steps: int
    top: float
    height: float

    @property
    def bottom(self) -> float:
        return self.height - _BELOW

    def x(self, at: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * at / self.steps

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - _TOP) * min(value, self.top) / self.top


def over_time(
    layers: Sequence[Layer],
    since: datetime,
    step_seconds: float,
    *,
    total: float | None,
    says: str,
    tell: Callable[[float], str],
    height: int = 150,
) -> Markup:
    """The layers on top of one another over time, the first at the bottom; ``total`` is what there is.

    ``says`` what it shows, for who cannot see it; ``tell`` turns a value into words.
    """
    steps = max((len(layer.values) for layer in layers), default=1)
    sums = [_sum(layer.values[at] for layer in layers) for at in range(steps)]
    highest = max((value for value in sums if value is not None), default=0.0)
    top = max(total or 0.0, 0.0) or _round_up(highest)
    if highest > top:
        top = _round_up(highest)
    frame = _Frame(since, timedelta(seconds=step_seconds), steps, top, height)
    parts = [*_gaps(frame, sums), *_grid(frame, tell), *_days(frame)]
    below = [0.0] * steps
    for layer in layers:
        upper = [base + (value or 0.0) for base, value in zip(below, layer.values, strict=True)]
        parts += _areas(frame, below, upper, sums, layer.colour)
        below = upper
    if total is not None:
        parts.append(_rule(frame, total))
    parts += _titles(frame, layers, sums, tell)
    return _svg(parts, height, says)


def bars(counts: Sequence[float], labels: Sequence[str], *, says: str, colour: str, between: bool = False) -> Markup:
    """Bars with their numbers; ``between``: labels stand at the edges between two bars."""
    width, height = 330, 110
    top = max(counts, default=0.0) or 1.0
    left, right, bottom = 4.0, 4.0, height - 18.0
    each = (width - left - right) / max(1, len(counts))
    parts = [tag("line", x1=left, x2=width - right, y1=bottom, y2=bottom, class_="axis")]
    for at, number in enumerate(counts):
        tall = (bottom - 16) * number / top
        x = left + at * each
        if number:
            bar = tag(
                "rect", tag("title", f"{number:,.0f}"),
                x=_n(x + 1.5), y=_n(bottom - max(1.5, tall)), width=_n(each - 3), height=_n(max(1.5, tall)), rx=2,
                class_=colour,
            )  # fmt: skip
            parts += [bar, _label(x + each / 2, bottom - max(1.5, tall) - 4, f"{number:,.0f}", "middle", "small")]
    for at, label in enumerate(labels):
        x = left + (at + (1.0 if between else 0.5)) * each
        parts.append(_label(x, height - 4.0, label, "middle", "small"))
    return tag("svg", parts, viewBox=f"0 0 {width} {height}", class_="plot bars", role="img", aria_label=says)


def day(cpus: Values, total: float, *, says: str, tell: Callable[[float], str]) -> Markup:
    """Twenty-four bars, an hour each."""
    height = 120
    bottom, each = height - _BELOW, (WIDTH - _LEFT - _RIGHT) / 24
    top = total or _round_up(max((value for value in cpus if value is not None), default=1.0))
    frame = _Frame(_NEVER, timedelta(hours=1), 24, top, height)
    parts = [*_grid(frame, tell)]
    for hour, value in enumerate(cpus):
        x = _LEFT + hour * each
        if value is not None:
            y = frame.y(value)
            shape = {"x": _n(x + 2), "y": _n(y), "width": _n(each - 4), "height": _n(max(0.5, bottom - y)), "rx": 2}
            parts.append(tag("rect", tag("title", f"{hour:02}:00 {tell(value)}"), class_="fill-cpus", **shape))
        if hour % 3 == 0:
            parts.append(_label(x + each / 2, height - 6, f"{hour:02}", "middle"))
    return _svg(parts, height, says)


# --- parts ----------------------------------------------------------------------------------------------------------


def _svg(parts: Sequence[Markup], height: float, says: str) -> Markup:
    return tag("svg", parts, viewBox=f"0 0 {WIDTH} {height}", class_="plot", role="img", aria_label=says)


def _gaps(frame: _Frame, sums: Values) -> Iterator[Markup]:
    for first, after in _runs(sums, known=False):
        x, right = frame.x(first), frame.x(after)
        shape = {"x": _n(x), "y": _TOP, "width": _n(right - x), "height": _n(frame.bottom - _TOP)}
        yield tag("rect", tag("title", "no daemon ran"), class_="gap", **shape)


def _grid(frame: _Frame, tell: Callable[[float], str]) -> Iterator[Markup]:
    for part in (0.0, 0.5, 1.0):
        y = frame.y(frame.top * part)
        line = tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_n(y), y2=_n(y), class_="axis" if part == 0 else "grid")
        yield join([line, _label(_LEFT - 6, y + 4, tell(frame.top * part), "end")])


def _days(frame: _Frame) -> Iterator[Markup]:
    """Marks at good local times: hours of a day, days of a week, or weeks of a quarter."""
    whole = frame.step * frame.steps
    hours = next((hours for hours in (1, 3, 6, 12, 24) if whole <= timedelta(hours=hours * 9)), 24)
    days = max(1, math.ceil(whole / timedelta(days=10)))
    at = frame.since.replace(minute=0, second=0, microsecond=0)
    at = at.replace(hour=0) if hours == 24 else at.replace(hour=at.hour // hours * hours)
    ends = frame.since + whole
    while at <= ends:
        where = (at - frame.since) / frame.step
        if 0 <= where <= frame.steps:
            x = frame.x(where)
            yield tag("line", x1=_n(x), x2=_n(x), y1=_TOP, y2=_n(frame.bottom), class_="grid")
            words = f"{at:%a} {at.day} {at:%b}" if hours == 24 else f"{at:%H:%M}"
            anchor = "start" if hours == 24 and x < WIDTH - 70 else "middle" if hours != 24 else "end"
            yield _label(x + (3 if anchor == "start" else 0), frame.height - 6, words, anchor)
        at += timedelta(days=days) if hours == 24 else timedelta(hours=hours)


def _areas(
    frame: _Frame, lower: Sequence[float], upper: Sequence[float], sums: Values, colour: str
) -> Iterator[Markup]:
    """The band between two lines, in steps; a piece for each stretch that is known."""
    for first, after in _runs(sums, known=True):
        there = "".join(f"V{_n(frame.y(upper[at]))}H{_n(frame.x(at + 1))}" for at in range(first, after))
        back = "".join(f"V{_n(frame.y(lower[at]))}H{_n(frame.x(at))}" for at in reversed(range(first, after)))
        if any(upper[at] > lower[at] for at in range(first, after)):
            start = f"M{_n(frame.x(first))} {_n(frame.y(lower[first]))}"
            yield tag("path", d=f"{start}{there}{back}Z", class_=colour)


def _rule(frame: _Frame, total: float) -> Markup:
    y = frame.y(total)
    return tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_n(y), y2=_n(y), class_="rule")


def _titles(frame: _Frame, layers: Sequence[Layer], sums: Values, tell: Callable[[float], str]) -> Iterator[Markup]:
    """Unseen bars over all steps that say their numbers."""
    for at, value in enumerate(sums):
        if value is None:
            continue
        when = frame.since + frame.step * at
        words = f"{when:%a} {when.day} {when:%b %H:%M}  {tell(value)}"
        named = [f"{layer.name} {tell(layer.values[at] or 0.0)}" for layer in layers if layer.values[at]]
        if len(layers) > 1 and named:
            words = f"{words}: {', '.join(named)}"
        x = frame.x(at)
        shape = {"x": _n(x), "y": _TOP, "width": _n(frame.x(at + 1) - x), "height": _n(frame.bottom - _TOP)}
        yield tag("rect", tag("title", words), class_="hit", **shape)


def _runs(sums: Values, *, known: bool) -> Iterator[tuple[int, int]]:
    """Stretches of steps that are known, or not."""
    first = None
    for at, value in enumerate([*sums, None if known else 0.0]):
        fits = (value is not None) == known
        if fits and first is None:
            first = at
        elif not fits and first is not None:
            yield first, at
            first = None


def _sum(values: Iterator[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _label(x: float, y: float, words: str, anchor: str, also: str = "") -> Markup:
    return tag("text", words, x=_n(x), y=_n(y), text_anchor=anchor, class_=f"label {also}".strip())


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _round_up(value: float) -> float:
    """The next good number to end an axis with."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)
