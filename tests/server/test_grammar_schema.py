"""JSON schemas of clients: each is kept, with every output valid against it, or refused by the name of a word."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import random
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.grammar import Grammars
from server.grammar import keywords
from server.grammar.blame import blame
from server.grammar.child import Bytes, verdict
from server.grammar.forms import of_schema
from server.grammar.patterns import kept_patterns
from server.grammar.quantities import MAX_INT, NotKept, lower_bound, upper_bound
from server.grammar.schema import Walk, checked_schema
from tests.support.json_judges import Judge, Judges, exact
from tests.support.json_schema_words import DRAFT_7, listed, thing
from tests.support.json_schemas import Case, kept, refused
from tests.support.pattern_texts import PATTERN

EOS = 256
MERGES = (
    '{"', '":', '": ', '": "', '", "', '","', '"}', '},', "}]", "[{", "[]", "{}", "\n", "\n  ", "\n    ", "  ", "null",
    "true", "false", "10", "000", "12", ".5", "e1", "th", "ing", " the", "name", "kind", "a", "ab", "id", "é", "日本",
    "\\n", '\\"', "\\u", "0061", "-0", "2024-", "02-29", "T2", ":60", "@", ".com", "😀", "://",
)  # fmt: skip
TOKENS = [bytes([byte]) for byte in range(256)] + [b"<eos>"] + [merge.encode() for merge in MERGES]
FREE_TOKENS, MAX_TOKENS, NUM_WALKS = 30, 700, 6


class Words:
    """A vocabulary of all bytes and some words."""

    def token_bytes(self, token_id: int) -> bytes:
        return TOKENS[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id == EOS


@pytest.fixture(scope="module")
def grammars():
    made = Grammars(Words(), len(TOKENS), [EOS])
    yield made
    made.close()


def walked(grammars: Grammars, text: str, seed: int) -> str | None:
    """An output of tokens chosen at random, and after some of them so that it ends soon; None if it does not."""
    rng = random.Random(seed)
    grammar = grammars.open(text).result()
    hints = set(text.encode())
    out, in_text = b"", False
    for step in range(MAX_TOKENS):
        allowed = grammar.allowed(len(TOKENS))
        assert allowed is not None, grammar.failure
        ids = [token_id for token_id in range(len(TOKENS)) if token_id in allowed]
        assert ids, out
        if EOS in ids and (ids == [EOS] or step > FREE_TOKENS or rng.random() < 0.3):
            return out.decode()
        choices = [token_id for token_id in ids if token_id != EOS]
        token_id = rng.choice(choices) if step < FREE_TOKENS else ending(choices, in_text, hints, rng)
        grammar.accept(token_id)
        out += TOKENS[token_id]
        in_text ^= TOKENS[token_id].replace(b'\\"', b"").count(b'"') % 2 == 1 and not ends_in_escape(out, token_id)
        if grammar.is_complete:
            return out.decode()
    return None


def ends_in_escape(out: bytes, token_id: int) -> bool:
    """Whether the token is a quote that a backslash before it makes part of the text."""
    before = out[: -len(TOKENS[token_id])]
    return TOKENS[token_id] == b'"' and (len(before) - len(before.rstrip(b"\\"))) % 2 == 1


def ending(choices: list[int], in_text: bool, hints: set[int], rng: random.Random) -> int:
    """A token that ends what has been begun, if there is one; or one that is spoken of."""
    for byte in b'"' if in_text else b"}]":
        if byte in choices:
            return byte
    unwelcome = b"" if in_text else b"{[ \n\t"
    shallow = [each for each in choices if TOKENS[each][0] not in unwelcome] or choices
    spoken_of = [each for each in shallow if each in hints]
    return rng.choice(spoken_of if spoken_of and rng.random() < 0.9 else shallow)


@pytest.mark.parametrize("case", kept(), ids=lambda case: case.name)
def test_what_is_kept_gives_only_valid_outputs(case: Case, grammars: Grammars) -> None:
    given = copy.deepcopy(case.schema)
    text = of_schema(checked_schema(case.schema, "schema"))
    assert case.schema == given
    judges = Judges(case.schema)
    outputs = [walked(grammars, text, seed) for seed in range(NUM_WALKS)]
    complete = {output for output in outputs if output is not None}
    assert complete
    for output in complete:
        judges.validate(output)


@pytest.mark.parametrize("case", refused(), ids=lambda case: case.name)
def test_what_is_not_kept_is_refused_by_name(case: Case) -> None:
    param = f"schema.{case.refused}" if case.refused else "schema"
    if case.by_trial:
        said = verdict(library(), of_schema(checked_schema(case.schema, "schema")))
        assert said
        problem = blame(said, case.schema, "schema")
    else:
        with pytest.raises(InvalidRequest) as caught:
            checked_schema(case.schema, "schema")
        problem = caught.value
    assert problem.param == param
    assert str(problem).startswith(f"{param} ")
    assert str(problem)[-1] in ".?"


@functools.cache
def library() -> Any:
    from llguidance import LLTokenizer

    vocabulary: Any = Bytes()
    return LLTokenizer(vocabulary)


def accepts(schema: Any, text: str) -> bool:
    """Whether a text is one of the outputs for a schema."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(library(), of_schema(checked_schema(schema, "schema")), limits=LLParserLimits())
    assert not matcher.is_error(), matcher.get_error()
    data = text.encode()
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()


PERSON = thing({"name": {"type": "string"}, "tags": listed({"type": "integer"})})


@pytest.mark.parametrize("indent", [None, 2, 4, "\t"])
@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_json_may_be_written_as_people_write_it(indent: Any, separators: Any) -> None:
    value = {"name": 'é "\n日本', "tags": [1, -20]}
    assert accepts(PERSON, json.dumps(value, indent=indent, separators=separators, ensure_ascii=False))


def test_blanks_have_an_end() -> None:
    assert accepts(PERSON, '{\n%s"name": "", "tags": []}' % (" " * 32))
    assert not accepts(PERSON, '{\n%s"name": "", "tags": []}' % (" " * 33))
    assert not accepts(PERSON, '{\n\n"name": "", "tags": []}')
    assert accepts(PERSON, '{"name":%s"", "tags": []}' % (" " * 32))
    assert not accepts(PERSON, '{"name":%s"", "tags": []}' % (" " * 33))


def test_a_name_cannot_come_twice_in_disguise() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert accepts(schema, '{"a": 1, "b": "x"}')
    assert not accepts(schema, '{"a": 1, "a": "x"}')
    assert not accepts(schema, r'{"a": 1, "\u0061": "x"}')


@pytest.mark.parametrize(
    ("format_", "valid", "invalid"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "0000-01-01", "2023-04-31"]),
        ("time", ["23:59:59Z", "00:00:00.123+05:30"], ["23:59:60Z", "24:00:00Z", "12:00:00"]),
        ("date-time", ["2024-02-29T12:00:00Z"], ["2023-02-29T12:00:00Z", "2024-01-01 12:00:00Z"]),
        ("duration", ["P1Y2M3D", "PT5M", "P2W", "P1DT1H"], ["P", "PT", "P1S", "P1W1D"]),
        ("email", ["a.b+c@example.co.uk"], ["a@b..c", "@b.c", "a b@c.de", ".a@b.c", "a@-b.de"]),
        ("hostname", ["a-b.example"], ["a..b", "-a", "xn--zz", "a" * 64, ".".join(["abcdefgh"] * 29)]),
        ("uuid4", ["123e4567-e89b-42d3-a456-426614174000"], ["123e4567-e89b-12d3-a456-426614174000"]),
        ("byte", ["", "aGk=", "aGVsbG8="], ["aGk", "a===", "aGk=="]),
        ("uri-reference", ["", "../a?b#c", "/x/y", "http://a/b"], ["a b", "%zz", ":a"]),
        ("json-pointer", ["", "/a~1b/0"], ["a", "/~2"]),
        ("ipvanyaddress", ["127.0.0.1", "::1"], ["256.0.0.1", ":::"]),
    ],
)
def test_formats(format_: str, valid: list[str], invalid: list[str]) -> None:
    schema = {"type": "string", "format": format_}
    assert [text for text in valid if not accepts(schema, json.dumps(text))] == []
    assert [text for text in invalid if accepts(schema, json.dumps(text))] == []


@pytest.mark.parametrize(
    ("pattern", "valid", "invalid"),
    [
        (r"^.$", ["a", "é"], ["\n", "\r", "\u2028"]),
        (r"^\s$", [" ", "\u00a0", "\n"], ["\u0085", "a"]),
        (r"^\S$", ["a"], [" ", "\u0085", "\ufeff"]),
        (r"^[^\s]$", ["a"], [" ", "\u0085", "\ufeff"]),
        (r"^\d\w$", ["1_", "9z"], ["\u0663a", "1é"]),
        (r"^[\s\S]$", ["\n", "a", "\u2028"], [""]),
        (r"^[[a]b]$", ["[b]", "ab]"], ["a", "b"]),
        (r"^[a&&b]$", ["a", "&", "b"], ["c"]),
        (r"^\<$", ["<"], [""]),
        (r"^(?=.*\d)(?=.*[A-Z])[A-Z\d]{3}$", ["A1B", "99Z"], ["ABC", "123", "a1B"]),
        (r"^(?!\s*$).+$", ["a", " a"], ["", "  "]),
        (r"^(?!.*--)[a-]+$", ["a-a", "-a-"], ["a--a", "--"]),
        (r"^(?!a)\w+$", ["ba"], ["ab"]),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", ["-1.5", "+0", "3."], ["", "-", "+."]),
        (r"^(?:a|b$)", ["ax", "b"], ["bx"]),
        (r'^[^"]$', ["a", "\\", "\n"], ['"']),
        (r"^[^\\]$", ["a", '"', "\t"], ["\\"]),
        (r'^"[^"\\]*"$', ['"a"', '""'], ['"""', '"\\"', '"\\""']),
        (r"^[\x00-!]$", ["\n", "!", " "], ['"', "\\"]),
        (r"^\P{P}\P{P}$", ["ab", "1 "], ['a"', "\\b"]),
        (r"^[\p{Cc}x]$", ["\n", "x"], ['"', "\\"]),
        (r"^a|b$", ["ax", "xb"], ["bx", "xa"]),
    ],
)
def test_patterns_mean_what_ecma_262_says(pattern: str, valid: list[str], invalid: list[str]) -> None:
    schema = {"type": "string", "pattern": pattern}
    write = functools.partial(json.dumps, ensure_ascii=False)
    assert [text for text in valid if not accepts(schema, write(text))] == []
    assert [text for text in invalid if accepts(schema, write(text))] == []


@settings(max_examples=150, derandomize=True, deadline=None)
@given(PATTERN, st.booleans(), st.booleans(), st.lists(st.text("ab1_.-][ \n", max_size=5), min_size=8, max_size=8))
def test_a_pattern_matches_what_it_matches_elsewhere(
    both: tuple[str, str], begins: bool, ends: bool, texts: list[str]
) -> None:
    ours = f"{'^' * begins}(?:{both[0]}){'$' * ends}"
    theirs = re.compile(f"{'^' * begins}(?:{both[1]})" + r"\Z" * ends)
    schema = {"type": "string", "pattern": ours}
    for text in texts:
        assert accepts(schema, json.dumps(text)) == bool(theirs.search(text)), (ours, text)


@settings(max_examples=500, derandomize=True)
@given(st.text(r"()[]{}?=!<>:^$|*+.\-,&~abdswDSWkuxp01Z ", max_size=24))
def test_a_pattern_is_read_or_refused(pattern: str) -> None:
    with contextlib.suppress(NotKept):
        for each in kept_patterns(pattern):
            assert isinstance(each, str)


@settings(max_examples=500, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70))
def test_bounds_move_inwards(value: float) -> None:
    exact_value = Fraction(value)
    if value >= -MAX_INT:
        assert Fraction(upper_bound(value)) <= exact_value
    if value <= MAX_INT:
        assert Fraction(lower_bound(value)) >= exact_value
    if abs(value) < 2**53 and len(Decimal(repr(value)).as_tuple().digits) <= 15 and abs(value) > 1e-3:
        assert lower_bound(value) == value == upper_bound(value)


BOUNDS = (-10.5, -1.5, -1, -0.5, 0, 0.1, 0.5, 1, 1.5, 10)
ENDS = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


@pytest.mark.parametrize("words", list(itertools.product(*ENDS)), ids=" ".join)
@pytest.mark.parametrize("type_", ["number", "integer"])
def test_bounds_are_kept_to_the_last_digit(type_: str, words: tuple[str, str]) -> None:
    for low, high in itertools.product((None, *BOUNDS), repeat=2):
        bounds = {word: bound for word, bound in zip(words, (low, high), strict=True) if bound is not None}
        judge = Judge({"type": type_, **exact(bounds)})
        steps = ("0", "0.01", "-0.01", "0.5", "-1", "1", "0.00")
        values = {Decimal(str(bound)) + Decimal(step) for bound in (0, *bounds.values()) for step in steps}
        if type_ == "integer":
            values = {value for value in values if "." not in str(value)}
        valid = {value for value in values if judge.is_valid(whole(value))}
        if valid:
            assert {value for value in values if accepts({"type": type_, **bounds}, f"{value}")} == valid, bounds


def whole(value: Decimal) -> Any:
    return int(value) if value == int(value) else value


VALUES = st.sampled_from(
    [
        None, True, False, 0, -1, 3, 2.5, 1e300, "", "a", "string", "object", "#", "#/$defs/a", "^a+$", "date",
        [], {}, [{}], ["a"], ["string", "null"], {"a": {}}, {"a": {"$ref": "#"}}, [{"const": 1}, {"type": "null"}],
        {"propertyName": "a"},
    ]
)  # fmt: skip
SCHEMAS = st.recursive(
    VALUES,
    lambda inner: st.dictionaries(
        st.sampled_from(sorted(keywords.KEPT | {"$defs", "$id", "$anchor"})), inner, max_size=4
    )
    | st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=1000, derandomize=True)
@given(SCHEMAS)
def test_any_json_is_kept_or_refused(schema: Any) -> None:
    given_ = copy.deepcopy(schema)
    try:
        kept_schema = checked_schema(schema, "schema")
    except InvalidRequest as problem:
        param = problem.param
    else:
        param = "schema"
        if said := verdict(library(), of_schema(kept_schema)):
            param = blame(said, schema, "schema").param
    assert (param or "").startswith("schema")
    assert schema == given_


def doubling(word: str, levels: int) -> dict[str, Any]:
    """Each definition refers to the next one twice."""
    definitions: dict[str, Any] = {
        f"d{i}": {word: [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "string"}}}


@pytest.mark.parametrize("word", ["anyOf", "allOf"])
def test_definitions_are_looked_at_once(word: str) -> None:
    small, large = Walk(doubling(word, 100), "schema"), Walk(doubling(word, 200), "schema")
    small.result(), large.result()
    assert len(large.found) < 2.1 * len(small.found)


def test_branches_are_looked_at_once() -> None:
    with pytest.raises(InvalidRequest, match="exclude each other"):
        checked_schema(doubling("oneOf", 60), "schema")


def test_pointers_into_one_another_are_bounded() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(20):
        schema = {"properties": {"a": schema}}
    pointers = [{"$ref": "#/$defs/x" + "/properties/a" * i} for i in range(20)]
    walk = Walk({"$defs": {"x": schema}, "anyOf": pointers}, "schema")
    walk.result()
    assert len(walk.found) < 20 * 25 * 2


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a", ".a"),
        ("a b", '["a b"]'),
        ("x.y", '["x.y"]'),
        ("\n", '["\\n"]'),
        ("é", ".é"),
        ("n" * 70, f'["{"n" * 64}"]'),
    ],
)
def test_paths_are_written_for_people(name: str, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked_schema({"properties": {name: {"not": {}}}}, "tools[0].function.parameters")
    assert caught.value.param == f"tools[0].function.parameters.properties{path}.not"


def test_a_draft_may_be_named_in_each_way_that_people_do() -> None:
    for name in (DRAFT_7, DRAFT_7.rstrip("#"), DRAFT_7.replace("http:", "https:")):
        assert checked_schema({"$schema": name, "type": "string"}, "schema") == {"type": "string"}


def test_remarks_are_dropped() -> None:
    remarks = {"title": "t", "description": "d", "default": {"not": 1}, "x-mine": 1, "examples": [{"not": 1}]}
    assert checked_schema({"type": "string", **remarks}, "schema") == {"type": "string"}


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ("at 2(8): something new", "schema"),
        ("required property 'b' is unsatisfiable", "schema.properties.x.required"),
        ("regex parse error:\n    ^b/c$\n    ^ why", "schema.properties.x.properties.b.pattern"),
        ("patternProperty regexes /^x/ and /^xy/ are not disjoint", "schema.patternProperties[\"^x\"]"),
    ],
)  # fmt: skip
def test_the_word_at_fault_is_found(said: str, param: str) -> None:
    inner = thing({"a": {"type": "string", "pattern": "^a$"}, "b": {"type": "string", "pattern": "^b/c$"}})
    schema = {"properties": {"y": thing({"c": {}}), "x": inner}, "patternProperties": {"^z": {}, "^x": {}}}
    assert blame(said, schema, "schema").param == param
