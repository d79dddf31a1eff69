"""Text that comes token by token is the text of all tokens, cut at the first stop string."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.detokenizer import IncrementalDetokenizer
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.tiny_bpe import tiny_tokenizer

TOKENIZER = tiny_tokenizer("llama-bpe")
BYTES = ByteTokenizer()
# The library puts the é of an added token through its byte alphabet, and so cannot show it; ours is verbatim.
VERBATIM_ID = TOKENIZER.encode("naïve", add_special=False)[0]
FREQUENT_IDS = TOKENIZER.encode("<|end|> 😀é的 <tool> aaaa\n\n", add_special=False)
IDS = st.lists(st.one_of(st.integers(0, VERBATIM_ID - 1), st.sampled_from(FREQUENT_IDS)), max_size=24)
NEARLY_UTF8 = st.lists(
    st.sampled_from([*b"ab", 0xC3, 0xA9, 0xE7, 0x9A, 0x84, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xA0, 0xFF, 0xC0]), max_size=20
)
STOPS = st.lists(st.text("ab的\ufffd", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple)


def run(tokenizer, ids, stop=()):
    """The pieces pushed, the rest, and the stop string found."""
    detokenizer = IncrementalDetokenizer(tokenizer, stop)
    pieces = [detokenizer.push(i) for i in ids]
    return pieces, detokenizer.flush(), detokenizer.stopped


def cut(text, stops):
    """By definition: the stop string complete first, the longest of those; (text before it, stop string)."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


def assert_streams_like_the_library(ids):
    pieces, rest, stopped = run(TOKENIZER, ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids) == TOKENIZER._backend.decode(ids, skip_special_tokens=True)
    assert stopped is None


def assert_stops_where_the_text_does(tokenizer, ids, stops, text):
    pieces, rest, stopped = run(tokenizer, ids, stops)
    assert ("".join(pieces) + rest, stopped) == cut(text, stops)


@given(IDS)
def test_the_stream_is_the_librarys_own_decoding(ids):
    assert_streams_like_the_library(ids)


def test_ten_thousand_random_sequences():
    """More than hypothesis has time for: every kind of id, byte tokens above all, with and without stop strings."""
    draw = random.Random(20)
    for _ in range(10_000):
        highest = draw.choice([256, VERBATIM_ID])
        ids = [
            draw.choice(FREQUENT_IDS) if draw.random() < 0.3 else draw.randrange(highest)
            for _ in range(draw.randrange(30))
        ]
        assert_streams_like_the_library(ids)
        text = TOKENIZER.decode(ids)
        starts = [draw.randrange(len(text)) for _ in range(draw.randrange(4)) if text]
        stops = tuple(text[start : start + draw.randrange(1, 6)] for start in starts)
        assert_stops_where_the_text_does(TOKENIZER, ids, stops, text)


def test_ids_outside_the_vocabulary_add_nothing():
    assert run(TOKENIZER, [TOKENIZER.vocab_size, 10**9, -1]) == (["", "", ""], "", None)


@given(NEARLY_UTF8)
def test_broken_utf8_becomes_what_it_becomes_as_a_whole(data):
    pieces, rest, _ = run(BYTES, data)
    assert "".join(pieces) + rest == bytes(data).decode(errors="replace")


@settings(max_examples=300)
@given(NEARLY_UTF8, STOPS)
@example(list(b"aab"), ("aab", "ab", "b"))
@example(list(b"abab"), ("aba", "b"))
@example([*b"a", 0xE7], ("a\ufffd",))
def test_the_text_ends_before_the_first_stop_string(data, stops):
    assert_stops_where_the_text_does(BYTES, data, stops, bytes(data).decode(errors="replace"))


@settings(max_examples=300)
@given(NEARLY_UTF8, STOPS)
def test_nothing_is_held_back_without_need_nor_shown_too_early(data, stops):
    """After each token: all that is shown stays, and what is held is a character or a stop string begun."""
    detokenizer, shown = IncrementalDetokenizer(BYTES, stops), ""
    final, _ = cut(bytes(data).decode(errors="replace"), stops)
    for i, byte in enumerate(data):
        shown += detokenizer.push(byte)
        assert final.startswith(shown)
        if detokenizer.stopped is None:
            held = bytes(data[: i + 1]).decode(errors="replace")[len(shown) :]
            without_partial_character = held.rstrip("\ufffd")
            assert any(stop.startswith((held, without_partial_character)) for stop in stops)


def test_a_character_is_shown_when_it_is_complete():
    detokenizer = IncrementalDetokenizer(BYTES, ())
    assert [detokenizer.push(byte) for byte in "a😀".encode()] == ["a", "", "", "", "😀"]


def test_after_a_stop_string_nothing_more_is_shown():
    detokenizer = IncrementalDetokenizer(BYTES, ("b",))
    assert [detokenizer.push(byte) for byte in b"abab"] == ["a", "", "", ""]
    assert detokenizer.stopped == "b"
    assert detokenizer.flush() == ""


def test_a_stop_string_inside_one_token():
    (token_id,) = TOKENIZER.encode("<|pad pad|>", add_special=False)
    assert run(TOKENIZER, [token_id], ("d p",)) == (["<|pa"], "", "d p")


def test_control_tokens_add_no_text_and_part_no_character():
    end = TOKENIZER.eos_ids[0]
    assert run(TOKENIZER, [end, end]) == (["", ""], "", None)
    first, *rest = TOKENIZER._backend.encode("💩", add_special_tokens=False).ids
    pieces, tail, _ = run(TOKENIZER, [first, end, *rest])
    assert "".join(pieces) + tail == "💩"
    assert run(TOKENIZER, [*TOKENIZER.encode("a", add_special=False), end], ("<|end|>",))[2] is None


@pytest.mark.parametrize(
    "stop", ["a" * 999 + "b", "ab" * 499 + "c", "a" * 500 + "b" + "a" * 499], ids=["aaab", "ababc", "aabaa"]
)
def test_the_worst_stop_strings_cost_a_bounded_number_of_steps(stop):
    """Counted, not timed: comparing characters is all that the search does."""
    comparisons = 0

    class Counted(str):
        __slots__ = ()

        def __getitem__(self, index):
            nonlocal comparisons
            comparisons += 1
            return str.__getitem__(self, index)

    detokenizer = IncrementalDetokenizer(BYTES, (Counted(stop),))
    text = (b"a" * 998 + b"ab" * 20) * 10
    comparisons = 0
    for byte in text:
        detokenizer.push(byte)
    assert comparisons <= 4 * len(text)


def test_control_tokens_that_are_shown_are_text():
    """Those that are asked for alone: their text can hold a stop string, or part of one."""
    end_id = TOKENIZER.encode("<|end|>", add_special=False)[0]
    other_id = min(TOKENIZER.special_ids - {end_id})
    a_id = TOKENIZER.encode("a", add_special=False)[0]
    ids = [a_id, end_id, other_id, a_id]

    def text(stop=(), shown=(end_id,)):
        detokenizer = IncrementalDetokenizer(TOKENIZER, stop, shown)
        pieces = [detokenizer.push(i) for i in ids]
        return "".join(pieces) + detokenizer.flush()

    assert text() == "a<|end|>a"
    assert text(shown=()) == "aa"
    assert text(stop=("end|>a",)) == "a<|"
    assert text(stop=("end|>a",), shown=()) == "aa"
    assert [IncrementalDetokenizer(TOKENIZER, (), (end_id,)).bytes_of(i) for i in ids] == [b"a", b"<|end|>", b"", b"a"]
