"""Write into ``docs/faults.md`` which tests show each fault: ``python docs/make_faults.py``.

Rules: the words of the page are written by hand; a test shows fault NN because its name begins with ``test_fault_NN_``.
A fault that no test shows says why in a paragraph that begins with ``No test:``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faults.md"
ENTRY = re.compile(r"^\*\*(\d+)\. ", re.MULTILINE)
TESTS = re.compile(r"^Tests:\n(?:- .+\n)+\n?", re.MULTILINE)
NAME = re.compile(r"^ *(?:async )?def (test_fault_(\d+)_\w+)", re.MULTILINE)


def shown() -> dict[int, dict[str, list[str]]]:
    """The tests of each fault: their names by their file."""
    found: defaultdict[int, dict[str, list[str]]] = defaultdict(dict)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, number in NAME.findall(path.read_text(encoding="utf-8")):
            found[int(number)].setdefault(path.relative_to(ROOT).as_posix(), []).append(name)
    return dict(found)


def entries(text: str) -> dict[int, str]:
    """The text of each fault on the page, by its number. Raises ``ValueError`` if one comes twice."""
    parts = ENTRY.split(text)[1:]
    numbers = [int(number) for number in parts[::2]]
    twice = {number for number in numbers if numbers.count(number) > 1}
    if twice:
        raise ValueError(f"faults that stand twice on the page: {sorted(twice)}")
    return {
        number: re.split(r"^##", body, flags=re.MULTILINE)[0] for number, body in zip(numbers, parts[1::2], strict=True)
    }


def page(text: str) -> str:
    """The page with the tests there are now."""
    tests = shown()
    text = TESTS.sub("", text)
    for number, body in entries(text).items():
        if number in tests:
            text = text.replace(body, f"{body.rstrip()}\n\n{listed(tests[number])}\n\n", 1)
    return f"{text.rstrip()}\n"


def listed(tests: dict[str, list[str]]) -> str:
    """The paragraph about the tests of one fault."""
    files = [f"- {path}: {', '.join(f'`{name}`' for name in sorted(names))}" for path, names in sorted(tests.items())]
    return "\n".join(["Tests:", *files])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
