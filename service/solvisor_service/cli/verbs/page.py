"""``solvisor page``: the way to the page of a daemon, with a pass in the caller's own name."""

from __future__ import annotations

import argparse
import html
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import Verbs, add_verb, client_of, print_json, seconds

if TYPE_CHECKING:
    from solvisor.views import Pass


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    page = add_verb(
        verbs,
        "page",
        _page,
        help="print the address of the page, with a pass in your own name; whoever has it may do what you may",
        examples="  solvisor page\n  solvisor page --open\n  solvisor page --look --for 90d\n"
        "  ssh -L 8642:127.0.0.1:8642 ws04     then, from afar, the same address",
        with_json=True,
    )
    page.add_argument("--open", action="store_true", help="open it in a browser")
    page.add_argument("--look", action="store_true", help="a pass that can only look, as for a screen on a wall")
    page.add_argument("--for", dest="seconds", metavar="TIME", type=seconds, help="how long the pass is good (7d)")


def _page(arguments: argparse.Namespace) -> int:
    seconds = None if arguments.seconds is None else round(arguments.seconds)
    given = client_of(arguments).give_pass(seconds, "look" if arguments.look else None)
    if arguments.open:
        return _open(given, arguments)
    if arguments.json:
        print_json(given)
        return 0
    print(given.url)
    print(_about(given), file=sys.stderr)
    return 0


def _about(given: Pass) -> str:
    from solvisor_service.cli.jobtext import clock
    from solvisor_service.cli.text import harmless

    return harmless(f"good until {clock(given.expires)}; who has it may {given.role} as {given.user}")


def _open(given: Pass, arguments: argparse.Namespace) -> int:
    """Have a browser open the page. What a program is started with everybody can see, so it gets a file to read."""
    import webbrowser

    from solvisor_service.cli.shared import complain

    path = _way_in(given.url)
    if not webbrowser.open(path.as_uri()):
        complain("no browser can be started here; print the address instead: solvisor page", arguments)
        return 1
    print(_about(given), file=sys.stderr)
    return 0


def _way_in(url: str) -> Path:
    """A file of this user's alone that leads to ``url``; it takes the place of the one of before."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(cache) if cache else Path.home() / ".cache") / "solvisor"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, part = folder / "page.html", folder / f".page.{os.getpid()}.part"
    quoted = html.escape(url)
    text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={quoted}">'
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(f'{text}<title>Solvisor</title><a href="{quoted}">Solvisor</a>\n')
    part.replace(path)
    return path
