"""The page and the command line say the same of what jobs and drops wait for."""

from __future__ import annotations

import re
from pathlib import Path

import solvisor_service
from solvisor.model import Reason
from solvisor.views import WAITED_AT, WAITED_FOR, waited_for
from solvisor_service.cli.verbs.status import DROPS

WORDS = Path(solvisor_service.__file__).with_name("web") / "words.js"


def table(name: str) -> dict[str, str]:
    """An object of ``words.js`` whose values stand in one line each, as they stand there."""
    found = re.search(rf"^const {name} = {{\n(.*?)^}};", WORDS.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return dict(re.findall(r"^  (\w+): (.+),$", found[1], re.MULTILINE))


def test_reasons_have_the_same_words_on_the_page() -> None:
    assert table("REASONS") == {reason: f'"{words}"' for reason, words in WAITED_FOR.items()}
    assert set(WAITED_FOR) == set(Reason)
    assert table("NAMED") == {reason: f'"{words}"' for reason, words in WAITED_AT.items()}


def test_drops_have_the_same_words_on_the_page() -> None:
    assert table("DROPS") == {why: f'["{one}", "{several}"]' for why, (one, several) in DROPS.items()}


def test_what_is_waited_for_is_named() -> None:
    assert waited_for("license", "orcaflex") == "license orcaflex"
    assert waited_for("solver", "post") == "a place at post"
    assert waited_for("server", "omc") == "a warm server of omc"
    assert waited_for("cpus", None) == "cores"
    assert waited_for("tide", "high") == "tide high", "of a later version"
