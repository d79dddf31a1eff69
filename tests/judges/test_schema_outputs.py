"""Schemas of clients through the engine: each that is kept compiles there, and whatever its sampler draws is valid.

The model's weights are random: it knows nothing of JSON, so what it says is the grammar's doing. A bias on tokens that
end what has been begun brings answers to an end, and one on the bytes of the schema to what its patterns ask for.
"""

from __future__ import annotations

import json

import pytest

from engine.types import FinishReason, GenerateRequest, SamplingParams
from server.grammar.forms import of_schema
from server.grammar.schema import checked_schema
from tests.support.json_judges import Judges
from tests.support.json_schemas import kept
from tests.support.tiny_models import TINY_VOCAB_SIZE, tiny_engine

MAX_TOKENS = 500
ENDS = {'"': 6.0, "}": 4.0, "]": 4.0, "[": -3.0, "{": -3.0, " ": -3.0, "\n": -6.0, "\t": -6.0, "\\": -4.0}
SPOKEN_OF, END_OF_TEXT = 2.5, 4.0
IN_PATTERN = (0.0, 2.5, 5.0, 8.0)
"""One answer with each: some patterns end where their letters are likely, some where they are not too likely."""
NUM_SEEDS = len(IN_PATTERN)
NUM_PARTS = 8


@pytest.fixture(scope="module")
def engine():
    return tiny_engine("tiny-mistral", max_model_len=MAX_TOKENS + 12)


def biases(schema, in_pattern, vocabulary):
    """(token id, bias) pairs; tokens of this vocabulary are bytes."""
    pattern = schema["pattern"] if isinstance(schema, dict) and isinstance(schema.get("pattern"), str) else ""
    spoken_of = {letter: SPOKEN_OF for letter in json.dumps(schema) if letter.isalnum()}
    wanted = {**spoken_of, **dict.fromkeys(filter(str.isalnum, pattern), in_pattern), **ENDS, "": END_OF_TEXT}
    if '"' in pattern:
        wanted["\\"] = ENDS['"']
    texts = [vocabulary.token_bytes(token_id).decode(errors="replace") for token_id in range(TINY_VOCAB_SIZE)]
    return tuple((token_id, wanted[text]) for token_id, text in enumerate(texts) if text in wanted)


def answers(engine, cases):
    """(case's name, seed) -> (text, last delta)."""
    last = {}
    for case in cases:
        grammar = of_schema(checked_schema(case.schema, "schema"))
        for seed, in_pattern in enumerate(IN_PATTERN):
            bias = biases(case.schema, in_pattern, engine._vocabulary)
            sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=seed, logit_bias=bias)
            engine.submit(GenerateRequest(f"{seed} {case.name}", [72, 101], sampling, grammar=grammar))
    pieces = {request_id: [] for request_id in engine.sequences}
    while engine.has_work:
        for delta in engine.step().deltas:
            pieces[delta.request_id].append(delta.text)
            last[delta.request_id] = delta
    return {request_id: ("".join(pieces[request_id]), last[request_id]) for request_id in pieces}


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_all_that_the_engine_says_is_valid(part, engine):
    cases = kept()[part::NUM_PARTS]
    found = answers(engine, cases)
    assert len(found) == len(cases) * NUM_SEEDS
    for case in cases:
        judges, num_ended = Judges(case.schema), 0
        for seed in range(NUM_SEEDS):
            text, last = found[f"{seed} {case.name}"]
            assert last.finish is not FinishReason.ERROR, (case.name, last.error)
            if last.finish is FinishReason.STOP:
                judges.validate(text)
                num_ended += 1
        assert num_ended, (case.name, text[:100])
    assert engine.pool.num_used == 0


def test_there_are_as_many_schemas_as_are_promised():
    assert len(kept()) >= 200
