"""The page of faults: every fault once, each with its tests or with the reason why there are none."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
MAKE = runpy.run_path(str(DOCS / "make_faults.py"))
PAGE = (DOCS / "faults.md").read_text(encoding="utf-8")


def test_the_page_lists_every_fault_once_and_in_order() -> None:
    assert list(MAKE["entries"](PAGE)) == list(range(1, 92))
    with pytest.raises(ValueError, match="twice"):
        MAKE["entries"](PAGE + "\n**91. Again.** x\n")


def test_every_fault_has_a_test_or_a_reason() -> None:
    shown = MAKE["shown"]()
    bare = [n for n, body in MAKE["entries"](PAGE).items() if n not in shown and "\nNo test: " not in body]
    assert not bare, f"neither a test called test_fault_NN_... nor a paragraph 'No test: ...': {bare}"


def test_no_test_bears_a_number_that_is_not_listed() -> None:
    assert set(MAKE["shown"]()) <= set(MAKE["entries"](PAGE))


def test_the_page_names_the_tests_there_are() -> None:
    assert MAKE["page"](PAGE) == PAGE, "run: python docs/make_faults.py"
