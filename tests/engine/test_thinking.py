"""Thoughts: where they end, however tokens cut them; what is forced and banned around them; grammars that wait."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import CacheConfig, SchedulerConfig
from engine.engine import Engine
from engine.errors import InvalidRequest
from engine.grammar import MAX_BLANKS
from engine.thinking import AllBut, Only, Thinking, border_of
from engine.types import FinishReason, GenerateRequest, SamplingParams, Thoughts
from server.reasoning import Markers, ThoughtSplitter
from tests.support.echo_model import EchoRunner
from tests.support.grammars import lark
from tests.support.thinking_words import END_THINK, THINK, ThinkingWords
from tests.support.tiny_models import tiny_engine

WORDS = ThinkingWords()
CONTROL = {text: (token_id,) for text, token_id in WORDS.control.items()}
SHOWN = (*CONTROL[THINK], *CONTROL[END_THINK])
PROMPT = list(WORDS.ids_of("Well?"))
GRAMMAR = lark('start: /[a-c]{1,3}/ ("-" /[0-9]{1,3}/)?')
PATTERN = "[a-c]{1,3}(-[0-9]{1,3})?"
PIECES = ["<think>", "</think>", "<", "</", "th", "ink>", " ", "\n", "a", "é", "\u2003", "</think", "<thi", ">"]


def plain(**options):
    """Thoughts between markers that are written byte by byte."""
    made = {"start": THINK, "end": END_THINK, "start_ids": WORDS.ids_of(THINK), "end_ids": WORDS.ids_of("\n</think>\n")}
    return Thoughts(**made | options)


def control(**options):
    """Thoughts between markers that are control tokens."""
    return plain(**{"start_ids": CONTROL[THINK], "end_ids": CONTROL[END_THINK], **options})


def new_engine(vocabulary=WORDS):
    cache_config, limits = CacheConfig(64, 4), SchedulerConfig(4, 64, 120)
    return Engine(EchoRunner(cache_config), vocabulary, (vocabulary.eos_id,), limits, cache_config)


@cache
def shared_engine():
    return new_engine()


def ended(engine, thoughts=None, grammar="", prediction_ids=(), **sampling):
    """(token ids, text, the last delta, logprobs) of one request."""
    given = {"max_tokens": 60, "temperature": 0.0, **sampling}
    more = {"grammar": grammar, "shown_ids": SHOWN, "thoughts": thoughts, "prediction_ids": tuple(prediction_ids)}
    engine.submit(GenerateRequest("r", PROMPT, SamplingParams(**given), **more))
    ids, text, logprobs, last = [], "", [], None
    while engine.has_work:
        for last in engine.step().deltas:
            ids += last.token_ids
            text += last.text
            logprobs += last.logprobs or []
    assert last.error is None
    return ids, text, last, logprobs


def split(text, *, is_open):
    splitter = ThoughtSplitter(Markers(THINK, END_THINK), is_open=is_open)
    parts = [splitter.feed(text), splitter.finish()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


def num_reasoning(pieces, *, is_open):
    """By definition: how many of the pieces it takes up to the end of the thoughts."""
    whole = b"".join(pieces).decode(errors="replace")
    if not is_open and not whole.lstrip().startswith(THINK):
        return 0
    for count in range(len(pieces) + 1):
        text = b"".join(pieces[:count]).decode(errors="replace")
        begun = text if is_open else text.lstrip().removeprefix(THINK) if text.lstrip().startswith(THINK) else ""
        if END_THINK in begun:
            return count
    return len(pieces)


def shows_an_answer_after(raw, *, is_open):
    """Whether the server takes what comes next for the answer, and nothing before it."""
    splitter = ThoughtSplitter(Markers(THINK, END_THINK), is_open=is_open)
    splitter.feed(raw.decode(errors="ignore"))
    return splitter.feed("X") == ("", "X")


some = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
texts = st.tuples(
    st.sampled_from(["", "\n", " \u2003", "é"]),
    st.sampled_from(["", THINK]),
    some,
    st.sampled_from(["", END_THINK]),
    some,
).map("".join)


@given(text=texts, is_open=st.booleans(), data=st.data())
@settings(max_examples=300)
def test_the_border_is_the_servers(text, is_open, data):
    """Wherever tokens are cut, amid a character too: the first token after which an answer could come is the same."""
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    thinking = Thinking(plain(is_open=is_open))
    for piece in pieces:
        thinking.take(piece)
    assert thinking.num_tokens == num_reasoning(pieces, is_open=is_open)
    splitter = ThoughtSplitter(Markers(THINK, END_THINK), is_open=is_open)
    splitter.feed(text)
    assert thinking.is_thinking == splitter.is_thinking
    if thinking.num_tokens and thinking.is_over:
        through, before = (b"".join(pieces[:n]) for n in (thinking.num_tokens, thinking.num_tokens - 1))
        assert shows_an_answer_after(through, is_open=is_open)
        assert (before == b"" and not is_open) or not shows_an_answer_after(before, is_open=is_open)


@given(ids=st.lists(st.integers(0, 255), max_size=30), is_open=st.booleans())
def test_tokens_of_a_vocabulary_and_the_text_of_its_answer(ids, is_open):
    thinking = Thinking(plain(is_open=is_open))
    pieces = [WORDS.token_bytes(i) for i in ids if not WORDS.is_special(i) or i in SHOWN]
    for piece in pieces:
        thinking.take(piece)
    assert thinking.num_tokens == num_reasoning(pieces, is_open=is_open)


def test_steps_do_not_grow_with_the_thoughts(monkeypatch):
    """What may be a marker is looked at once, not again with each token."""
    thinking = Thinking(plain())
    for _ in range(20_000):
        thinking.take(b" ")
    assert len(thinking._head) == 0
    for _ in range(20_000):
        thinking.take(b"<")
    assert thinking.num_tokens == 0


@pytest.mark.parametrize("make", [plain, control])
@pytest.mark.parametrize("seed", range(6))
def test_a_budget_ends_thoughts_in_the_models_own_way(make, seed):
    never = tuple((i, -100.0) for i in [*WORDS.interesting(), WORDS.ids_of("<")[0]])
    for budget in (0, 1, 7):
        thoughts = make(is_forced=True, budget=budget)
        more = {"temperature": 2.0, "seed": seed, "ignore_eos": True, "logit_bias": never}
        ids, text, last, _ = ended(new_engine(), thoughts, **more)
        start, end = thoughts.start_ids, thoughts.end_ids
        assert tuple(ids[: len(start)]) == start
        assert tuple(ids[len(start) + budget :][: len(end)]) == end
        assert text.count(END_THINK) == 1
        assert len(set(ids[-20:])) > 5, "nothing is forced after it"
        assert last.usage.reasoning_tokens == len(start) + budget + len(end) - (make is plain)
        assert last.usage.completion_tokens == 60


def test_thoughts_that_end_in_time_are_left_alone():
    free = ended(new_engine(), control(is_open=True), logit_bias=((CONTROL[END_THINK][0], 60.0),))
    held = ended(new_engine(), control(is_open=True, budget=50), logit_bias=((CONTROL[END_THINK][0], 60.0),))
    assert free[0] == held[0]
    assert 0 < held[2].usage.reasoning_tokens < 50


def test_without_thoughts_nothing_changes():
    free = ended(new_engine())
    asked = ended(new_engine(), plain(budget=3))
    assert free[:2] == asked[:2]
    assert asked[2].usage.reasoning_tokens == 0


def test_logprobs_of_what_is_forced_are_the_models_own():
    _, _, _, free = ended(new_engine(), logprobs=5, max_tokens=1)
    ids, _, _, held = ended(new_engine(), control(is_forced=True, budget=0), logprobs=5, max_tokens=2)
    assert (ids[0], held[0].token_id) == (CONTROL[THINK][0], CONTROL[THINK][0])
    assert held[0].top == free[0].top
    assert held[0].logprob < free[0].logprob


def test_what_is_forced_goes_before_penalties_bias_and_min_tokens():
    end = CONTROL[END_THINK][0]
    more = {"logit_bias": ((end, -100.0),), "frequency_penalty": 2.0, "repetition_penalty": 50.0, "min_tokens": 30}
    for temperature in (0.0, 1.0):
        thoughts = control(is_forced=True, budget=2)
        ids, *_ = ended(new_engine(), thoughts, temperature=temperature, **more)
        assert ids[3] == end


def test_what_is_forced_stops_nothing():
    end, thoughts = CONTROL[END_THINK][0], control(is_forced=True, budget=2)
    _, free, *_ = ended(new_engine(), thoughts, max_tokens=4)
    assert free.startswith(THINK)
    for stops in ({"stop": ("think>",)}, {"stop": (THINK,)}, {"stop": (END_THINK[1:],)}, {"stop_token_ids": (end,)}):
        ids, text, *_ = ended(new_engine(), thoughts, max_tokens=4, **stops)
        assert (text, ids[3]) == (free, end), stops
    held = free[: len(THINK)][-3:] + "x"  # begins as the marker ends
    assert ended(new_engine(), thoughts, max_tokens=4, stop=(held,))[1] == free


def test_ends_amid_thoughts():
    """Without a grammar an end-of-sequence token, a stop string and max_tokens end thoughts as they end an answer."""
    eos = WORDS.eos_id
    ids, text, last, _ = ended(new_engine(), control(is_forced=True), logit_bias=((eos, 100.0),))
    assert (ids, text, last.finish) == ([*CONTROL[THINK], eos], THINK, FinishReason.STOP)
    assert last.usage.reasoning_tokens == 1
    ids, text, last, _ = ended(new_engine(), control(is_forced=True), logit_bias=((eos, 100.0),), ignore_eos=True)
    assert (last.finish, last.usage.reasoning_tokens, len(ids)) == (FinishReason.LENGTH, 60, 60)
    _, free, *_ = ended(new_engine(), control(is_open=True), max_tokens=5)
    ids, text, last, _ = ended(new_engine(), control(is_open=True), stop=(free[1:3],))
    assert (text, last.finish) == (free[:1], FinishReason.STOP)
    ids, text, last, _ = ended(new_engine(), control(is_open=True), max_tokens=5)
    assert (last.finish, last.usage.reasoning_tokens) == (FinishReason.LENGTH, 5)


biases = st.lists(st.tuples(st.sampled_from(WORDS.interesting()), st.sampled_from([20.0, 60.0, 90.0])), max_size=8).map(
    tuple
)


@given(
    make=st.sampled_from([plain, control]),
    how=st.sampled_from(["open", "forced", "free"]),
    budget=st.sampled_from([None, 0, 1, 4, 12]),
    bias=biases,
    temperature=st.sampled_from([0.0, 1.0, 2.0]),
    seed=st.integers(0, 9),
    min_tokens=st.sampled_from([0, 0, 20]),
)
@settings(max_examples=400, deadline=None)
def test_a_grammar_waits_for_the_end_of_the_thoughts(make, how, budget, bias, temperature, seed, min_tokens):
    """What the server shows as the answer keeps to it, whatever the model would rather say."""
    thoughts = make(is_open=how == "open", is_forced=how == "forced", budget=budget)
    ids, text, last, _ = ended(
        shared_engine(), thoughts, GRAMMAR,
        logit_bias=bias, temperature=temperature, seed=seed, min_tokens=min_tokens,
    )  # fmt: skip
    pieces = [WORDS.token_bytes(i) for i in ids if i != WORDS.eos_id]
    assert last.usage.reasoning_tokens == num_reasoning(pieces, is_open=how == "open")
    assert WORDS.eos_id not in ids[: last.usage.reasoning_tokens]
    if last.finish is FinishReason.STOP:
        _, content = split(text, is_open=how == "open")
        assert re.fullmatch(PATTERN, content), text
    most = 1 + MAX_BLANKS + len("abc-123")
    assert last.usage.completion_tokens - last.usage.reasoning_tokens <= most + (last.finish is FinishReason.STOP)
    if budget is not None and last.usage.reasoning_tokens:
        most = len(thoughts.start_ids) * (how != "open") + budget + len(thoughts.end_ids)
        assert last.usage.reasoning_tokens <= most
    if how == "free" and last.usage.reasoning_tokens:
        assert ids[0] == CONTROL[THINK][0]


@given(
    make=st.sampled_from([plain, control]),
    how=st.sampled_from(["open", "forced", "free"]),
    budget=st.sampled_from([None, 0, 3, 12]),
    bias=biases,
    grammar=st.sampled_from(["", GRAMMAR]),
    temperature=st.sampled_from([0.0, 1.5]),
    wrong_at=st.sampled_from([None, 0, 5, 15]),
)
@settings(max_examples=150, deadline=None)
def test_a_prediction_changes_nothing(make, how, budget, bias, grammar, temperature, wrong_at):
    """Thoughts that are foretold too, and the tokens that begin and end them."""
    thoughts = make(is_open=how == "open", is_forced=how == "forced", budget=budget)
    options = {"thoughts": thoughts, "grammar": grammar, "logit_bias": bias, "temperature": temperature, "logprobs": 2}
    ids, text, last, logprobs = ended(shared_engine(), **options)
    foretold = [i ^ (place == wrong_at) for place, i in enumerate(ids)]
    same = ended(shared_engine(), **options, prediction_ids=foretold)
    assert (same[0], same[1], same[3]) == (ids, text, logprobs)
    assert same[2].usage.reasoning_tokens == last.usage.reasoning_tokens
    if wrong_at is None and len(ids) > 20:
        assert same[2].usage.accepted_tokens > 10


def test_before_a_grammar_the_model_decides_whether_it_thinks():
    think = ((CONTROL[THINK][0], 100.0),)
    less_than = ((WORDS.ids_of("<")[0], 100.0),)
    tried = [(control, think, True), (control, (), False), (plain, think, False), (plain, less_than, False)]
    for make, bias, thinks in tried:
        _, text, last, _ = ended(new_engine(), make(budget=2), GRAMMAR, logit_bias=bias)
        assert text.startswith(THINK) is thinks
        assert (last.usage.reasoning_tokens > 0) is thinks
        assert re.fullmatch(PATTERN, split(text, is_open=False)[1])


def test_a_little_whitespace_may_come_between():
    newline = WORDS.ids_of("\n")[0]
    _, text, last, _ = ended(new_engine(), control(is_open=True, budget=0), GRAMMAR, logit_bias=((newline, 100.0),))
    assert text.startswith("</think>\n\n\n\n")
    assert re.fullmatch(PATTERN, text.removeprefix("</think>\n\n\n\n"))
    assert last.finish is FinishReason.STOP


@pytest.mark.parametrize("num_matched", range(len(END_THINK)))
def test_what_may_not_come_before_the_border(num_matched):
    """By definition, token by token: an end marker that is completed is followed by whitespace at most."""
    before = border_of(END_THINK, WORDS, 256, [WORDS.eos_id]).before[num_matched]
    for token_id in range(256):
        if WORDS.is_special(token_id):
            assert (token_id in before) is (token_id != WORDS.eos_id)
            continue
        text = END_THINK[:num_matched] + WORDS.token_bytes(token_id).decode("latin-1")
        _, found, rest = text.partition(END_THINK)
        assert (token_id in before) is not bool(found and rest.strip(" \t\r\n")), text


def test_what_is_whitespace_at_the_border():
    """Not what cannot be seen for other reasons, nor whitespace of which JSON knows nothing."""
    blanks = border_of(END_THINK, WORDS, 256, [WORDS.eos_id]).blanks
    assert {WORDS.token_bytes(i) for i in blanks} == {b"\n", b"\t", b"\r", b" ", b"\n\n", b"  ", b"\r\n"}


def test_restrictions_and_their_rows():
    for restriction, kept in [(Only(2), [2]), (AllBut([0, 3]), [1, 2])]:
        row = np.arange(4, dtype=np.float32)
        restriction.restrict(row)
        assert [i for i in range(4) if row[i] == i] == kept
        assert [i for i in range(4) if i in restriction] == kept
        assert (row[[i for i in range(4) if i not in kept]] == -np.inf).all()


@pytest.mark.parametrize(
    "thoughts",
    [
        plain(start_ids=WORDS.ids_of("<think")),
        plain(end_ids=WORDS.ids_of("</think>.")),
        control(end_ids=CONTROL["<pad>"]),
    ],
)
def test_tokens_that_are_not_the_markers_are_refused(thoughts):
    engine = new_engine()
    with pytest.raises(InvalidRequest, match="not their"):
        engine.submit(GenerateRequest("r", PROMPT, SamplingParams(max_tokens=1), thoughts=thoughts, shown_ids=SHOWN))
    assert not engine.has_work


def test_control_tokens_that_are_not_shown_are_no_markers():
    engine = new_engine()
    with pytest.raises(InvalidRequest):
        engine.submit(GenerateRequest("r", PROMPT, SamplingParams(max_tokens=1), thoughts=control()))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"start": ""}, "thinking"),
        ({"end": ""}, "thinking"),
        ({"is_forced": True, "start_ids": ()}, "thinking"),
        ({"budget": -1}, "thinking.budget_tokens"),
        ({"budget": 1, "end_ids": ()}, "thinking.budget_tokens"),
    ],
)
def test_thoughts_that_cannot_be(options, param):
    with pytest.raises(InvalidRequest) as refused:
        plain(**options)
    assert refused.value.param == param


def test_on_a_model():
    """With a vocabulary whose control tokens the markers are, and a grammar after them."""
    engine = tiny_engine("tiny-mistral", max_model_len=200)
    thoughts = Thoughts(
        start="<|im_start|>", end="<|endoftext|>", start_ids=(257,), is_forced=True, end_ids=(256,), budget=9
    )
    sampling = SamplingParams(max_tokens=60, temperature=1.0, seed=3, logprobs=1)
    engine.submit(
        GenerateRequest(
            "r", [72, 101], sampling, grammar=lark('start: "yes" | "no"'), shown_ids=(256, 257), thoughts=thoughts
        )
    )
    text = "".join(delta.text for _ in range(60) for delta in engine.step().deltas)
    assert re.fullmatch(r"<\|im_start\|>.*<\|endoftext\|>\s*(yes|no)", text, re.DOTALL)
