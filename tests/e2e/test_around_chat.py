"""What is around the chat API, on a real engine: tokens, capabilities, deadlines, fingerprints, text completions."""

from __future__ import annotations

import os
import re
import signal
import time

import httpx
import openai
import pytest

from tests.support.server_process import running_server
from tests.support.tiny_models import GOLDEN

TINY = "tiny-mistral"
MESSAGES = [{"role": "user", "content": "Hello, <s> Zwölf."}]


@pytest.fixture(scope="module")
def server():
    with running_server(str(GOLDEN / TINY), "--device", "reference", "--max-num-seqs", "1") as made:
        yield made


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def long_chat(client, **options):
    """More than any deadline here allows: 16 times 900 steps, one after the other."""
    fields = {"model": TINY, "messages": MESSAGES, "max_tokens": 900, "n": 16, "extra_body": {"ignore_eos": True}}
    return client.chat.completions.create(**fields, **options)


def wait_until_idle(http):
    """All blocks free or cached, none in use."""
    until = time.monotonic() + 30
    while 'upwell_kv_blocks{state="used"} 0.0' not in http.get("/metrics").text:
        assert time.monotonic() < until, "blocks are still in use"
        time.sleep(0.05)


def test_tokens_are_those_that_a_request_costs(client, http):
    answer = client.chat.completions.create(model=TINY, messages=MESSAGES, max_tokens=1)
    tokens = http.post("/tokenize", json={"messages": MESSAGES}).json()
    assert tokens["count"] == len(tokens["tokens"]) == answer.usage.prompt_tokens
    text = http.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"]
    assert MESSAGES[0]["content"] in text
    plain = http.post("/tokenize", json={"prompt": "Hello"}).json()
    assert plain["count"] == client.completions.create(model=TINY, prompt="Hello", max_tokens=1).usage.prompt_tokens


def test_capabilities_are_the_engines(client, http):
    told = http.get("/v1/capabilities").json()
    assert told["max_model_len"] == client.models.retrieve(TINY).model_dump()["max_model_len"]
    assert told["chat"]["thinking"] is None
    for method, path in (endpoint.split() for endpoint in told["endpoints"]):
        assert http.request(method, path.replace("{model}", TINY)).status_code != 404, path


@pytest.mark.parametrize("stream", [False, True])
def test_time_that_is_up_amid_generation(client, http, stream):
    with pytest.raises(openai.APIError) as caught:
        list(long_chat(client, extra_headers={"X-Request-Timeout": "0.3"}, stream=stream))
    assert caught.value.code == "deadline_exceeded"
    assert caught.value.type == "timeout_error"
    wait_until_idle(http)


def test_time_that_is_up_in_the_queue(client, http):
    with long_chat(client, stream=True) as running:
        next(running)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(
                model=TINY, messages=MESSAGES, max_tokens=1, extra_headers={"X-Request-Timeout": "0.2"}
            )
        assert caught.value.code == "deadline_exceeded"
        assert next(running).choices, "the one that runs goes on"
    wait_until_idle(http)
    assert client.chat.completions.create(model=TINY, messages=MESSAGES, max_tokens=1).choices


def test_text_completions(client, http):
    plain = client.completions.create(model=TINY, prompt="Hello", max_tokens=8, temperature=0)
    echoed = client.completions.create(model=TINY, prompt="Hello", max_tokens=8, temperature=0, echo=True)
    assert echoed.choices[0].text == "Hello" + plain.choices[0].text
    chunks = client.completions.create(model=TINY, prompt="Hello", max_tokens=8, temperature=0, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == echoed.choices[0].text
    extra = {"response_format": {"type": "regex", "regex": "[0-9]{4}"}, "service_tier": "flex", "metadata": {"a": "b"}}
    formed = client.completions.create(model=TINY, prompt="Year: ", max_tokens=8, extra_body=extra)
    assert re.fullmatch("[0-9]{4}", formed.choices[0].text)
    assert formed.model_dump()["service_tier"] == "flex"
    assert formed.model_dump()["metadata"] == {"a": "b"}


def test_the_fingerprint_outlives_an_engine(client, http, server):
    before = client.completions.create(model=TINY, prompt="Hello", max_tokens=1).system_fingerprint
    assert re.fullmatch("fp_[0-9a-f]{12}", before)
    assert http.get("/v1/capabilities").json()["system_fingerprint"] == before
    os.kill(server.engine_pid(), signal.SIGKILL)
    until = time.monotonic() + 60
    while http.get("/health").json()["restarts"] == 0 or http.get("/readyz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.05)
    answer = client.chat.completions.create(model=TINY, messages=MESSAGES, max_tokens=1)
    assert answer.system_fingerprint == before
    with running_server(str(GOLDEN / TINY), "--device", "reference", "--quantization", "w8a8") as other:
        told = httpx.get(f"{other.url}/v1/capabilities").json()
    assert told["system_fingerprint"] != before
