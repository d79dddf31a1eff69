"""Schemas of clients over HTTP, with the default model: answers that are valid, or a 400 that names the word."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.support.json_judges import Judges
from tests.support.json_schemas import kept, refused
from tests.support.server_process import running_server

MODEL = "smollm2-135m"
SCHEMA = "response_format.json_schema.schema"
SAMPLES = {True: kept()[::6], False: kept()[3::6]}
"""Those that are sent as strict, and those that are not."""
MAX_TOKENS = 200


@pytest.fixture(scope="module")
def server():
    with running_server(MODEL, "--max-model-len", "512", "--max-num-seqs", "32") as made:
        yield made


def body(schema, strict, **fields):
    answer_format = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": strict}}
    messages = [{"role": "user", "content": "Give me some JSON."}]
    return {"model": MODEL, "messages": messages, "response_format": answer_format, "max_tokens": MAX_TOKENS, **fields}


def post_all(server, bodies):
    async def post():
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=server.url, timeout=240, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=each) for each in bodies))

    return asyncio.run(post())


@pytest.mark.parametrize("strict", [True, False])
def test_answers_are_valid(server, strict):
    sample, num_ended = SAMPLES[strict], 0
    answers = post_all(server, [body(case.schema, strict, seed=i, top_k=50) for i, case in enumerate(sample)])
    for case, answer in zip(sample, answers, strict=True):
        assert answer.status_code == 200, (case.name, answer.text)
        (choice,) = answer.json()["choices"]
        if choice["finish_reason"] == "stop":
            Judges(case.schema).validate(choice["message"]["content"])
            num_ended += 1
        else:
            assert choice["finish_reason"] == "length"
    assert num_ended >= len(sample) * 3 // 4  # a text without bounds may go on for ever; most come to an end


def test_what_is_not_kept_is_a_400_that_names_the_word(server):
    cases = refused()
    answers = post_all(server, [body(case.schema, i % 2 == 0) for i, case in enumerate(cases)])
    for case, answer in zip(cases, answers, strict=True):
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), (case.name, error)
        # What is no object at all is refused by its type.
        path = f"{SCHEMA}.{case.refused}" if case.refused and isinstance(case.schema, dict) else SCHEMA
        assert error["param"] == path, case.name
        assert error["message"].startswith(f"{error['param']} "), case.name
    assert len(cases) >= 140
    assert server.process.poll() is None
