"""The table of mutants in ``docs/crash-sweeps.md``: ``cd tests && python -m crash.table`` writes it."""

from __future__ import annotations

from pathlib import Path

from crash.mutants import MUTANTS

PAGE = Path(__file__).parents[2] / "docs" / "crash-sweeps.md"
BEGIN, END = "<!-- mutants -->\n", "<!-- end of mutants -->\n"


def table() -> str:
    """One row for each mutant."""
    lines = ["| the rule | the mutant | crashed at | by | what the sweep says |", "|---|---|---|---|---|"]
    for name, mutant in MUTANTS.items():
        at = ", ".join(f"`{one}`" for one in mutant.at)
        by = "SIGKILL" if mutant.disk is None else f"power cut, {mutant.disk}"
        if not mutant.synced:
            by += ", drops not synced"
        says = " or ".join(f"`{text}`" for text in mutant.notices.split("|"))
        lines.append(f"| {mutant.rule} | {name} | {at} | {by} | {says} |")
    return "\n".join(lines) + "\n"


def page_with_table(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
