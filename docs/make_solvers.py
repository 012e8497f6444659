"""Write ``docs/solvers`` and ``examples/solvers.toml`` from the profiles: ``python docs/make_solvers.py`` (with ``src``
and ``service`` on the path).

Rules: every table and every claim about a solver comes from ``solvisor_service.profiles``; here stands only how it is
laid out.
"""

from __future__ import annotations

from pathlib import Path

from solvisor_service.profiles import Profile, profiles

ROOT = Path(__file__).resolve().parent.parent

INDEX = """\
# Solver tables, ready to paste

`solvisor init` writes those whose program is on the PATH into a new configuration, `solvisor init --update` adds those
installed since. Made by `docs/make_solvers.py` from `service/solvisor_service/profiles/`; a test compares the two.

**Run** means: the table was run with that version on good and bad inputs, and every verdict was right; the tests do so
again wherever the program is installed. **From documentation** means that nobody has run it yet: see it judge a good
and a bad input before you trust it, and tell us.

Two tables that take the same files, such as ccx and abaqus, can stand in one configuration if one of them has
`accept = []`: drop its files in `inbox/<solver>/`, or name the solver in a job file.

| solver | table | accepts | |
|---|---|---|---|
"""

TABLES = """\
# Solver tables to copy into solvisor.toml, each tried on good and bad inputs. Made by docs/make_solvers.py; those of
# solvers that nobody could try are in docs/solvers. `solvisor init` writes a configuration of those found here.
#
# "It exited with 0" is seldom enough: ccx exits 0 on garbage, cbc and glpsol exit 0 on a model without a solution,
# mkvmerge exits 1 with a good file. Each table therefore says what a good run leaves, and where the solver's own
# sentence about a bad one stands (error_pattern: its group 1, else all of it, becomes the manifest's message).

"""


def pages() -> dict[Path, str]:
    """All files that are made, with their texts."""
    known = profiles()
    folder = ROOT / "docs" / "solvers"
    return {
        folder / "README.md": INDEX + "".join(map(row, known)),
        **{folder / f"{profile.name}.md": page(profile) for profile in known},
        ROOT / "examples" / "solvers.toml": TABLES + "\n".join(one.table for one in known if one.about.tested),
    }


def row(profile: Profile) -> str:
    """The line of the index."""
    accept = " ".join(f"`{pattern}`" for pattern in profile.accept) or "by folder or job file"
    return f"| {profile.about.title} | [{profile.name}]({profile.name}.md) | {accept} | {standing(profile)} |\n"


def standing(profile: Profile) -> str:
    """Whether it was run."""
    return f"run with {profile.about.tested}" if profile.about.tested else "from documentation"


def page(profile: Profile) -> str:
    """One solver: what was tried, and the table."""
    about = profile.about
    parts = [f"# {about.title}\n"]
    if about.tested:
        parts.append(f"Run with version {about.tested}; every verdict was right.\n")
    else:
        parts.append(
            "**Not run**: written from documentation. See it judge a good and a bad input before you trust it.\n"
        )
    if about.notes:
        parts.append(about.notes.strip() + "\n")
    parts.append(f"```toml\n{profile.table}```\n")
    if about.examples:
        lines = [
            f"| `{one.file}` | {'succeeded' if one.good else 'failed'} | {one.shows} |\n" for one in about.examples
        ]
        parts.append(
            "Inputs it was tried on (`solvisor init --examples` brings them):\n\n| input | ends | |\n|---|---|---|\n"
            + "".join(lines)
        )
    return "\n".join(parts)


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
