"""The benchmark's own arithmetic; nothing here is timed."""

from __future__ import annotations

import asyncio

import pytest

from engine.tokenizer import load_tokenizer
from tests.support.tiny_models import GOLDEN, TINY_MODELS
from tools.bench.client import HttpLoad, Job, Outcome, Trace
from tools.bench.goals import judge
from tools.bench.measure import percentile, summarise
from tools.bench.prompts import PromptMaker

EVENTS = [
    b'data: {"choices":[{"text":"a"}]}\n\n',
    b": keep-alive\n\n",
    b'data: {"choices":[{"text":"b"}]}\n\ndata: {"choices":[{"text":""}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
]
HEAD = b"HTTP/1.1 200 OK\r\nKeep-Alive: max=100\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS) + b"0\r\n\r\n"


async def load(answer, *, piece=None, jobs=3):
    """Run a load against a server that gives ``answer`` to everything, ``piece`` bytes at a time."""

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            for start in range(0, len(answer), piece or len(answer)):
                writer.write(answer[start : start + (piece or len(answer))])
                await writer.drain()
                await asyncio.sleep(0)

    async def quiet(reader, writer):
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(quiet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = HttpLoad(f"http://127.0.0.1:{port}", "m", "/livez")
        outcome = await client.run([Job("", [1], 3)] * jobs, 2)
        await asyncio.sleep(0.01)
    return outcome


@pytest.mark.parametrize("piece", [None, 5, 13])
async def test_answers_are_read_however_they_are_cut(piece):
    outcome = await load(ANSWER, piece=piece)
    assert len(outcome.traces) == 3
    for trace in outcome.traces:
        assert (trace.error, trace.prompt_tokens, trace.num_tokens, len(trace.stamps_s)) == (None, 7, 3, 2)


async def test_a_refusal_is_an_error():
    outcome = await load(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\nno", jobs=1)
    assert "429" in outcome.traces[0].error


def test_prompts_have_their_length_and_share_no_first_word():
    maker = PromptMaker(load_tokenizer(GOLDEN / TINY_MODELS[0]))
    prompts = [maker.make(60, seed) for seed in range(64)]
    assert {len(prompt.ids) for prompt in prompts} == {60}
    assert len({prompt.text.split()[0] for prompt in prompts}) == 64
    shared = maker.make(100, 1)
    assert maker.make(140, 2, shared.text).ids[:100] == shared.ids


def test_the_figures_of_a_load():
    good = [Trace(0.0, [0.1, 0.2, 0.4], 3, 10), Trace(0.1, [0.4], 1, 10)]
    figures = summarise(Outcome([*good, Trace(0.0, error="gone")], 2.0))
    assert (figures["requests"], figures["errors"], figures["tokens_s"]) == (2, 1, 2.0)
    assert figures["ttft_p50_ms"] == pytest.approx(200)
    assert figures["gap_p95_ms"] == pytest.approx(195)
    assert percentile([3.0], 95) == 3.0


def test_a_goal_is_judged_by_the_best_peer_and_only_with_all_requests_answered():
    def system(name, tokens_s, first_ms, errors=0):
        figures = {
            "requests": 1,
            "errors": errors,
            "tokens_s": tokens_s,
            "ttft_p50_ms": first_ms,
            "cpu_s": {"engine": 1},
        }
        return {"name": name, "label": name, "missing": None, "http": True, "workloads": {"d4": figures}}

    peers = [system("slow", 10.0, 100.0), system("fast", 20.0, 300.0), system("failing", 90.0, 1.0, errors=1)]
    run = {"systems": [system("upwell", 60.0, 50.0), *peers], "limits": None, "weights_bytes": 1}
    verdicts = {verdict.what: verdict for verdict in judge(run)}
    assert verdicts["4 streams, tokens/s"].reached is True
    assert verdicts["4 streams, tokens/s"].peer.startswith("3 x fast")
    assert verdicts["4 streams, first token"].reached is False
    assert verdicts["64 streams, tokens/s"].reached is None
