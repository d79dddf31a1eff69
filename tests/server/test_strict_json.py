"""JSON with one meaning, or a refusal."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from server.strict_json import HUGE_INT, MAX_DEPTH, MAX_ITEMS, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=200, derandomize=True)
@given(VALUES, st.booleans())
def test_reads_what_json_writes(value: object, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b'{"a": 1} x',
        b'{"a": 1}{"a": 1}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-32"),
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b'"\xc0\xaf"',
        b'"\x00"',
        b"01",
        b"+1",
        b".5",
        b"NaN",
        b"[Infinity]",
        b'{"a": -Infinity}',
        b"1e999",
        b"-1e999",
        b"[" + b"9" * 400 + b".0]",
        b'{"a": 1, "a": 1}',
        b'{"b": {"a": 1, "\\u0061": 2}}',
        rb'"\ud800"',
        rb'"\udc00"',
        rb'{"\ud800": 1}',
        rb'["\ud83d\ude00", "\ude00\ud83d"]',
        b'{"n": ' + b"9" * 5000 + b", }",
    ],
    ids=repr,
)
def test_refuses(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_json(body)
    assert raised.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\\ud800"', r"\ud800"),
        (b'"\\u0000"', "\0"),
        (b"-0.0", 0.0),
        (b"1e-999", 0.0),
        (b" \r\n\t1 ", 1),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"[1, " + b"9" * 5000 + b"]", [1, HUGE_INT]),
        (b"[-" + b"9" * 5000 + b"]", [-HUGE_INT]),
    ],
    ids=repr,
)
def test_accepts(body: bytes, value: object) -> None:
    assert parse_json(body) == value


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_bounded(opening: bytes) -> None:
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    parse_json(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 1_000, 100_000):
        with pytest.raises(InvalidRequest, match="nested more than 64 levels deep"):
            parse_json(opening * depth + b"1" + closing * depth)
        with pytest.raises(InvalidRequest, match="nested more than 64 levels deep"):
            parse_json(opening * depth)


def test_brackets_in_strings_are_not_depth() -> None:
    text = "[{" * 1000 + '\\"' + "[{" * 1000
    assert parse_json(json.dumps([text] * 3).encode()) == [text] * 3


def test_wide_is_not_deep() -> None:
    assert parse_json(b"[" + b"{}," * 999 + b"{}]") == [{}] * 1000


@pytest.mark.parametrize("item", [b"{}", b"[]", b'""'])
def test_a_flood_of_values_is_refused_before_it_is_parsed(item: bytes) -> None:
    nested = b"[" * 1 + b"[]," * MAX_DEPTH
    parse_json(nested + (item + b",") * (MAX_ITEMS - 100) + b"1]")
    with pytest.raises(InvalidRequest, match="more than 100000 values"):
        parse_json(nested + (item + b",") * MAX_ITEMS + b"1]")


@settings(max_examples=100, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert parse_json(body) == json.loads(body)


def test_messages_do_not_quote_the_body() -> None:
    for body in (b'{"a": "secret" x}', b'{"secret": 1, "secret": 2}', b'["secret\xff"]', rb'["secret\ud800"]'):
        with pytest.raises(InvalidRequest) as raised:
            parse_json(body)
        assert "secret" not in str(raised.value)
