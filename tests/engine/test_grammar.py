"""Answers that are held to a grammar: by models of random weights, which would never keep to one by themselves."""

from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import grammar as module
from engine.grammar import Allowed, GrammarFailed, Grammars
from engine.types import FinishReason, GenerateRequest, SamplingParams
from tests.support.grammars import GRAMMARS, json_schema, lark
from tests.support.tiny_models import TINY_VOCAB_SIZE, tiny_engine

PROMPT = [72, 101, 108, 108, 111]


@pytest.fixture(scope="module")
def engine():
    return tiny_engine("tiny-mistral", max_model_len=200)


def ended(engine, *requests):
    """request id -> (text, its last delta)."""
    out = {request.request_id: ("", None) for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step().deltas:
            out[delta.request_id] = (out[delta.request_id][0] + delta.text, delta)
    assert engine.pool.num_used == 0
    return out


def answer(engine, grammar, **sampling):
    given = {"max_tokens": 100, "temperature": 0.0, **sampling}
    return ended(engine, GenerateRequest("r", PROMPT, SamplingParams(**given), grammar=grammar))["r"]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_answers_keep_to_a_schema(engine, temperature, seed):
    text, last = answer(engine, GRAMMARS[0], temperature=temperature, seed=seed)
    found = json.loads(text) if last.finish is FinishReason.STOP else None
    assert last.finish is FinishReason.LENGTH or (type(found["a"]) is int and found["b"] in {"x", "yy", "zé"})
    assert text.startswith('{"a":')


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_ends_where_its_grammar_does(engine, seed):
    text, last = answer(engine, lark('start: "yes" | "no" | "nobody"'), temperature=1.5, seed=seed)
    assert text in {"yes", "no", "nobody"}
    assert last.finish is FinishReason.STOP
    if text != "no":
        assert last.usage.completion_tokens == len(text), "no end-of-sequence token is computed where none is needed"


def test_penalties_bias_logprobs_and_candidates_go_with_it(engine):
    options = [
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 50.0},
        {"logit_bias": ((0, 100.0), (65, 100.0))},
        {"logprobs": 3},
        {"logprobs": 3, "temperature": 1.0},
        {"top_k": 3, "temperature": 1.0},
        {"top_p": 0.1, "min_p": 0.5, "temperature": 1.0},
        {"stop": ("b",)},
    ]
    for more in options:
        text, _ = answer(engine, lark("start: /[a-c]{7}/"), **more)
        assert re.fullmatch("[a-c]{0,7}" if "stop" in more else "[a-c]{7}", text), more


def test_logprobs_are_the_models_own(engine):
    """Those of what it would have said without a grammar, of which the token that it must say is one."""
    request = SamplingParams(max_tokens=3, temperature=0.0, logprobs=20)
    held, free = (
        [
            entry
            for delta in steps(engine, GenerateRequest("r", PROMPT, request, grammar=grammar))
            for entry in delta.logprobs
        ]
        for grammar in (lark("start: /[a-c]{7}/"), "")
    )
    assert held[0].top == free[0].top
    assert held[0].token_id != free[0].token_id
    assert held[0].logprob < free[0].logprob


def steps(engine, request):
    engine.submit(request)
    while engine.has_work:
        yield from engine.step().deltas


def test_an_end_that_must_be_goes_before_min_tokens(engine):
    text, last = answer(engine, lark('start: "ab"'), min_tokens=50)
    assert (text, last.finish) == ("ab", FinishReason.STOP)
    text, last = answer(engine, lark('start: "ab" "c"?'), min_tokens=3)
    assert text == "abc", "but one that only may be does not"
    late = lark("start: TEXT\nTEXT: /a/ & /(a|b)/")
    assert answer(engine, late, min_tokens=50)[0] == "a"


def test_a_grammar_that_cannot_be_is_the_requests_own_error(engine):
    good = GenerateRequest("good", PROMPT, SamplingParams(max_tokens=5, temperature=0.0))
    bad = GenerateRequest("bad", PROMPT, SamplingParams(max_tokens=5), grammar=lark("start: nothing"))
    out = ended(engine, good, bad)
    assert out["good"][1].finish is FinishReason.LENGTH
    assert out["bad"][1].finish is FinishReason.ERROR
    assert (out["bad"][1].error.code, out["bad"][0]) == ("invalid_grammar", "")
    assert 'unknown name: "nothing"' in out["bad"][1].error.message


def test_where_the_library_gives_up_the_request_ends_and_no_other(engine, monkeypatch):
    real = module.AnswerGrammar.allowed

    def failing(self, vocab_size):
        assert real(self, vocab_size) is not None
        self.failure = "too much"

    other = GenerateRequest("other", PROMPT, SamplingParams(max_tokens=9, temperature=0.0))
    wanted = ended(engine, other)["other"][0]
    monkeypatch.setattr(module.AnswerGrammar, "allowed", failing)
    held = GenerateRequest("held", PROMPT, SamplingParams(max_tokens=9), grammar=GRAMMARS[0])
    out = ended(engine, other, held)
    assert out["other"][0] == wanted
    assert out["held"][1].finish is FinishReason.ERROR
    assert out["held"][1].error.code == "grammar_failed"
    assert "too much" in out["held"][1].error.message


def test_others_go_on_while_a_grammar_is_compiled(engine, monkeypatch):
    compiled, real = threading.Event(), Grammars._compiled
    monkeypatch.setattr(Grammars, "_compiled", lambda self, text: compiled.wait(60) and real(self, text))
    engine.submit(GenerateRequest("held", PROMPT, SamplingParams(max_tokens=9), grammar=lark('start: "abcd"')))
    engine.submit(GenerateRequest("other", PROMPT, SamplingParams(max_tokens=9, temperature=0.0)))
    deltas = [delta for _ in range(12) for delta in engine.step().deltas]
    assert {delta.request_id for delta in deltas} == {"other"}
    assert engine.has_work
    compiled.set()
    text = ""
    while engine.has_work:
        text += "".join(delta.text for delta in engine.step().deltas)
    assert text == "abcd"


def test_a_request_that_leaves_while_its_grammar_is_compiled(engine, monkeypatch):
    compiled, real = threading.Event(), Grammars._compiled
    monkeypatch.setattr(Grammars, "_compiled", lambda self, text: compiled.wait(60) and real(self, text))
    engine.submit(GenerateRequest("held", PROMPT, SamplingParams(max_tokens=9), grammar=lark('start: "abcde"')))
    assert engine.step().deltas == []
    engine.abort("held")
    assert not engine.has_work
    compiled.set()
    assert engine.step().deltas == []


def test_no_answer_fails_by_what_others_have_said(engine):
    """A lexer of this pattern comes to know some states with each token; copies of one grammar would share them."""
    grammar = lark("start: /(?s).*[a-m].{16}x/")
    options = [{"temperature": 2.0, "seed": seed, "max_tokens": 60} for seed in range(12)]
    first = answer(engine, grammar, **options[0])
    for more in options:
        answer(engine, grammar, **more)
    again = answer(engine, grammar, **options[0])
    assert (again[0], again[1].finish) == (first[0], first[1].finish)
    assert first[1].finish is not FinishReason.ERROR


@given(bits=st.lists(st.booleans(), min_size=259, max_size=259), data=st.data())
def test_a_mask_and_its_row(bits, data):
    padded = np.packbits([*bits, *[data.draw(st.booleans())] * 29], bitorder="little")
    allowed = Allowed(padded.view(np.uint32))
    row = np.arange(259, dtype=np.float32) - 100
    want = np.where(bits, row, -np.inf)
    allowed.restrict(row)
    assert np.array_equal(row, want)
    assert [token in allowed for token in range(259)] == bits


def test_masks_depend_on_the_answer_alone():
    """As one of several answers that are held to the same."""

    class Vocabulary:
        def token_bytes(self, token_id):
            return bytes([token_id]) if token_id < 256 else b"<end>"

        def is_special(self, token_id):
            return token_id >= 256

    def masks(grammars, text, others):
        first = grammars.open(GRAMMARS[0]).result()
        company = [grammars.open(GRAMMARS[0]).result() for _ in range(others)]
        found = []
        for byte in text:
            mask = grammars.begin_masks([*company, first]).result()[-1]
            found.append([token in mask for token in range(257)])
            first.accept(byte)
            for other in company:
                other.accept(byte)
        return found, first.is_complete

    text = '{"a":-12,"b":"zé"}'.encode()
    alone = masks(Grammars(Vocabulary(), 257, [256]), text, 0)
    grammars = Grammars(Vocabulary(), 257, [256])
    assert masks(grammars, text, 5) == masks(grammars, text, 0) == alone
    assert alone[1]
    with pytest.raises(GrammarFailed, match="Unimplemented"):
        grammars.open(json_schema({"not": {}})).result()
    grammars.close()


def test_the_vocabulary_is_that_of_the_model(engine):
    assert TINY_VOCAB_SIZE == 259
    text, _ = answer(engine, lark('start: "é" /[à-ü]{2}/'), temperature=1.0)
    assert re.fullmatch("é[à-ü]{2}", text)


def test_an_answer_whose_grammar_takes_ever_longer_ends_alone(engine, monkeypatch):
    """How much longer is the machine's to say, so the limit is put where any machine reaches it."""
    monkeypatch.setattr(module, "SLACK_S", 0.02)
    monkeypatch.setattr(module, "TOKEN_S", 0.0)
    ambiguous = lark('start: a\na: a a a | a a | "x" | "y"')
    held = GenerateRequest("held", PROMPT, SamplingParams(max_tokens=150, min_tokens=149), grammar=ambiguous)
    other = GenerateRequest("other", PROMPT, SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True))
    out = ended(engine, held, other)
    assert out["held"][1].error.code == "grammar_failed"
    assert "too much time" in out["held"][1].error.message
    assert out["other"][1].finish is FinishReason.LENGTH
