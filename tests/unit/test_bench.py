"""The benchmark's own arithmetic; nothing here is timed."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from engine.tokenizer import load_tokenizer
from tests.support.tiny_models import GOLDEN, TINY_MODELS
from tools.bench.client import HttpLoad, Job, Outcome, Trace
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


class Closing:
    """A server that closes a connection without an answer where ``answers`` says so, request by request."""

    def __init__(self, *answers):
        self._answers = iter(answers)
        self.connections, self.arrived_s, self.ports = 0, [], []

    async def serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.arrived_s.append(time.perf_counter())
                self.ports.append(writer.get_extra_info("peername")[1])
                if not next(self._answers, True):
                    break
                writer.write(ANSWER)
        writer.close()

    async def run(self, jobs):
        async with await asyncio.start_server(self.serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            outcome = await HttpLoad(f"http://127.0.0.1:{port}", "m", "/livez").run([Job("", [1], 3)] * jobs, 1)
            await asyncio.sleep(0.01)
        return outcome.traces


async def test_a_kept_connection_that_was_being_closed_is_no_failure():
    server = Closing(True, False, True, True)
    traces = await server.run(3)
    assert [(trace.error, trace.num_tokens) for trace in traces] == [(None, 3)] * 3
    kept, closed, again, last = server.ports
    assert (kept, again) == (closed, last)
    assert kept != again
    began_s = [trace.began_s for trace in traces]
    assert began_s[1] < server.arrived_s[1], "counted from its first sending"
    assert server.arrived_s[2] < traces[1].stamps_s[0]
    assert server.arrived_s[2] < began_s[2]


async def test_a_request_is_sent_again_once():
    server = Closing(True, False, False, True)
    traces = await server.run(3)
    assert [trace.error is None for trace in traces] == [True, False, True]
    assert (len(server.arrived_s), server.connections) == (4, 3)
    assert traces[1].began_s < server.arrived_s[1]


async def test_a_fresh_connection_that_is_closed_is_a_failure():
    server = Closing(False, True)
    traces = await server.run(2)
    assert [trace.error is None for trace in traces] == [False, True]
    assert (len(server.arrived_s), server.connections) == (2, 2)
    assert summarise(Outcome(traces, 1.0))["errors"] == 1


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
