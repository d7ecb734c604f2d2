"""The subset of JSON Schema: each keyword by hand, what is outside of it refused, and no value that brings it down."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneful.evaluation.json_schema import KEYWORDS, check_schema, json_equal, read_json, violation

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": {"required": ["v"], "properties": {"next": {"$ref": "#/$defs/node"}}}},
}

CASES: list[tuple[Any, list[Any], list[Any]]] = [
    # schema, valid, not valid
    (True, [1, None], []),
    (False, [], [1, None]),
    ({"type": "integer"}, [1, 1.0, -3, 10**400], [1.5, True, "1", None]),
    ({"type": "number"}, [1, 1.5], [False, "1"]),
    ({"type": ["null", "boolean"]}, [None, True], [0, "", []]),
    ({"type": "object"}, [{}], [[]]),
    ({"type": "array"}, [[]], [{}]),
    ({"type": "string"}, [""], [1]),
    ({"enum": [1, "a", None]}, [1, 1.0, "a", None], [True, "b", 2]),
    ({"const": {"a": [1]}}, [{"a": [1.0]}], [{"a": [True]}, {"a": [1], "b": 2}]),
    ({"required": ["a"]}, [{"a": None}, "no object"], [{}]),
    ({"properties": {"a": {"type": "string"}}}, [{"a": "x"}, {"b": 1}], [{"a": 1}]),
    ({"properties": {"a": True}, "additionalProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
    ({"additionalProperties": {"type": "number"}}, [{"b": 1}], [{"b": "1"}]),
    ({"minProperties": 1, "maxProperties": 2}, [{"a": 1}], [{}, {"a": 1, "b": 1, "c": 1}]),
    ({"items": {"type": "number"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], ["a"], [1, 2, 3]]),
    ({"prefixItems": [{"type": "string"}], "items": False}, [[], ["a"]], [[1], ["a", 1]]),
    ({"uniqueItems": True}, [[1, "1", True]], [[1, 1.0], [{"a": 1}, {"a": 1}]]),
    ({"minLength": 2, "maxLength": 3}, ["ab", "日本語"], ["a", "abcd"]),
    ({"pattern": "^a"}, ["ab", 3], ["ba"]),
    ({"minimum": 1, "maximum": 2}, [1, 2, "x"], [0.9, 2.1]),
    ({"exclusiveMinimum": 1, "exclusiveMaximum": 2}, [1.5], [1, 2]),
    ({"multipleOf": 0.01}, [1.37, 0, 19.99], [0.005]),
    ({"multipleOf": 3}, [9, 9.0], [10]),
    ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1], [3]),
    ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["a", 6], [1]),
    ({"oneOf": [{"minimum": 5}, {"multipleOf": 2}]}, [7, 2], [6, 1]),
    ({"not": {"type": "null"}}, [1], [None]),
    (TREE, [{"v": 1}, {"v": 1, "next": {"v": 2}}], [{"v": 1, "next": {}}]),
    ({"title": "t", "format": "date", "default": 1}, ["no date"], []),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=lambda one: json.dumps(one)[:40])
def test_a_keyword_lets_through_what_it_says(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    check_schema(schema)
    for value in valid:
        assert violation(value, schema) is None, value
    for value in invalid:
        assert violation(value, schema), value


def test_every_keyword_is_tried_here() -> None:
    used = json.dumps([schema for schema, _, _ in CASES])
    assert [keyword for keyword in KEYWORDS if f'"{keyword}"' not in used] == ["definitions"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"patternProperties": {}}, "schema: patternProperties: not among the keywords that are obeyed: type, enum,"),
        ({"properties": {"a": {"typ": 1}}}, "schema.properties.a: typ: not among"),
        ({"type": "float"}, "schema.type: 'float' is no type; there are null, boolean,"),
        ({"type": 3}, "schema.type: 3 is no type"),
        ({"enum": 3}, "schema.enum: expected a list of values"),
        ({"required": "a"}, "schema.required: expected a list of keys"),
        ({"minLength": -1}, "schema.minLength: -1 is no such number"),
        ({"multipleOf": 0}, "schema.multipleOf: 0 is no such number"),
        ({"minimum": True}, "schema.minimum: True is no such number"),
        ({"pattern": "("}, "schema.pattern: no regular expression"),
        ({"pattern": 3}, "schema.pattern: no regular expression"),
        ({"anyOf": []}, "schema.anyOf: expected a list of schemas"),
        ({"properties": []}, "schema.properties: expected an object of schemas"),
        ({"items": [1]}, "schema.items: expected an object, or true or false"),
        ({"$ref": "http://x"}, "$ref: 'http://x': expected a place in the schema itself"),
        ({"$ref": "#/$defs/a"}, "$ref: '#/$defs/a' points to nothing"),
        ({"enum": [1], "$ref": "#/enum"}, "$ref: '#/enum' points to no schema"),
        (3, "schema: expected an object, or true or false"),
    ],
)
def test_a_schema_outside_the_subset_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        check_schema(schema)
    assert message in str(refused.value)


def test_the_first_fault_is_named_with_its_place() -> None:
    schema = {"properties": {"list": {"items": {"required": ["a"]}}}}
    assert violation({"list": [{"a": 1}, {}]}, schema) == 'list[1]: the key "a" is missing'
    assert violation({"a": {}}, {"additionalProperties": {"minProperties": 1}}) == "a: has 0 keys, expected at least 1"


def test_a_schema_that_points_to_itself_and_values_without_end_are_no_more_than_not_valid() -> None:
    check_schema({"$ref": "#"})
    assert violation(1, {"$ref": "#"}) == "is nested too deeply"
    deep: Any = {}
    for _ in range(5000):
        deep = {"next": deep, "v": 1}
    assert "is nested too deeply" in (violation(deep, TREE) or "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_a_value_is_equal_to_itself_written_and_read_and_no_schema_brings_it_down(value: Any) -> None:
    if "Infinity" not in (text := json.dumps(value)):
        assert json_equal(read_json(text), value)
    for schema, _, _ in CASES:
        assert violation(value, schema) is None or isinstance(violation(value, schema), str)


def test_equality_is_jsons_and_not_pythons() -> None:
    assert json_equal({"a": 1, "b": [2.0]}, {"b": [2], "a": 1.0})
    assert not json_equal([True], [1])
    assert not json_equal(0, False)
    assert not json_equal("1", 1)
    assert not json_equal(None, 0)
