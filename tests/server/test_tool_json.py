"""The scanner that finds the end of a JSON value, and values by their schema's types."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.tools.json_scanner import JsonScanner
from server.tools.typed_values import ALL_TYPES, MAX_DEPTH, ParameterTypes, TypedValue
from tests.support.tool_texts import every, pieces

TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(list('"\\{}[]:,\n\x00'))), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def scanned(text, size=10_000):
    """What the scanner passes on, how far it comes, and whether the value is complete."""
    scanner, out, at = JsonScanner(), [], 0
    for piece in pieces(text, every(text, size)):
        if scanner.is_open:
            at += scanner.scan(piece, 0, out.append)
    return "".join(out), at, scanner.is_complete


@settings(max_examples=300)
@given(JSON, st.sampled_from([None, 2]), st.booleans(), st.sampled_from(["}", "]", ",", " ", "\n", "x", "<", '"', ":"]))
def test_any_value_is_passed_on_as_it_is_up_to_its_end(value, indent, ensure_ascii, after):
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
    if isinstance(value, int | float | None) and after == "x":
        after = "}"
    for size in (1, 2, 1000):
        assert scanned(text + after + "more", size) == (text, len(text), True)


@settings(max_examples=300)
@given(st.text(st.sampled_from(list('{}[]",:\\ a1\n<u')), max_size=20))
@example('{"a\\\n": [1,], b: .5}')
def test_any_text_is_scanned_alike_in_any_pieces(text):
    whole = scanned(text)
    assert scanned(text, 1) == scanned(text, 3) == whole
    out, at, is_complete = whole
    if out == text[:at] and not is_complete:
        assert at < len(text) or scanned(text + "<")[1] >= at
    try:
        json.loads(text)
    except ValueError:
        return
    assert at == len(text.rstrip()) or text.strip("1a ") == ""


@pytest.mark.parametrize(
    ("text", "passed_on"),
    [
        ("{]", "{"),
        ("[}", "["),
        ('{"a" "b"}', '{"a" '),
        ('{"a": }', '{"a": '),
        ('{"a": 1 "b"}', '{"a": 1 '),
        ("[1 2]", "[1 "),
        ("[,]", "["),
        ("{,}", "{"),
        ("{\"a\": 'b'}", '{"a": '),
        ('{"a": <b>}', '{"a": '),
        ("[1, /*", "[1, "),
        ("}", ""),
        (":", ""),
    ],
)
def test_a_broken_value_is_passed_on_up_to_what_breaks_it(text, passed_on):
    for size in (1, 100):
        assert scanned(text, size) == (passed_on, len(passed_on), False)


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ('"a\nb"', '"a\\nb"'),
        ('"\t\x00"', '"\\t\\u0000"'),
        ('"\\d"', '"\\\\d"'),
        ('"\\\n"', '"\\\\\\n"'),
        ('"\\\\d\\""', '"\\\\d\\""'),
        ('{"a\n": "\\u00e9\\x"}', '{"a\\n": "\\u00e9\\\\x"}'),
    ],
)
def test_strings_are_escaped_where_json_wants_it(text, repaired):
    for size in (1, 2, 100):
        assert scanned(text, size) == (repaired, len(text), True)
    json.loads(repaired)


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "object"}, {"type": "null"}]}, {"object", "null"}),
        ({"oneOf": [{"type": "object"}, {"$ref": "#/$defs/n"}]}, {"object", "number"}),
        ({"allOf": [{"type": ["string", "null"]}, {"type": ["null", "array"]}]}, {"null"}),
        ({"$ref": "#/$defs/n"}, {"number"}),
        ({"$ref": "#/$defs/a~1b~0c"}, {"boolean"}),
        ({"enum": [1, "a", None]}, {"integer", "number", "string", "null"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"const": True}, {"boolean"}),
        ({"const": 1.5}, {"number"}),
        ({"type": "string", "enum": [1]}, {"string"}),  # of no type at all
        ({}, ALL_TYPES),
        (True, ALL_TYPES),
        (None, ALL_TYPES),
        ({"type": 5}, ALL_TYPES),
        ({"type": "float"}, ALL_TYPES),
        ({"type": [[], "null"]}, {"null"}),
        ({"anyOf": 3, "allOf": {}, "enum": "abc", "oneOf": []}, ALL_TYPES),
        ({"$ref": "#/nowhere/at/all"}, ALL_TYPES),
        ({"$ref": "https://example.com/s"}, ALL_TYPES),
        ({"$ref": "#/properties/x"}, ALL_TYPES),
        ({"anyOf": [{"$ref": "#/properties/x"}, {"type": "null"}]}, ALL_TYPES),
        ({"anyOf": [{"const": i} for i in range(5000)]}, ALL_TYPES),
    ],
)
def test_types_of_a_parameter(schema, types):
    root = {"properties": {"x": schema}, "$defs": {"n": {"type": "number"}, "a/b~c": {"type": "boolean"}}}
    assert ParameterTypes(root).of("x") == types


def test_a_deep_schema_is_any_type_and_not_an_error():
    schema = {"type": "null"}
    for _ in range(MAX_DEPTH + 10):
        schema = {"anyOf": [schema]}
    assert ParameterTypes({"properties": {"x": schema}}).of("x") == ALL_TYPES
    wide = {"anyOf": [{"$ref": "#/properties/x"}] * 10}
    assert ParameterTypes({"properties": {"x": wide}}).of("x") == ALL_TYPES


@pytest.mark.parametrize(
    "root", [None, {}, {"properties": []}, {"properties": {"y": {}}}, {"additionalProperties": False}]
)
def test_a_parameter_that_the_schema_does_not_know_is_a_string(root):
    assert ParameterTypes(root).of("x") == {"string"}


def test_other_parameters_may_have_a_schema_of_their_own():
    root = {"$ref": "#/$defs/all", "$defs": {"all": {"additionalProperties": {"type": "integer"}}}}
    assert ParameterTypes(root).of("x") == {"integer"}


@pytest.mark.parametrize(
    ("types", "text", "expected"),
    [
        (["string"], "12", '"12"'),
        (["string"], '"a"\n', '"\\"a\\"\\n"'),
        (["integer"], " 12\n", "12"),
        (["integer"], "12.0", "12.0"),
        (["integer"], "12.5", '"12.5"'),
        (["integer"], "1e999", '"1e999"'),
        (["number"], "-1.5e3", "-1.5e3"),
        (["number"], "+1", '"+1"'),
        (["number"], "Infinity", '"Infinity"'),
        (["boolean"], "True", "true"),
        (["boolean"], "FALSE", "false"),
        (["boolean"], "1", '"1"'),
        (["null"], "None", "null"),
        (["object"], '{"a": [1, 2]}', '{"a": [1, 2]}'),
        (["object"], "{'a': 1}", "\"{'a': 1}\""),
        (["object"], "[1]", '"[1]"'),
        (["array"], "[1]", "[1]"),
        (["integer"], '"12"', '"\\"12\\""'),
        (["string", "null"], "null", "null"),
        (["string", "null"], "nullify", '"nullify"'),
        (["string", "null"], "12", '"12"'),
        (["string", "integer"], "12", "12"),
        (["string", "integer"], "12 apples", '"12 apples"'),
        (["string", "integer"], "1" * 70, '"' + "1" * 70 + '"'),
        (["string", "integer"], "null", '"null"'),
        (["string", "object"], '{"a": 1}', '{"a": 1}'),
        (["string", "object"], '{"a": 1} b', '"{\\"a\\": 1} b"'),
        (["string", "object"], "[1]", '"[1]"'),
        (["string", "boolean"], "  true ", "true"),
        (["string", "boolean"], "truth", '"truth"'),
        (["string", "boolean"], " ", '" "'),
        (["string", "boolean"], "", '""'),
        (["integer"], "", '""'),
        (sorted(ALL_TYPES), '"a"', '"\\"a\\""'),
        (sorted(ALL_TYPES), "a", '"a"'),
    ],
)
def test_a_value_is_json_of_its_types_or_a_string(types, text, expected):
    for size in (1, 2, 3, 100):
        out = []
        value = TypedValue(frozenset(types), out.append)
        for piece in pieces(text, every(text, size)):
            value.feed(piece)
        value.end()
        assert "".join(out) == expected
    json.loads(expected)


@settings(max_examples=300)
@given(
    st.text(st.sampled_from(list('nulltreNO12-.{}[]"a ')), max_size=90),
    st.frozensets(st.sampled_from(sorted(ALL_TYPES))),
)
def test_a_value_does_not_depend_on_its_pieces(text, types):
    def read(size):
        out = []
        value = TypedValue(types or ALL_TYPES, out.append)
        for piece in pieces(text, every(text, size)):
            value.feed(piece)
        value.end()
        return "".join(out)

    whole = read(1000)
    assert read(1) == read(7) == whole
    assert (
        json.loads(whole) == text or whole == text.strip() or text.strip().lower() in ("true", "false", "null", "none")
    )
