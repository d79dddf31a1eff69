"""Calls of every family: read as they are written, the same however the text is cut, at once, and in linear time."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.tools.call_reader import CallReader
from server.tools.families import FAMILIES, parser
from server.tools.named_calls import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, TOOL_SEP
from server.tools.source import WHITESPACE
from tests.support.tool_texts import STYLES, TOOLS, added_up, deltas, every, parsed, written

PROSE = st.text(st.sampled_from("ab é\n\t:.😀'(§"), max_size=8)
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(list('"\\{}[]<>/\n\t, ;`'))), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
VALUES = {
    "text": TEXT,
    "count": st.integers(),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "deep": OBJECT,
    "list": st.lists(JSON, max_size=3),
    "flag": st.booleans(),
    "maybe": st.none() | TEXT.filter(lambda text: text.strip(WHITESPACE).lower() not in ("null", "none")),
    "either": st.none() | OBJECT,
}
ARGUMENTS = st.fixed_dictionaries({}, optional=VALUES)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "get_weather"]), ARGUMENTS), min_size=1, max_size=3)

FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "<function=f>", "<function=", "</function>", "<parameter=text>", "<parameter="),
    *("</parameter>", "<parameter=count>", "\n</parameter>", "<arg_key>", "text</arg_key>", "<arg_value>"),
    *("</arg_value>", "<seed:tool_call>", "</seed:tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    *(CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, TOOL_SEP, "function", "```json\n", "\n```", "f", "\n", " ", "; "),
    *(
        '{"name": "f"',
        '"name": "f"',
        '{"name": "',
        '"arguments": ',
        '"parameters": {',
        '"text": "',
        '{"type": "function"',
    ),
    *("{", "}", "[", "]", '"', "\\", ",", "null", "12", "{}", "}}", "<", "</", "é😀"),
)


def broken_off(text):
    return st.integers(0, len(text)).map(lambda end: text[:end])


def answers(family):
    """Valid calls, calls that end early, prose, and all kinds of markup where it should not be."""
    calls = st.builds(
        lambda calls, style: written(family, calls, style=style), CALLS, st.integers(0, STYLES[family] - 1)
    )
    part = st.one_of(calls, calls.flatmap(broken_off), st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), TEXT)
    return st.lists(part, max_size=8).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_deltas_of_every_cut_add_up_to_the_parse_of_the_whole(family):
    @settings(max_examples=150, deadline=None)
    @given(answers(family), st.lists(st.integers(0, 300), max_size=12))
    def check(text, cuts):
        whole = parsed(family, text)
        assert parsed(family, text, cuts) == whole
        assert parsed(family, text, every(text, 1)) == whole

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_read_as_they_are_written(family):
    @settings(max_examples=150, deadline=None)
    @given(PROSE, CALLS, PROSE, st.integers(0, STYLES[family] - 1), st.integers(1, 40))
    def check(before, calls, after, style, size):
        if family == "seed_oss":  # where a newline at a value's beginning is taken for the format's
            calls = [
                (name, {k: v.lstrip("\n") if isinstance(v, str) else v for k, v in a.items()}) for name, a in calls
            ]
        text = before + written(family, calls, style=style) + after
        content, got = parsed(family, text, every(text, size))
        assert [(name, json.loads(arguments)) for name, arguments in got] == calls
        before, after = before if before.strip(WHITESPACE) else "", after if after.strip(WHITESPACE) else ""
        expected = before + after if before else after.lstrip(WHITESPACE)
        assert content == (expected if after else expected.rstrip(WHITESPACE))

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_no_call_in_it_is_content_character_by_character(family):
    certain = ("f", '{"name": "f"', '"name": "f"', '{"name": "', "<function=f>", '"')
    fragments = st.sampled_from([fragment for fragment in FRAGMENTS if fragment not in certain])
    prose = st.text(st.characters(codec="utf-8", exclude_categories=["L", "N", "P", "S"]), max_size=4)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.one_of(fragments, prose), max_size=12).map(" § ".join), st.integers(1, 9))
    def check(text, size):
        assert parsed(family, text, every(text, size)) == (text, [])

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_lost_wherever_a_call_breaks(family):
    """Words put between markup and parts of calls are all there again, once: in content, names or arguments."""
    fragments = st.sampled_from([fragment for fragment in FRAGMENTS if fragment not in ('"', '{"type": "function"')])

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.one_of(fragments, st.none()), max_size=16), st.integers(1, 9))
    def check(parts, size):
        text = "".join(f"§{i}§" if part is None else part for i, part in enumerate(parts))
        content, calls = parsed(family, text, every(text, size))
        shown = content + "".join(name + arguments for name, arguments in calls)
        for i, part in enumerate(parts):
            assert shown.count(f"§{i}§") == (part is None), text

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_string_argument_comes_out_as_it_comes_in(family):
    text = written(family, [("f", {"text": "BEGIN" + "x" * 2000 + "END"})])
    begin, end = text.index("BEGIN"), text.index("END")
    reader = parser(family, TOOLS)
    parts = [reader.feed(text[:begin])]
    for at in range(begin, end, 10):
        parts.append(reader.feed(text[at : at + 10]))
        (_, arguments), *_ = added_up(parts)[1]
        assert len(arguments) >= at - begin - len("\n</function>\n</seed:tool_call>")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_is_told_before_the_arguments_have_come(family):
    text = written(family, [("f", {"text": "VALUE"})])
    assert added_up(deltas(family, text[: text.index("VALUE")]))[1][0][0] == "f"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_that_is_no_tools_is_a_call_all_the_same(family):
    text = written(family, [("invented", {"text": "1"})], style=2)  # with a marker, for Llama
    content, ((name, arguments),) = parsed(family, text)
    assert (content, name, json.loads(arguments)) == ("", "invented", {"text": "1"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_calls_without_arguments_have_an_empty_object(family, size):
    for style in range(STYLES[family]):
        text = written(family, [("f", {}), ("no-schema.2", {}), ("get_weather", {"count": 1}), ("f", {})], style=style)
        content, calls = parsed(family, text, every(text, size))
        assert content == ""
        assert [name for name, _ in calls] == ["f", "no-schema.2", "get_weather", "f"]
        assert [json.loads(arguments) for _, arguments in calls] == [{}, {}, {"count": 1}, {}]


def hostile(family):
    """How long texts begin, and what is repeated in them."""
    call = written(family, [("f", {"text": "1"})])
    opened, _, _ = written(family, [("f", {"text": "VALUE", "deep": {}})]).partition("VALUE")
    deep, _, _ = written(family, [("f", {"deep": {"long": "VALUE"}})]).partition("VALUE")
    opener = parser(family, TOOLS)._syntax.openers[0]
    return {
        "a long string": (opened, "x" * 10),
        "a long string of escapes": (opened, '\\n\n"\\'),
        "a long string in an object": (deep, "x" * 10),
        "a string of <": (opened, "<"),
        "a string of newlines": (opened, "\n"),
        "calls": ("", call),
        "calls and separators": (call, "; "),
        "openers": ("", opener),
        "openers and spaces": (opener, " "),
        "halves of openers": ("", opener[:-1]),
        "openers and half a call": ("", call[: len(call) // 2]),
        "angle brackets": ("", "<"),
        "square brackets": ("", "["),
        "square brackets in a call": (opener, "["),
        "braces": (opener, "{"),
        "nested objects": (deep.removesuffix('"long": "'), '{"a":'),
        "nested arrays": (deep.removesuffix('{"long": "'), "["),
        "arguments that wait for a name": (f'{opener}{{"arguments": {{"text": "', "x"),
        "white space": ("", "\n"),
        "words": (f'{opener}{{"', "x"),
        "other members": (f'{opener}{{"name": "f"', ', "a": 1'),
        "names": (opener, "f"),
        "ends of parameters": (opened, "\n</parameter"),
        "parameters": (written(family, [("f", {})])[:-20], "<parameter=text>\n1\n</parameter>\n"),
        "fences": (call, "```"),
    }


def seconds_for(family, text, size):
    begin = time.process_time()
    reader = parser(family, TOOLS)
    for at in range(0, len(text), size):
        reader.feed(text[at : at + size])
    reader.finish()
    return time.process_time() - begin


@pytest.mark.parametrize("kind", hostile("hermes"))
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deepseek_v3_1"])  # it has v3's parser
def test_time_grows_as_the_text(family, kind):
    """Sixteen times the text takes about sixteen times as long; by squares it would be 256 times."""
    begin, unit = hostile(family)[kind]
    short, long = (begin + unit * (length // len(unit)) for length in (5_000, 80_000))
    for size in (4, len(long)):
        ratios = (seconds_for(family, long, size) / seconds_for(family, short, size) for _ in range(4))
        assert any(ratio < 32 for ratio in ratios), size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["a long string", "angle brackets", "halves of openers"])
def test_half_a_million_characters_come_through(family, kind):
    begin, unit = hostile(family)[kind]
    text = begin + unit * (520_000 // len(unit))
    content, calls = parsed(family, text, every(text, 4))
    if kind == "a long string":
        assert (content, [name for name, _ in calls]) == ("", ["f"])
        assert calls[0][1].endswith("x" * 520_000)
    else:
        assert (content, calls) == (text, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_more_is_left_unread_than_a_marker_has_characters(family):
    @settings(max_examples=60, deadline=None)
    @given(answers(family))
    def check(text):
        reader = parser(family, TOOLS)
        assert isinstance(reader, CallReader)
        source = reader._source
        for character in text:
            reader.feed(character)
            assert len(source.text) <= len("\n</function>\n</seed:tool_call>")

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_may_be_empty_and_so_may_pieces(family):
    reader = parser(family, [])
    assert (reader.feed(""), reader.feed(""), reader.finish()) == (reader.feed(""),) * 3
    assert parsed(family, "") == ("", [])


@settings(max_examples=100)
@given(st.text(st.sampled_from("ab \n\t"), max_size=12), st.integers(1, 3))
@example(" \n ", 1)
def test_whitespace_is_content_where_no_call_is_near(text, size):
    assert parsed("hermes", text, every(text, size)) == (text, [])
