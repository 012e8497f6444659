"""Draw ``states.md`` from the state table: ``python docs/make_states.py`` (with ``src`` on the path).

Rules: every arrow, every row and every word about an event comes from ``solvisor.machine``; here stands only how it is
laid out.
"""

from __future__ import annotations

from pathlib import Path

from solvisor.events import Event, Published
from solvisor.machine import TABLE
from solvisor.model import TERMINAL, State

PAGE = Path(__file__).with_name("states.md")

HEAD = """\
# The states of a job

Made from the table in `src/solvisor/machine.py` by `docs/make_states.py`; a test compares the two. An event that a
state has no arrow for is a defect of Solvisor: it raises `IllegalEvent` and changes nothing. An event of an attempt
that is not the current one is discarded, whatever the state.
"""

BETWEEN = """
The last arrows are `Published`: the manifest is on the disk, and the job leaves the world of the engine. Terminal
states have no other exit.

## What each event does

| event | what happened | in state | then |
|---|---|---|---|
"""


def page() -> str:
    """The whole of ``states.md``."""
    return HEAD + "\n" + diagram() + BETWEEN + "".join(rows())


def diagram() -> str:
    """The table as a Mermaid state diagram: one arrow per pair of states, with all the events that take it."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), after in TABLE.items():
        if event is not Published:
            for target in in_order(after):
                arrows.setdefault((state or "[*]", target or "[*]"), []).append(event.__name__)
    lines = [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def rows() -> list[str]:
    """One row per event and outcome, in the order of the table."""
    states: dict[tuple[type[Event], frozenset[State | None]], list[str]] = {}
    for (state, event), after in TABLE.items():
        states.setdefault((event, after), []).append(state or "none")
    return [
        f"| `{event.__name__}` | {meaning(event)} | {', '.join(names)} | {targets(after)} |\n"
        for (event, after), names in states.items()
    ]


def meaning(event: type[Event]) -> str:
    """The first sentence of the event's own words."""
    words = " ".join((event.__doc__ or "").split()).replace("``", "`")
    return words.partition(". ")[0].rstrip(".")


def targets(after: frozenset[State | None]) -> str:
    """The states that may follow, in the order in which a job meets them."""
    return ", ".join(state or "none" for state in in_order(after))


def in_order(states: frozenset[State | None]) -> list[State | None]:
    """Sets have no order; states have."""
    return [state for state in [*State, None] if state in states]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
