"""Draw ``states.md`` from the two state tables: ``python docs/make_states.py`` (with ``src`` on the path).

Rules: every arrow, every row and every word about an event comes from ``solvisor.machine`` and ``solvisor.fleet``; here
stands only how it is laid out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from solvisor import fleet, machine
from solvisor.events import Published, ServerEnded
from solvisor.model import TERMINAL, ServerState, State

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

SERVERS = """
# The states of a warm server

Made from the table in `src/solvisor/fleet.py` in the same way. News of a server that is gone changes nothing; no server
outlives its daemon.

"""

SERVERS_BETWEEN = """
The last arrows are `ServerEnded`: nothing of the server is left, and its licenses are free. `backoff` and `failed` are
what people see of a solver none of whose servers may start now; no server is ever in them.

| event | what happened | in state | then |
|---|---|---|---|
"""

Table = Mapping[Any, Collection[StrEnum | None]]
"""Of pairs of a state (or ``None``) and a class of events."""


def page() -> str:
    """The whole of ``states.md``."""
    jobs = diagram(machine.TABLE, State, Published, [state for state in State if state in TERMINAL])
    ends = [state for state in ServerState if (state, ServerEnded) in fleet.TABLE]
    servers = diagram(fleet.TABLE, ServerState, ServerEnded, ends)
    return "".join(
        [
            *(HEAD, "\n", jobs, BETWEEN, *rows(machine.TABLE, State)),
            *(SERVERS, servers, SERVERS_BETWEEN, *rows(fleet.TABLE, ServerState)),
        ]
    )


def diagram(table: Table, order: type[StrEnum], last: type, ends: Iterable[StrEnum]) -> str:
    """A table as a Mermaid state diagram: one arrow per pair of states, with all the events that take it.

    Those of the ``last`` event, from the states in ``ends``, have no words.
    """
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), after in table.items():
        if event is not last:
            for target in in_order(after, order):
                arrows.setdefault((state or "[*]", target or "[*]"), []).append(event.__name__)
    lines = [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in ends]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def rows(table: Table, order: type[StrEnum]) -> list[str]:
    """One row per event and outcome, in the order of the table."""
    states: dict[tuple[type, tuple[StrEnum | None, ...]], list[str]] = {}
    for (state, event), after in table.items():
        states.setdefault((event, tuple(in_order(after, order))), []).append(state or "none")
    return [
        f"| `{event.__name__}` | {meaning(event)} | {', '.join(names)} | {', '.join(s or 'none' for s in after)} |\n"
        for (event, after), names in states.items()
    ]


def meaning(event: type) -> str:
    """The first sentence of the event's own words."""
    words = " ".join((event.__doc__ or "").split()).replace("``", "`")
    return words.partition(". ")[0].rstrip(".")


def in_order(states: Collection[StrEnum | None], order: type[StrEnum]) -> list[StrEnum | None]:
    """Sets have no order; states have."""
    return [state for state in [*order, None] if state in states]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
