"""``solvisor init``: a commented configuration with a table for every known solver on the PATH.

Rules: what an operator wrote is never changed: without ``--update`` a configuration that is there is an error, with it
tables are appended. What is known of solvers, the text and its place are the matter of ``profiles``; here stands what
the user asked, and what is said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from solvisor.errors import HomeError
from solvisor_service.cli.shared import Verbs, add_verb, config_of, home_of, homed

if TYPE_CHECKING:  # for quick verbs, what reads and searches is imported by the function that needs it
    from solvisor.config import Config
    from solvisor_service.profiles.search import Found

EXAMPLES = """\
  solvisor init                             in your own home
  solvisor init --home ~/runs --examples    elsewhere, with inputs to try
  solvisor init --update                    add what was installed since"""


class Row(NamedTuple):
    """A program that was found, and what became of it: ``status`` is added or declared."""

    solver: str
    program: str
    version: str | None
    tested: str | None
    status: str
    note: str


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    text = "write a configuration with a table for every known solver on the PATH"
    init = add_verb(verbs, "init", _init, help=text, examples=EXAMPLES, with_config=True, with_json=True)
    init.add_argument("--update", action="store_true", help="only append tables for solvers installed since")
    init.add_argument(
        "--examples", action="store_true", help="put small inputs, good and bad, into the home's examples/"
    )


def _init(arguments: argparse.Namespace) -> int:
    from solvisor_service.profiles import compose, place, profiles

    home, target = home_of(arguments), config_of(arguments)
    with _explained(home, "no configuration was written"):
        fresh = not os.path.lexists(target)
        if not fresh and not arguments.update:
            told = f"{target} is there already and stays as it is"
            wish = "to add solvers installed since"
            if arguments.examples:
                told, wish = f"{told}, and no examples were written", f"for examples, and {wish}"
            update = _line("init", "--update", *["--examples"] * arguments.examples, *_chosen(arguments))
            raise place.Exists(f"{told}; {wish}, type: {update}")
        home.mkdir(0o755, parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        loaded, rows = _created(target) if fresh else _updated(target)
    if arguments.examples:
        with _explained(home, f"{target} is in place, the examples are not"):
            known = [one for one in profiles() if compose.declared(one, loaded.solver)]
            place.put_examples(home / "examples", known)
    added = [row for row in rows if row.status == "added"]
    missing = _missing(rows)
    following = _next(arguments, loaded, home, added)
    if arguments.json:
        facts = {
            "home": str(home),
            "config": str(target),
            "written": fresh or bool(added),
            "solvers": [row._asdict() for row in rows],
            "missing": missing,
            "examples": str(home / "examples") if arguments.examples else None,
            "next": following,
        }
        print(json.dumps(facts, indent=2))
    else:
        from solvisor_service.cli import text

        sentence = f"Wrote {target}." if fresh else _update_sentence(target, added)
        _show(sentence, rows, missing, homed("solvisor init --update", arguments))
        if arguments.examples:
            print(text.clean(f"Inputs to try, and how each must end: {home / 'examples'}"))
        print("\nNext:", *map(text.clean, following), sep="\n  ")
    return 0


def _created(target: Path) -> tuple[Config, list[Row]]:
    from solvisor_service.profiles import compose, place

    found = _search()
    loaded = place.create(target, compose.configuration(found))
    return loaded, [_row(one, loaded) for one in found]


def _updated(target: Path) -> tuple[Config, list[Row]]:
    from solvisor import config
    from solvisor_service.profiles import compose, place

    loaded = config.load(target)
    found = _search()
    owners = {one.profile.name: compose.declared(one.profile, loaded.solver) for one in found}
    added = [one for one in found if owners[one.profile.name] is None]
    if added:
        loaded = place.append(target, compose.sections(added, compose.takers(loaded.solver)))
    return loaded, [_row(one, loaded, owners[one.profile.name]) for one in found]


def _search() -> list[Found]:
    from solvisor_service.profiles import profiles, search

    return search.search(profiles(), os.environ.get("PATH", os.defpath))


def _row(found: Found, loaded: Config, owner: str | None = None) -> Row:
    profile = found.profile
    status, note = "added", ""
    if owner is not None:
        status, note = "declared", "declared already" if owner == profile.name else f"declared already, as {owner}"
    else:
        notes = []
        if profile.about.tested is None:
            notes.append("UNTESTED: see it judge a good and a bad input before you trust it")
        if not loaded.solver[profile.name].accept:
            why = f"{' '.join(profile.accept)} goes to another solver" if profile.accept else "takes nothing by name"
            notes.append(f"{why}; drop its files in inbox/{profile.name}/")
        note = "; ".join(notes)
    return Row(profile.name, found.program, found.version, profile.about.tested, status, note)


def _missing(rows: list[Row]) -> list[str]:
    """The usual names of known programs that are not there."""
    from solvisor_service.profiles import profiles

    names = {row.solver for row in rows}
    absent = (one.about.programs[0] for one in profiles() if one.about.programs and one.name not in names)
    return list(dict.fromkeys(absent))


def _next(arguments: argparse.Namespace, loaded: Config, home: Path, added: list[Row]) -> list[str]:
    """The commands to type now."""
    inbox = loaded.path.parent / loaded.inbox.path if loaded.inbox.path else home / "inbox"
    example = _first_example(loaded, added) if arguments.examples else None
    where = _chosen(arguments)
    source = shlex.quote(str(home / "examples" / example)) if example else "INPUT"
    return [
        _line("config", "check", *where),
        _line("serve", *where),
        f"cp -r {source} {shlex.quote(f'{inbox}/')}",
    ]


def _first_example(loaded: Config, added: list[Row]) -> str | None:
    from solvisor_service.profiles import profiles

    names = [row.solver for row in added] or list(loaded.solver)
    for profile in profiles():
        if profile.name in names and profile.about.examples and loaded.solver[profile.name].accept:
            return f"{profile.name}/{profile.about.examples[0].file}"
    return None


def _chosen(arguments: argparse.Namespace) -> list[str]:
    """The options that say where, as the user gave them."""
    given = [("--home", arguments.home), ("--config", arguments.config)]
    return [word for option, value in given if value is not None for word in (option, value)]


def _line(*words: str) -> str:
    return shlex.join(["solvisor", *words])


def _update_sentence(target: Path, added: list[Row]) -> str:
    if not added:
        return f"Nothing to add to {target}."
    return f"Added to {target}: {', '.join(row.solver for row in added)}."


def _show(sentence: str, rows: list[Row], missing: list[str], update: str) -> None:
    from solvisor_service.cli import text

    print(text.clean(sentence))
    if rows:
        print()
        cells = [(row.solver, row.version or "unknown", row.tested or "-", row.program, row.note) for row in rows]
        text.table(text.console(), cells, titles=("SOLVER", "VERSION", "TESTED WITH", "PROGRAM", "NOTE"))
    print()
    if not rows:
        print("No solver that Solvisor has a table for is on the PATH. For your own program put a table into the file:")
        print(text.clean(f"it has a sample to change. Those installed later are added by: {update}"))
    if missing:
        print(f"Looked for on the PATH and not found: {', '.join(missing)}.")


@contextlib.contextmanager
def _explained(home: Path, outcome: str) -> Iterator[None]:
    """Say what the system refused, what is in place, and what to do."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else home
        advice = "choose another home with --home DIR, or have this place made writable for you"
        raise HomeError(f"{place}: {error.strerror or error}; {outcome}; {advice}") from None
