"""From TOML tables to frozen records, with every fault found, not only the first.

Rules: the records' own types are the only description of what is allowed; from them come the conversion, the sentence
that says what is allowed, the JSON Schema for editors and the way back to TOML. A ``Rule`` on a type says how text
becomes a value (``"2h"`` -> 7200.0). Where a union of tagged records is allowed, the tag's key chooses one of them. A
fault never stops the reading: the field keeps its default, so that what hangs on it is still looked at. This module
knows no key of any file.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, Struct
from msgspec.structs import FieldInfo

from .tomltext import Path, line_of

T = TypeVar("T")

MOST_FAULTS: Final = 50
_SHOWN: Final = 60


class Rule(Struct, frozen=True, eq=False):
    """How a value is written: ``allowed`` names it for people, ``schema`` for editors.

    ``parse`` raises ``ValueError``, with a reason where one helps; ``show`` is its inverse.
    """

    allowed: str
    parse: Callable[[Any], Any]
    schema: dict[str, Any]
    show: Callable[[Any], Any] = lambda value: value

    def meta(self) -> Meta:
        """The rule as a type annotation."""
        return Meta(extra={"rule": self}, extra_json_schema={"x-rule": self.schema})


class Fault(Struct, frozen=True):
    """One thing wrong: where, and what. ``unknown_key`` tells a wrong name from a wrong value."""

    path: Path
    text: str
    unknown_key: bool = False


class Faults:
    """Collects faults. Past ``MOST_FAULTS`` they are only counted: a file of noise must not cost much."""

    def __init__(self) -> None:
        self.found: list[Fault] = []
        self.more = 0

    def add(self, path: Path, text: str) -> None:
        """Note what is wrong with the value at ``path``."""
        self._add(lambda: Fault(path, text))

    def add_unknown(self, path: Path, known: Iterable[str], *, noun: str = "key", hint: str = "") -> None:
        """Note a name that does not exist, with the nearest one that does."""
        self._add(lambda: Fault(path, f"no such {noun}{hint or suggestion(str(path[-1]), known)}", unknown_key=True))

    def _add(self, fault: Callable[[], Fault]) -> None:
        if len(self.found) < MOST_FAULTS:
            self.found.append(fault())
        else:
            self.more += 1

    def below(self, path: Path) -> bool:
        """Whether something is wrong at ``path`` or inside it, so that a closer look would only mislead."""
        return any(fault.path[: len(path)] == path for fault in self.found)

    def lines(self, located: dict[Path, int]) -> list[str]:
        """One line for each fault, in the order of the file: line, key path, what is wrong."""
        numbered = sorted(
            ((line_of(fault.path, located) or 0, fault) for fault in self.found), key=lambda pair: pair[0]
        )
        texts = []
        for line, fault in numbered:
            where = f"line {line}: " if line else ""
            texts.append(f"{where}{dotted(fault.path)}: {fault.text}" if fault.path else f"{where}{fault.text}")
        if self.more:
            texts.append(f"and {self.more} more")
        return texts


def read(kind: type[T], table: Mapping[str, Any], faults: Faults) -> T | None:
    """The record of class ``kind`` in ``table``, or ``None`` if a key it cannot do without is missing."""
    record = _read_record(kind, table, (), faults)
    return None if record is UNSET else record


def dotted(path: Path) -> str:
    """``solver.ccx.command[2]``, quoted where a name needs it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else show(part))
    return _cut(text, 3 * _SHOWN)


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean "timeout"?``, or the whole list where nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(name[:_SHOWN], known, 1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(known)}" if known else ""


def show(value: object) -> str:
    """A value as it would stand in the file, short and harmless to a terminal."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return _cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), _SHOWN)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else _cut(str(value), _SHOWN)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


_WORDS_SHOWN = 8
"""Words of a text that are shown as the list they should have been."""


def _read_value(kind: Any, value: Any, path: Path, faults: Faults) -> Any:
    """``value`` as ``kind``, or ``UNSET`` after noting why not."""
    rule = _rule(kind)
    if rule is not None:
        try:
            return rule.parse(value)
        except ValueError as error:
            reason = f" ({error})" if str(error) else ""
            faults.add(path, f"{show(value)} is not {rule.allowed}{reason}")
            return UNSET
    bare = _bare(kind)
    if _is_record(bare):
        return _read_record(bare, value, path, faults)
    origin = get_origin(bare)
    if origin in (Union, UnionType):
        tagged = _tagged(kind)
        return _read_tagged(kind, tagged, value, path, faults) if tagged else _read_choice(kind, value, path, faults)
    if origin is tuple and isinstance(value, list):
        return _read_list(kind, value, path, faults)
    if origin is dict and isinstance(value, dict):
        key_kind, value_kind = get_args(bare)
        for name in value:
            _read_value(key_kind, name, (*path, name), faults)
        values = {name: _read_value(value_kind, item, (*path, name), faults) for name, item in value.items()}
        return {name: item for name, item in values.items() if item is not UNSET}
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        words = value.split() if origin is tuple and isinstance(value, str) else []
        hint = f"; write [{', '.join(map(show, words))}]" if 0 < len(words) <= _WORDS_SHOWN else ""
        faults.add(path, f"{show(value)} is not {allowed(kind)}{hint}")
        return UNSET


def _read_record(kind: Any, table: Any, path: Path, faults: Faults) -> Any:
    if not isinstance(table, Mapping):
        faults.add(path, f"{show(table)} is not a table of keys")
        return UNSET
    known = {field.encode_name: field for field in _fields(kind)}
    for key in table:
        if key not in known:
            faults.add_unknown((*path, key), known, hint=_belongs_elsewhere(key, known.values()))
    return _record_of(kind, table, path, faults)


def _record_of(kind: Any, table: Mapping[str, Any], path: Path, faults: Faults, *, tell_missing: bool = True) -> Any:
    """The record in those keys of ``table`` that it knows."""
    values: dict[str, Any] = {}
    complete = True
    for field in _fields(kind):
        key = field.encode_name
        if key in table:
            value = _read_value(field.type, table[key], (*path, key), faults)
            if value is not UNSET:
                values[field.name] = value
        elif field.required and tell_missing:
            faults.add((*path, key), f"is missing; it must be {allowed(field.type)}")
        complete = complete and (field.name in values or not field.required)
    return kind(**values) if complete else UNSET


def _read_tagged(kind: Any, members: dict[str, Any], value: Any, path: Path, faults: Faults) -> Any:
    """That member of a union of tagged records whose tag the table names."""
    if not isinstance(value, Mapping):
        faults.add(path, f"{show(value)} is not {allowed(kind)}")
        return UNSET
    (tag_key,) = {member.__struct_config__.tag_field for member in members.values()}
    named = tag_key in value
    tag = value[tag_key] if named else next(iter(members))
    if not named and "tag_optional" not in _extra(kind):
        faults.add((*path, tag_key), f"is missing; it must be {_one_of(members)}")
        return UNSET
    if not isinstance(tag, str) or tag not in members:
        hint = suggestion(tag, members) if isinstance(tag, str) else ""
        near = hint if "did you mean" in hint else ""
        faults.add((*path, tag_key), f"{show(tag)} is not {_one_of(members)}{near}")
        return UNSET
    known = {tag_key: None, **{field.encode_name: field for field in _fields(members[tag])}}
    misplaced = False
    for key in value:
        if key not in known:
            owners = [name for name, member in members.items() if key in _keys(member)]
            hint = _key_of_others(key, tag_key, owners) or _belongs_elsewhere(key, filter(None, known.values()))
            faults.add_unknown((*path, key), known, hint=hint)
            misplaced = misplaced or bool(owners) or f'"{tag_key}"' in suggestion(key, known)
    # Where the tag was forgotten or misspelt, another record is meant, and nobody knows what that lacks.
    return _record_of(members[tag], value, path, faults, tell_missing=named or not misplaced)


def _key_of_others(key: str, tag_key: str, owners: Sequence[str]) -> str:
    return f"; {show(key)} is a key of {tag_key} = {' or '.join(map(show, owners))}" if owners else ""


def _belongs_elsewhere(key: str, known: Iterable[FieldInfo]) -> str:
    for field in known:
        bare = _bare(field.type)
        tables = get_args(bare) if get_origin(bare) in (Union, UnionType) else (field.type,)
        if any(_is_record(table) and key in _keys(table) for table in tables):
            return f'; it belongs in "{field.encode_name}"'
    return ""


def _read_choice(kind: Any, value: Any, path: Path, faults: Faults) -> Any:
    """The first member of a union that fits; ``None`` only says that the key may be left out."""
    members = [member for member in get_args(_bare(kind)) if member is not NoneType]
    if isinstance(value, dict):
        members = [member for member in members if _is_record(member)] or members
    if len(members) == 1:
        return _read_value(members[0], value, path, faults)
    for member in members:
        trial = Faults()
        result = _read_value(member, value, path, trial)
        if not trial.found:
            return result
    faults.add(path, f"{show(value)} is not {allowed(kind)}")
    return UNSET


def _read_list(kind: Any, items: list[Any], path: Path, faults: Faults) -> Any:
    (item_kind, _) = get_args(_bare(kind))
    seen: set[str] = set()
    results = []
    for at, item in enumerate(items):
        result = _read_value(item_kind, item, (*path, at), faults)
        if result is not UNSET:
            results.append(result)
        if "distinct" in _extra(kind) and repr(item) in seen:
            faults.add((*path, at), f"{show(item)} stands here twice")
        seen.add(repr(item))
    return tuple(results)


DISTINCT: Final = Meta(extra={"distinct": True}, extra_json_schema={"uniqueItems": True})
"""Marks a list that must not name anything twice."""

TAG_OPTIONAL: Final = Meta(extra={"tag_optional": True})
"""Marks a union of tagged records of which a table without the tag is the first."""


def advice(text: str) -> Meta:
    """What a person is told besides who left the key out, or wrote what is not allowed."""
    return Meta(extra={"advice": text})


def _extra(kind: Any) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    for meta in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        extra.update(getattr(meta, "extra", None) or {})
    return extra


def _rule(kind: Any) -> Rule | None:
    rule = _extra(kind).get("rule")
    return rule if isinstance(rule, Rule) else None


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


@cache
def _fields(record: type[Struct]) -> tuple[FieldInfo, ...]:
    return msgspec.structs.fields(record)


def _keys(record: Any) -> tuple[str, ...]:
    return tuple(field.encode_name for field in _fields(_bare(record)))


def _is_record(kind: Any) -> bool:
    """Whether it is a table of keys: a record with a rule of its own is written otherwise."""
    bare = _bare(kind)
    return isinstance(bare, type) and issubclass(bare, Struct) and _rule(kind) is None


def _tagged(kind: Any) -> dict[str, Any]:
    """The members of a union of tagged records by their tags; nothing for other types."""
    bare = _bare(kind)
    members = [member for member in get_args(bare) if member is not NoneType]
    if get_origin(bare) not in (Union, UnionType) or not all(map(_is_record, members)):
        return {}
    tags = {member.__struct_config__.tag: member for member in members}
    return {} if None in tags else tags


def _one_of(values: Iterable[object]) -> str:
    return f"one of {', '.join(map(show, values))}"


def allowed(kind: Any) -> str:
    """What a type allows, for people: ``a whole number from 1, or "auto"``."""
    text = _extra(kind).get("advice")
    return f"{_allowed(kind)}; {text}" if text else _allowed(kind)


def _allowed(kind: Any) -> str:
    rule = _rule(kind)
    if rule is not None:
        return rule.allowed
    bare = _bare(kind)
    origin = get_origin(bare)
    tagged = _tagged(kind)
    if tagged:
        (tag_key,) = {member.__struct_config__.tag_field for member in tagged.values()}
        *others, last = map(show, tagged)
        return f"a table of keys with {tag_key} = {', '.join(others)} or {last}"
    if origin in (Union, UnionType):
        members = [allowed(member) for member in get_args(bare) if member is not NoneType]
        return " or ".join(dict.fromkeys(members))
    if origin is Literal:
        values = get_args(bare)
        return show(values[0]) if len(values) == 1 else _one_of(values)
    if origin is tuple:
        return "a list"
    if origin is dict or _is_record(bare):
        return "a table of keys"
    if bare in (int, float):
        metas = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
        low = "".join(f" from {meta.ge}" for meta in metas if meta.ge is not None)
        high = "".join(f" to {meta.le}" for meta in metas if meta.le is not None)
        return f"a {'whole ' if bare is int else ''}number{low}{high}"
    return "true or false" if bare is bool else "a text"


def plain(record: Struct) -> dict[str, Any]:
    """A record as it would stand in the file: its keys and spellings; what is unset is left out."""
    kind = type(record)
    table = {field.encode_name: _plain(field.type, getattr(record, field.name)) for field in _fields(kind)}
    if kind.__struct_config__.tag is not None:
        table = {str(kind.__struct_config__.tag_field): kind.__struct_config__.tag, **table}
    return {key: value for key, value in table.items() if value is not None}


def _plain(kind: Any, value: Any) -> Any:
    bare = _bare(kind)
    if isinstance(value, Struct):
        own = next((_rule(member) for member in (kind, *get_args(bare)) if _bare(member) is type(value)), None)
        return plain(value) if own is None else own.show(value)
    if isinstance(value, tuple):
        return [_plain(get_args(bare)[0], item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(get_args(bare)[1], item) for name, item in value.items()}
    rules = [_rule(member) for member in (kind, *get_args(bare))]
    return next((rule.show(value) for rule in rules if rule and not isinstance(value, str | NoneType)), value)


def editor_schema(kind: type[Struct], title: str) -> dict[str, Any]:
    """The JSON Schema of a file read as ``kind``, for editors that complete and check TOML."""
    generated = msgspec.json.schema(kind)["$defs"]
    records = _records(kind)
    definitions = {record.__name__: _for_editor(generated[record.__name__]) for record in records}
    for record in records:
        definition = definitions[record.__name__]
        tag_key = record.__struct_config__.tag_field
        if tag_key is not None:
            definition["properties"][tag_key]["description"] = definition["description"]
        for field in _fields(record):
            default = None if field.default is NODEFAULT else _plain(field.type, field.default)
            if default is not None and not isinstance(default, dict):
                definition["properties"][field.encode_name]["default"] = default
    for record in _untagged(kind):
        tag_key = record.__struct_config__.tag_field
        definitions[record.__name__]["properties"][tag_key]["default"] = record.__struct_config__.tag
        definitions[record.__name__]["required"].remove(tag_key)
    top = definitions.pop(kind.__name__)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **top, "$defs": definitions}


def _records(kind: Any) -> list[Any]:
    """All records that a type is made of, each once, in the order in which they are met."""
    return list(dict.fromkeys(_bare(part) for part in _parts(kind) if _is_record(part)))


def _untagged(kind: Any) -> list[Any]:
    """The records that a table without a tag may be."""
    return [next(iter(_tagged(part).values())) for part in _parts(kind) if "tag_optional" in _extra(part)]


def _parts(kind: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield kind
    inner = [field.type for field in _fields(_bare(kind))] if _is_record(kind) else get_args(_bare(kind))
    for part in inner:
        yield from _parts(part)


def _for_editor(node: Any) -> Any:
    """Put the rules' spellings where the records have numbers, and drop ``null``, which TOML does not have."""
    if isinstance(node, list):
        return [_for_editor(item) for item in node]
    if not isinstance(node, dict):
        return node
    choices = [choice for choice in node.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        node = {**node, **choices[0]}
        del node["anyOf"]
    elif choices:
        node = {**node, "anyOf": choices}
    if "discriminator" in node:  # a word of OpenAPI, not of JSON Schema
        node = {("oneOf" if key == "anyOf" else key): item for key, item in node.items() if key != "discriminator"}
    if "x-rule" in node:
        node = {**{key: value for key, value in node.items() if key == "description"}, **node["x-rule"]}
    result = {key: _for_editor(value) for key, value in node.items() if key not in ("title", "default", "properties")}
    if "properties" in node:
        result["properties"] = {name: _for_editor(item) for name, item in node["properties"].items()}
    return result


def schema_text(schema: dict[str, Any]) -> str:
    """A schema as its file holds it; the same from every version of Python."""
    return json.dumps(_with_clean_text(schema), indent=2, ensure_ascii=False) + "\n"


def _with_clean_text(node: Any) -> Any:
    """From Python 3.13 on docstrings come without their indentation; make the others so."""
    if isinstance(node, dict):
        return {key: _with_clean_text(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_clean_text(item) for item in node]
    return cleandoc(node) if isinstance(node, str) else node
