"""HTML and SVG that cannot be anything else than was meant: text becomes text, wherever it came from.

Rules: nothing but ``Markup`` goes through unchanged, and only this module makes some. Names of tags and attributes are
ours; what users, solvers and messages say comes in as text or as the value of an attribute, and is cleaned and escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias

from solvisor_service.cli.text import clean


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child: TypeAlias = "str | Markup | Iterable[str | Markup | None] | None"

_VOID = frozenset({"meta", "br", "hr", "rect", "line", "path", "circle", "polyline"})


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """One element. An attribute that is ``None`` is left out; ``_`` in its name is ``-``, ``class_`` is ``class``."""
    given = "".join(
        f' {attribute.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for attribute, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(text, children))
    if not inner and name in _VOID:
        return Markup(f"<{name}{given}/>" if name != "meta" else f"<{name}{given}>")
    return Markup(f"<{name}{given}>{inner}</{name}>")


def text(child: Child) -> Markup:
    """A child as markup."""
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return Markup(_escaped(child))
    return Markup("".join(map(text, child)))


def join(parts: Iterable[Child]) -> Markup:
    """One after the other."""
    return Markup("".join(map(text, parts)))


def lines(*texts: str) -> Markup:
    """Each on a line of its own, where the style keeps lines."""
    return Markup("\n".join(map(text, texts)))


def style(sheet: str) -> Markup:
    """A style sheet of ours."""
    return Markup(f"<style>{sheet}</style>")


def document(head: Markup, body: Markup) -> str:
    """A whole page."""
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def _escaped(value: str) -> str:
    return html.escape(_kept(value), quote=True)


def _kept(value: str) -> str:
    """Cleaned of what has no shape of its own; blanks at its ends stay, as it may stand between two elements."""
    lead = " " if value[:1] == " " else ""
    trail = " " if value[-1:] == " " and value.strip() else ""
    return f"{lead}{clean(value)}{trail}"
