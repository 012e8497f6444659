"""The API's description: made from the tables of ways, true to the types, and what stands in the documentation."""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis

from solvisor.views import Problem
from solvisor_service.api import codes
from solvisor_service.api.openapi import describe
from solvisor_service.api.routes import ORDERS, QUESTIONS
from solvisor_service.api.ways import Role, Way

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WAYS: tuple[Way[Any], ...] = (*QUESTIONS, *ORDERS)
API = describe(WAYS)


def operation(way: Way[Any]) -> dict[str, Any]:
    found: dict[str, Any] = API["paths"][way.path.replace(":path}", "}")][way.method.lower()]
    return found


def name_of(way: Way[Any]) -> str:
    return f"{way.method} {way.path}"


# --- the description ------------------------------------------------------------------------------------------------


def test_the_documentation_has_the_description_and_the_codes_there_are_now() -> None:
    make = runpy.run_path(str(DOCS / "make_api.py"))
    assert (DOCS / "openapi.json").read_text(encoding="utf-8") == make["description"](), "run: python docs/make_api.py"
    page = (DOCS / "socket.md").read_text(encoding="utf-8")
    assert make["page"](page) == page, "run: python docs/make_api.py"


def test_it_is_openapi_and_every_operation_is_called_by_a_name_of_its_own() -> None:
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(API)))
    schema.validate()
    assert API["openapi"] == "3.1.0"
    operations = [operation for path in API["paths"].values() for operation in path.values()]
    assert len(operations) == len(WAYS)
    assert len({operation["operationId"] for operation in operations}) == len(WAYS)
    for _, reference in references(API):
        assert reference.startswith("#/components/")
        _, _, kind, name = reference.split("/")
        assert name in API["components"][kind], reference


def references(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from references(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from references(each, name)
    elif name == "$ref":
        yield name, value


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_a_way_is_described_with_all_that_it_takes_and_gives(way: Way[Any]) -> None:
    told = operation(way)
    assert told["x-role"] == way.role.name.lower()
    assert (told["security"] == []) == (way.role is Role.ANYONE)
    asked = {parameter["name"] for parameter in told["parameters"] if parameter["in"] == "query"}
    assert asked == {field.encode_name for field in msgspec.structs.fields(way.query)}
    in_path = {parameter["name"] for parameter in told["parameters"] if parameter["in"] == "path"}
    assert in_path == set(re.findall(r"\{(\w+)(?::path)?\}", way.path))
    assert all(parameter["description"] for parameter in told["parameters"] if parameter["in"] == "path")
    assert {str(way.status), *map(str, way.also)} <= told["responses"].keys()
    given = {name for status in (way.status, *way.also) for name in told["responses"][str(status)].get("headers", {})}
    assert given == {name for name, _ in way.gives}
    assert ("requestBody" in told) == (way.body is not None)


@pytest.mark.parametrize(("path", "name"), [("/v1/usage", "points"), ("/v1/jobs", "limit")])
def test_how_many_there_may_be_is_told(path: str, name: str) -> None:
    (told,) = (
        one
        for way in WAYS
        if way.path == path and way.method == "GET"
        for one in operation(way)["parameters"]
        if one["name"] == name
    )
    assert (told["schema"]["minimum"], told["schema"]["maximum"]) == (1, 1000)


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_every_example_is_what_it_is_an_example_of(way: Way[Any]) -> None:
    told = operation(way)
    content = told["responses"][str(way.status)]["content"]
    if isinstance(way.answer, str):
        assert next(iter(content)) == way.answer
    else:
        data = json.dumps(content["application/json"]["example"]).encode()
        answer = msgspec.json.decode(data, type=way.answer)
        assert json.loads(msgspec.json.encode(answer)) == json.loads(data), "nothing of it is left out"
    if isinstance(way.body, type):
        example = told["requestBody"]["content"]["application/json"]["example"]
        msgspec.json.decode(json.dumps(example).encode(), type=way.body)


def test_refusals_are_described_with_examples_that_are_problems() -> None:
    for status, refusal in API["components"]["responses"].items():
        content = refusal["content"]["application/problem+json"]
        problem = msgspec.json.decode(json.dumps(content["example"]).encode(), type=Problem)
        assert str(problem.status) == status
        for code in codes.of_status(problem.status):
            assert f"`{code.code}`" in refusal["description"]


# --- the codes ------------------------------------------------------------------------------------------------------

ARGUMENT = {"Refused": 0, "Conflict": 0, "Denied": 1, "problem_bytes": 2}
"""Where what raises or sends a refusal has its code."""

OF_DROPS = {"poison"}
"""Codes that only a drop meets."""

REASONED = {"Conflict", "Denied", "Refused"}
"""Errors whose code is that of each one, not of its class."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for root in ("src/solvisor", "service/solvisor_service/api"):
        for path in (ROOT / root).rglob("*.py"):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def codes_of_the_source() -> Iterator[str]:
    answered = errors_that_are_answered()
    for path, tree in trees():
        for node in ast.walk(tree):
            yield from codes_of(node, path, answered)


def errors_that_are_answered() -> set[str]:
    """The errors that ``problems`` makes documents of by their own code, with those below them; and the store's."""
    tree = ast.parse((ROOT / "service/solvisor_service/api/problems.py").read_text(encoding="utf-8"))
    caught = [node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    named = [node.cls for node in ast.walk(tree) if isinstance(node, ast.MatchClass)] + caught
    found = {node.id for node in named if isinstance(node, ast.Name)} - REASONED - {"SolvisorError", "StoreUnavailable"}
    found |= {"StoreError", "StoreDamaged", "StoreFailed"}
    below = {
        node.name
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and found & {base.id for base in node.bases if isinstance(base, ast.Name)}
    }
    return found | (below - {"StoreUnavailable"})


def codes_of(node: ast.AST, path: Path, answered: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        place = ARGUMENT.get(node.func.id)
        if place is not None and len(node.args) > place:
            yield from constants(node.args[place])
        if node.func.id == "Problem":
            yield from (text for each in node.keywords if each.arg == "code" for text in constants(each.value))
    elif isinstance(node, ast.ClassDef) and node.name in answered:
        yield from (text for each in node.body if is_named(each, "code") for text in constants(each))
    elif is_named(node, "code") and "jobfile" in path.name:
        yield from constants(node)
    elif isinstance(node, ast.Return | ast.Assign | ast.keyword) and isinstance(node.value, ast.Tuple):
        is_refusal = "spool" in path.parts or path.name in ("intake.py", "acceptance.py")
        pair = node.value.elts
        if is_refusal and len(pair) == 2 and isinstance(pair[1], ast.Name | ast.JoinedStr):
            yield from constants(pair[0])


def is_named(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name


def constants(node: ast.AST) -> Iterator[str]:
    """The texts that it may be; of what is worked out elsewhere none."""
    if isinstance(node, ast.Assign):
        yield from constants(node.value)
    elif isinstance(node, ast.IfExp):
        yield from (*constants(node.body), *constants(node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z_]+", node.value):
        yield node.value


def test_every_code_of_the_source_is_documented_and_every_documented_code_is_of_the_source() -> None:
    found = set(codes_of_the_source()) - OF_DROPS
    documented = [code.code for code in codes.CODES]
    assert len(documented) == len(set(documented))
    assert found == set(documented)
