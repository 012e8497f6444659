"""The API described as OpenAPI 3.1, made from the tables of ways and the types of what they take and give.

Rules: nothing of a route is written here: whatever stands in a table appears by itself, with examples made from the
types. What is said once for all routes (security, refusals, what names in paths mean) is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from inspect import cleandoc
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, Struct

from solvisor import __version__
from solvisor.views import Problem

from .codes import CODES, of_status
from .delivery import OCTETS
from .ways import Role, Way

_REFS: Final = "#/components/schemas/{name}"
_PROBLEM: Final = "application/problem+json"
_JSON: Final = "application/json"

_ABOUT: Final = """
Ask a Solvisor daemon, and order it. Over its Unix socket (`HOME/run/solvisor.sock`) the kernel tells who asks; over
TCP, where that is configured, a bearer token does. Each operation says which role it needs (`x-role`): `look`,
`operate` or `administer`; each may do what those before it may. Every refusal is a problem document (RFC 9457) with a
stable `code`. Times are RFC 3339 UTC, durations `_seconds`, sizes `_bytes`.
"""

_IN_PATHS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "job": (
        "An id, a prefix that only one id has, or `last`: the newest of who asks.",
        {"type": "string", "example": "riser-017-1k8359t7556hpkc"},
    ),
    "batch": ("The id of a batch.", {"type": "string", "example": "sweep-1k8359t7556hpkc"}),
    "server": ("A solver with warm servers, or the name of one server.", {"type": "string", "example": "rserve-1"}),
    "which": ("Which of the two logs.", {"type": "string", "enum": ["stdout", "stderr"]}),
    "path": (
        "The path of a file as the manifest gives it; its `/` need not be escaped.",
        {"type": "string", "example": "output/riser-017.frd"},
    ),
}

_BY_NAME: Final[Mapping[str, object]] = {
    "id": "riser-017-1k8359t7556hpkc",
    "job": "riser-017-1k8359t7556hpkc",
    "name": "riser-017",
    "solver": "orcaflex",
    "license": "orcaflex",
    "licenses": {"orcaflex": 1},
    "user": "ann",
    "by": "ann",
    "project": "riser-2026",
    "batch": "sweep-1k8359t7556hpkc",
    "host": "ws04",
    "home": "/srv/solvisor",
    "inbox_path": "/srv/solvisor/inbox",
    "folder": "done/riser-017-1k8359t7556hpkc",
    "primary": "riser-017.dat",
    "path": "output/riser-017.sim",
    "sha256": "0" * 64,
    "message": "no elastic constants were assigned to any material",
    "note": "new version on Monday",
    "code": "exit_3",
    "state": "failed",
    "cause": "exit",
    "role": "operate",
    "reason": None,
    "retry_of": None,
    "removed": None,
    "signal": None,
    "params": {"load": 3.5},
    "url": "http://127.0.0.1:8642/#token=TOKEN",
    "page": "http://127.0.0.1:8642/",
    "token": "TOKEN",
    "version": __version__,
    "solvisor_version": __version__,
    "next": "41972",
}
"""What examples say where the type alone would say nothing."""

_TIMES: Final = frozenset({"now", "since", "until", "submitted", "started", "finished", "removed", "expires", "at"})
_TIME: Final = "2026-11-02T10:00:00.000000Z"


def describe(ways: Iterable[Way[Any]]) -> dict[str, Any]:
    """The whole document."""
    ways = tuple(ways)
    types = [Problem, *(each for way in ways for each in (way.answer, way.body) if not isinstance(each, str | None))]
    named, components = msgspec.json.schema_components(types, ref_template=_REFS)
    schemas = {repr(kind): schema for kind, schema in zip(types, named, strict=True)}
    maker = _Maker(components)
    paths: dict[str, dict[str, Any]] = {}
    for way in ways:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", way.path)
        paths.setdefault(path, {})[way.method.lower()] = _operation(way, path, schemas, maker)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Solvisor", "version": __version__, "description": _ABOUT.strip()},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(map(_tag, ways))],
        "paths": paths,
        "components": {
            "schemas": {name: _plain(schema) for name, schema in components.items()},
            "responses": {str(status): _refusal(status) for status in _statuses()},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Over TCP: the content of HOME/state/token, or a pass. The Unix socket needs none.",
                }
            },
        },
    }


def _operation(way: Way[Any], path: str, schemas: Mapping[str, dict[str, Any]], maker: _Maker) -> dict[str, Any]:
    role = way.role.name.lower()
    needs = "Needs no role." if way.role is Role.ANYONE else f"Needs the role `{role}`."
    told = [f"{way.says[0].upper()}{way.says[1:]}. {needs}", _doc(way.query) if way.query.__struct_fields__ else ""]
    content = _content(way.answer, schemas, maker)
    parts: dict[int, dict[str, Any]] = {206: {"content": {"*/*": {}}}, 304: {}}
    answers: dict[str, Any] = {
        str(status): {"description": HTTPStatus(status).phrase} | parts.get(status, {"content": content})
        for status in (way.status, *way.also)
    }
    told_headers = {name: {"description": says, "schema": {"type": "string"}} for name, says in way.gives}
    if told_headers:
        for answer in answers.values():
            answer["headers"] = told_headers
    for status in _refusals(way):
        answers.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    operation: dict[str, Any] = {
        "operationId": _operation_id(way, path),
        "summary": way.says,
        "description": "\n\n".join(filter(None, told)),
        "tags": [_tag(way)],
        "x-role": role,
        "security": [] if way.role is Role.ANYONE else [{}, {"bearer": []}],
        "parameters": [*_path_parameters(path), *_query_parameters(way.query), *_header_parameters(way)],
        "responses": answers,
    }
    if isinstance(way.body, str):
        operation["requestBody"] = {"required": True, "content": _form()}
    elif way.body is not None:
        required = any(field.required for field in msgspec.structs.fields(way.body))
        operation["requestBody"] = {"required": required, "content": _content(way.body, schemas, maker)}
    return operation


def _refusals(way: Way[Any]) -> list[int]:
    """With which statuses it may be refused."""
    found = {400, 401, 403, 408, 431, 500, 503}
    if "{" in way.path or way.method != "GET" or {"job", "batch"} & {*way.query.__struct_fields__}:
        found |= {404, 409}
    if 206 in way.also:
        found.add(416)
    if way.method != "GET":
        found |= {413, 415, 422, 507}
    return sorted(found)


def _statuses() -> list[int]:
    return sorted({status for code in CODES for status in code.statuses})


def _refusal(status: int) -> dict[str, Any]:
    """One status of refusals with its codes."""
    codes = of_status(status)
    lines = [f"- `{code.code}`: {code.means}; {code.todo}" for code in codes]
    phrase = HTTPStatus(status).phrase
    example = {
        "title": phrase.lower(),
        "status": status,
        "detail": codes[0].means,
        "code": codes[0].code,
    }
    content = {"schema": {"$ref": _REFS.format(name="Problem")}, "example": example}
    return {"description": "\n".join([f"{phrase}.", "", *lines]), "content": {_PROBLEM: content}}


def _content(kind: Any, schemas: Mapping[str, dict[str, Any]], maker: _Maker) -> dict[str, Any]:
    """What a body of this type, or media type, is."""
    if isinstance(kind, str):
        text = {"schema": {"type": "string"}}
        return {kind: text if kind.startswith("text/") else {}} | ({"*/*": {}} if kind == OCTETS else {})
    schema = schemas[repr(kind)]
    return {_JSON: {"schema": _plain(schema), "example": maker.example(schema)}}


def _form() -> dict[str, Any]:
    """The body of a submission."""
    job = "The wishes: the keys of a job file as a JSON object, or the text of a job file (TOML)."
    files = (
        "The files. Without `inputs` among the wishes they are the inputs, in their order, the first being `{input}`."
    )
    properties = {
        "job": {"type": "string", "description": job},
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "description": files},
    }
    schema = {"type": "object", "properties": properties, "required": ["file"], "additionalProperties": False}
    return {"multipart/form-data": {"schema": schema}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    found = []
    for name in re.findall(r"\{(\w+)\}", path):
        says, schema = _IN_PATHS.get(name, ("", {"type": "string"}))
        schema = dict(schema)
        parameter = {"name": name, "in": "path", "required": True, "description": says, "schema": schema}
        if "example" in schema:
            parameter["example"] = schema.pop("example")
        found.append(parameter)
    return found


def _query_parameters(query: type[Struct]) -> list[dict[str, Any]]:
    fields = msgspec.structs.fields(query)
    named, components = msgspec.json.schema_components([field.type for field in fields], ref_template=_REFS)
    maker = _Maker(components)
    found = []
    for field, schema in zip(fields, named, strict=True):
        schema = _plain(maker.whole(schema))
        options = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
        if len(options) == 1:  # what may be left out is left out; there is no null in a query
            schema = options[0]
        if field.default is not NODEFAULT and field.default not in (None, ()):
            schema = schema | {"default": field.default}
        found.append({"name": field.encode_name, "in": "query", "required": field.required, "schema": schema})
    return found


def _header_parameters(way: Way[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": says, "schema": {"type": "string"}}
        for name, says in way.headers
    ]


def _tag(way: Way[Any]) -> str:
    """The subject of a route: the module that has it."""
    return str(way.handler.__module__).rpartition(".")[2]


def _operation_id(way: Way[Any], path: str) -> str:
    words = re.findall(r"\w+", path.removeprefix("/v1").replace(".", "_"))
    return way.method.lower() + "".join(word[0].upper() + word[1:] for word in words)


def _doc(kind: type) -> str:
    return cleandoc(kind.__doc__ or "").replace("``", "`")


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema with its descriptions in Markdown, and no titles: the name of a component says as much."""
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str):
            found[key] = value.replace("``", "`")
        elif isinstance(value, dict):
            found[key] = _plain(value)
        elif isinstance(value, list):
            found[key] = [_plain(each) if isinstance(each, dict) else each for each in value]
        elif key != "title":
            found[key] = value
    return found


class _Maker:
    """Makes examples that obey schemas; ``components`` are what those refer to."""

    def __init__(self, components: Mapping[str, dict[str, Any]]) -> None:
        self._components = components

    def whole(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The same schema with what it refers to in its place."""
        if "$ref" in schema:
            return self.whole(self._components[schema["$ref"].rpartition("/")[2]])
        found = dict(schema)
        if "anyOf" in found:
            found["anyOf"] = [self.whole(each) for each in found["anyOf"]]
        if isinstance(found.get("items"), dict):
            found["items"] = self.whole(found["items"])
        return found

    def example(self, schema: dict[str, Any], name: str = "") -> Any:
        """A value of this schema; ``name`` is the field that holds it."""
        if "$ref" in schema:
            return self.example(self._components[schema["$ref"].rpartition("/")[2]], name)
        if "anyOf" in schema:
            options = [each for each in schema["anyOf"] if each != {"type": "null"}]
            known = self._known(schema["anyOf"], name)
            return known[0] if known else self.example(options[0], name)
        known = self._known([schema], name)
        if known:
            return known[0]
        match schema:
            case {"const": value}:
                return value
            case {"enum": [first, *_]}:
                return first
            case {"type": "object"}:
                return self._object(schema)
            case {"type": "array", "prefixItems": items}:
                return [self.example(item, name) for item in items]
            case {"type": "array", "items": dict(items)}:
                return [self.example(items, name)]
            case {"type": "array"}:
                return []
            case {"type": "boolean"}:
                return False
            case {"type": "integer" | "number" as kind}:
                least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
                return max(1 if kind == "integer" else 1.5, least)
            case {"type": "string"}:
                return _TIME if name in _TIMES else name or "text"
            case _:
                return None

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        found = {name: self.example(each, name) for name, each in schema.get("properties", {}).items()}
        more = schema.get("additionalProperties")
        if isinstance(more, dict) and not found:
            found["orcaflex"] = self.example(more)
        return found

    def _known(self, options: list[dict[str, Any]], name: str) -> list[Any]:
        """What an example says for a field of this name, if one of these types holds that."""
        if name in _BY_NAME and any(_obeys(_BY_NAME[name], option) for option in options):
            return [_BY_NAME[name]]
        return []


_KINDS: Final = {str: "string", int: "integer", float: "number", dict: "object", type(None): "null"}


def _obeys(value: object, schema: Mapping[str, Any]) -> bool:
    """Whether a schema that refers to nothing takes this plain value."""
    if "enum" in schema:
        return value in schema["enum"]
    if schema.get("type") != _KINDS[type(value)] or "properties" in schema:
        return False
    each = schema.get("additionalProperties", {})
    return not isinstance(value, dict) or not each or all(_obeys(one, each) for one in value.values())
