"""JSON as a check reads it: strict text, equality without Python's surprises, and a subset of JSON Schema (2020-12).

    read_json("[1, NaN]")        ValueError: JSON knows no NaN
    violation(value, schema)     "price: is text, expected number"; None where the value is valid

The subset is what a person writes for the output of a model: `KEYWORDS`. A schema that uses any other keyword is refused, because
a keyword that is passed over lets through what it was written against. `$ref` points into the schema itself (`#/$defs/NAME`).
Patterns are Python's `re`, searched; `format` is a remark, as the specification has it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuneful.evaluation.bounded_search import Search
from tuneful.numbers import plural

KEYWORDS = (
    "type", "enum", "const", "properties", "required", "additionalProperties", "minProperties", "maxProperties",
    "items", "prefixItems", "minItems", "maxItems", "uniqueItems", "minLength", "maxLength", "pattern", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "allOf", "anyOf", "oneOf", "not", "$ref", "$defs", "definitions",
)  # fmt: skip
REMARKS = ("$schema", "$id", "$comment", "title", "description", "default", "examples", "format", "deprecated")
TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength")
_LISTS, _MAPPINGS = ("allOf", "anyOf", "oneOf", "prefixItems"), ("properties", "$defs", "definitions")
_SCHEMAS = ("additionalProperties", "items", "not")
_MAX_DEPTH = 100
_MAX_SHOWN = 40


def read_json(text: str) -> Any:
    """The value that `text` is; ValueError says what is no JSON in it. NaN and a key that stands twice are none."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}: line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def json_equal(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 is 1.0, but true is not 1; the order of keys says nothing."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(json_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(json_equal, one, other))
    return type_of(one) == type_of(other) and bool(one == other)


def type_of(value: Any) -> str:
    """The JSON type of a value; whole numbers are numbers here."""
    kinds = ((type(None), "null"), (bool, "boolean"), (dict, "object"), (list, "array"), (str, "string"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "number")


def check_schema(schema: Any) -> None:
    """ValueError where `schema` uses what is not of the subset, or says nothing that can be obeyed."""
    _check(schema, "schema", schema)


def _unbounded(pattern: str, text: str, how: str = "") -> bool:
    return re.search(pattern, text) is not None


def violation(value: Any, schema: Any, search: Search = _unbounded) -> str | None:
    """The first place where `value` is not what a checked `schema` says, in words; None where it is valid.

    `search` finds patterns, and what it raises is raised; without one they are searched as long as it takes.
    """
    try:
        return next(_violations(value, schema, _Root(schema, search), "", 0), None)
    except RecursionError:
        return "is nested too deeply"


# A schema is read


def _check(schema: Any, where: str, root: Any) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError(f"{where}: expected an object, or true or false")
    unknown = [str(key) for key in schema if key not in KEYWORDS and key not in REMARKS]
    if unknown:
        raise ValueError(
            f"{where}: {', '.join(unknown)}: not among the keywords that are obeyed: {', '.join(KEYWORDS)}"
        )
    _check_leaves(schema, where)
    if "$ref" in schema:
        _resolved(schema["$ref"], root)
    for key in _SCHEMAS:
        if key in schema:
            _check(schema[key], f"{where}.{key}", root)
    for key in _LISTS:
        if key in schema:
            if not isinstance(schema[key], list) or not schema[key]:
                raise ValueError(f"{where}.{key}: expected a list of schemas")
            for index, one in enumerate(schema[key]):
                _check(one, f"{where}.{key}[{index}]", root)
    for key in _MAPPINGS:
        if key in schema:
            if not isinstance(schema[key], dict):
                raise ValueError(f"{where}.{key}: expected an object of schemas")
            for name, one in schema[key].items():
                _check(one, f"{where}.{key}.{name}", root)


def _check_leaves(schema: Mapping[str, Any], where: str) -> None:
    """The keywords whose value is no schema."""
    types = schema.get("type", [])
    for name in [types] if isinstance(types, str) else types if isinstance(types, list) else [types]:
        if name not in TYPES:
            raise ValueError(f"{where}.type: {name!r} is no type; there are {', '.join(TYPES)}")
    if not isinstance(schema.get("enum", []), list):
        raise ValueError(f"{where}.enum: expected a list of values")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        raise ValueError(f"{where}.required: expected a list of keys")
    if not isinstance(schema.get("uniqueItems", False), bool):
        raise ValueError(f"{where}.uniqueItems: expected true or false")
    for key in (*_BOUNDS, *_COUNTS):
        value = schema.get(key, 1)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if (
            not is_number
            or (key in _COUNTS and (value < 0 or value != int(value)))
            or (key == "multipleOf" and value <= 0)
        ):
            raise ValueError(f"{where}.{key}: {value!r} is no such number")
    try:
        re.compile(schema.get("pattern", ""))
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}.pattern: no regular expression: {error}") from None


def _resolved(reference: Any, root: Any) -> Any:
    """What `$ref` points to; ValueError where that is nowhere in the schema."""
    found = root
    parts = reference.split("/") if isinstance(reference, str) else [""]
    if parts[0] != "#":
        raise ValueError(f"$ref: {reference!r}: expected a place in the schema itself, such as #/$defs/NAME")
    for part in parts[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise ValueError(f"$ref: {reference!r} points to nothing")
    if not isinstance(found, (dict, bool)):
        raise ValueError(f"$ref: {reference!r} points to no schema")
    return found


# A value is held against it


@dataclass(frozen=True, slots=True)
class _Root:
    """The whole schema, in which `$ref` points somewhere, and what finds its patterns."""

    schema: Any
    search: Search


def _violations(value: Any, schema: Any, root: _Root, where: str, depth: int) -> Iterator[str]:
    at = f"{where}: " if where else ""
    if depth > _MAX_DEPTH:
        yield f"{at}is nested too deeply"
        return
    if isinstance(schema, bool):
        if not schema:
            yield f"{at}must not be there"
        return
    if "$ref" in schema:
        yield from _violations(value, _resolved(schema["$ref"], root.schema), root, where, depth + 1)
    yield from (at + said for said in _wrong_value(value, schema))
    if isinstance(value, str):
        yield from (at + said for said in _wrong_text(value, schema, root.search))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from (at + said for said in _wrong_number(value, schema))
    elif isinstance(value, list):
        yield from _wrong_list(value, schema, root, where, depth)
    elif isinstance(value, dict):
        yield from _wrong_object(value, schema, root, where, depth)
    yield from _wrong_combination(value, schema, root, where, depth)


def _wrong_value(value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    if "type" in schema:
        types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_is_of(value, name) for name in types):
            yield f"is {type_of(value)}, expected {' or '.join(types)}"
    if "enum" in schema and not any(json_equal(value, one) for one in schema["enum"]):
        yield f"{_shown(value)} is none of {_shown(schema['enum'])}"
    if "const" in schema and not json_equal(value, schema["const"]):
        yield f"{_shown(value)} is not {_shown(schema['const'])}"


def _is_of(value: Any, name: str) -> bool:
    if name == "integer":
        return type_of(value) == "number" and (isinstance(value, int) or value.is_integer())
    return type_of(value) == name


def _wrong_text(value: str, schema: Mapping[str, Any], search: Search) -> Iterator[str]:
    yield from _wrong_count(len(value), "character", schema, "Length")
    if "pattern" in schema and not search(schema["pattern"], value):
        yield f"does not match {schema['pattern']}"


def _wrong_number(value: float, schema: Mapping[str, Any]) -> Iterator[str]:
    if value < schema.get("minimum", value):
        yield f"{value} is below {schema['minimum']}"
    if value > schema.get("maximum", value):
        yield f"{value} is above {schema['maximum']}"
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        yield f"{value} is not above {schema['exclusiveMinimum']}"
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        yield f"{value} is not below {schema['exclusiveMaximum']}"
    if "multipleOf" in schema and not _is_multiple(value, schema["multipleOf"]):
        yield f"{value} is no multiple of {schema['multipleOf']}"


def _is_multiple(value: float, step: float) -> bool:
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    try:
        times = value / step
    except OverflowError:
        return False
    return math.isfinite(times) and abs(times - round(times)) <= 1e-9 * max(1.0, abs(times))


def _wrong_count(number: int, what: str, schema: Mapping[str, Any], ending: str) -> Iterator[str]:
    low, high = schema.get(f"min{ending}", 0), schema.get(f"max{ending}", number)
    if not low <= number <= high:
        wanted = f"at least {low}" if number < low else f"at most {high}"
        yield f"has {plural(number, what)}, expected {wanted}"


def _wrong_list(value: list[Any], schema: Mapping[str, Any], root: _Root, where: str, depth: int) -> Iterator[str]:
    at = f"{where}: " if where else ""
    yield from (at + said for said in _wrong_count(len(value), "item", schema, "Items"))
    if schema.get("uniqueItems") and any(
        json_equal(one, other) for index, one in enumerate(value) for other in value[:index]
    ):
        yield f"{at}holds an item twice"
    first = schema.get("prefixItems", [])
    for index, one in enumerate(value):
        own = first[index] if index < len(first) else schema.get("items", True)
        yield from _violations(one, own, root, f"{where}[{index}]", depth + 1)


def _wrong_object(
    value: dict[str, Any], schema: Mapping[str, Any], root: _Root, where: str, depth: int
) -> Iterator[str]:
    at = f"{where}: " if where else ""
    for key in schema.get("required", []):
        if key not in value:
            yield f"{at}the key {_shown(key)} is missing"
    yield from (at + said for said in _wrong_count(len(value), "key", schema, "Properties"))
    known = schema.get("properties", {})
    for key, one in value.items():
        own = known[key] if key in known else schema.get("additionalProperties", True)
        inner = f"{where}.{key}" if where else key
        yield from _violations(one, own, root, inner[-200:], depth + 1)


def _wrong_combination(value: Any, schema: Mapping[str, Any], root: _Root, where: str, depth: int) -> Iterator[str]:
    at = f"{where}: " if where else ""

    def found(one: Any) -> str | None:
        return next(_violations(value, one, root, where, depth + 1), None)

    for one in schema.get("allOf", []):
        if (said := found(one)) is not None:
            yield said
    if "anyOf" in schema and all(found(one) is not None for one in schema["anyOf"]):
        yield f"{at}is none of what anyOf allows"
    if "oneOf" in schema and (num := sum(found(one) is None for one in schema["oneOf"])) != 1:
        yield f"{at}is {num} of what oneOf allows, expected 1"
    if "not" in schema and found(schema["not"]) is None:
        yield f"{at}is what it must not be"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON knows no {name}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {_shown(key)} stands twice")
        found[key] = value
    return found
