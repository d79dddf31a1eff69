"""The bridge over a real engine process: streams, aborts, a killed and a hung engine, starts that fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.errors import EngineDead, ModelError
from engine.types import FinishReason, GenerateRequest, SamplingParams
from engine.wire import FrameReader, encode_frame
from server.bridge import STEADY_AFTER_S, EngineBridge, next_pause
from server.engine_client import EngineState, EngineUnavailable
from tests.support.tiny_models import GOLDEN, tiny_engine

PROMPT = list(b"once upon a time")


def config(**options):
    return EngineConfig(**{"model_path": str(GOLDEN / "tiny-mistral"), "device": "reference", **options})


def request(name="r", max_tokens=8, **sampling):
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **sampling)
    return GenerateRequest(name, PROMPT, params)


def answer_in_process(max_tokens):
    engine = tiny_engine("tiny-mistral")
    engine.submit(request(max_tokens=max_tokens))
    deltas = []
    while engine.has_work:
        deltas += engine.step().deltas
    return [token for delta in deltas for token in delta.token_ids]


@pytest.fixture
async def bridge():
    made = EngineBridge(config(), silence_limit_s=30)
    await made.start()
    yield made
    await made.close()


async def collect(stream):
    return [delta async for deltas in stream for delta in deltas]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_streams_what_the_engine_answers(bridge):
    assert bridge.state is EngineState.READY
    assert bridge.ready.max_model_len == 1024
    stream = bridge.submit([request("a"), request("b", max_tokens=5)])
    deltas = await collect(stream)
    wanted = answer_in_process(8)
    for name, count in (("a", 8), ("b", 5)):
        mine = [delta for delta in deltas if delta.request_id == name]
        assert [t for d in mine for t in d.token_ids] == wanted[:count]
        assert [d.finish for d in mine if d.finish] == [FinishReason.LENGTH]
    assert bridge.num_open == 0
    assert bridge.stats.generated_tokens == 13


async def test_the_engine_refuses_in_the_stream(bridge):
    deltas = await collect(bridge.submit([GenerateRequest("r", [99999], SamplingParams(max_tokens=1))]))
    assert [(d.finish, d.error.code, d.error.param) for d in deltas] == [
        (FinishReason.ERROR, "invalid_value", "prompt")
    ]


async def test_closing_a_stream_aborts_its_requests(bridge):
    stream = bridge.submit([request(max_tokens=1000)])
    await anext(stream)
    stream.close()
    await until(lambda: bridge.stats.running == 0 and bridge.stats.blocks_used == 0)
    assert bridge.stats.generated_tokens < 1000
    assert bridge.num_open == 0


async def test_a_killed_engine_fails_its_streams_and_is_replaced(bridge):
    stream = bridge.submit([request(max_tokens=1000)])
    await anext(stream)
    os.kill(bridge._process.pid, signal.SIGKILL)
    with pytest.raises(EngineDead):
        await collect(stream)
    with pytest.raises(EngineUnavailable):
        bridge.submit([request()])
    assert bridge.state is EngineState.RESTARTING
    await until(lambda: bridge.state is EngineState.READY)
    deltas = await collect(bridge.submit([request()]))
    assert [t for d in deltas for t in d.token_ids] == answer_in_process(8)
    assert bridge.restarts == 1


async def test_a_hung_engine_is_killed_and_replaced():
    bridge = EngineBridge(config(), silence_limit_s=2.0)
    await bridge.start()
    try:
        stream = bridge.submit([request(max_tokens=1000)])
        await anext(stream)
        hung = bridge._process
        os.kill(hung.pid, signal.SIGSTOP)
        with pytest.raises(EngineDead):
            await collect(stream)
        assert hung.returncode == -signal.SIGKILL
        await until(lambda: bridge.state is EngineState.READY)
        assert len(await collect(bridge.submit([request()]))) == 8
    finally:
        await bridge.close()


async def test_an_engine_that_hangs_while_it_loads_is_killed_too(bridge, monkeypatch):
    monkeypatch.setattr(bridge, "_silence_limit_s", 0.5)
    os.kill(bridge._process.pid, signal.SIGKILL)
    await until(lambda: bridge.state is EngineState.RESTARTING)
    await until(lambda: bridge._process.returncode is None)
    hung = bridge._process
    os.kill(hung.pid, signal.SIGSTOP)
    await until(lambda: bridge.restarts == 2)
    assert hung.returncode == -signal.SIGKILL
    bridge._silence_limit_s = 30
    await until(lambda: bridge.state is EngineState.READY)


async def no_process(*_args, **_options):
    raise OSError(errno.EAGAIN, "no more processes")


async def test_a_first_engine_that_cannot_be_started_is_said(monkeypatch):
    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
    bridge = EngineBridge(config(), silence_limit_s=30)
    with pytest.raises(EngineDead, match="no more processes"):
        await bridge.start()
    await bridge.close()


async def test_a_machine_that_cannot_start_an_engine_for_a_while(bridge, monkeypatch, caplog):
    stream = bridge.submit([request(max_tokens=1000)])
    await anext(stream)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", no_process)
        os.kill(bridge._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDead):
            await collect(stream)
        await until(lambda: bridge.restarts >= 2)
    await until(lambda: bridge.state is EngineState.READY)
    assert "no more processes" in caplog.text


async def test_an_engine_restarts_whatever_the_number_of_its_descriptor(bridge):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as many:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
        many.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            many.enter_context(Path(os.devnull).open())
        os.kill(bridge._process.pid, signal.SIGKILL)
        await until(lambda: bridge.restarts == 1 and bridge.state is EngineState.READY)
        assert len(await collect(bridge.submit([request()]))) == 8


async def test_a_configuration_that_cannot_be_sent_is_said():
    bridge = EngineBridge(config(num_blocks=10**30), silence_limit_s=30)
    with pytest.raises(EngineDead, match="OverflowError"):
        await bridge.start()
    await bridge.close()


async def test_a_restart_that_fails_says_why(tmp_path, caplog):
    model = tmp_path / "model"
    shutil.copytree(GOLDEN / "tiny-mistral", model)
    bridge = EngineBridge(config(model_path=str(model)), silence_limit_s=30)
    await bridge.start()
    try:
        (model / "config.json").write_text("{}")
        os.kill(bridge._process.pid, signal.SIGKILL)
        await until(lambda: bridge.restarts >= 2)
        assert "config.json" in caplog.text
    finally:
        await bridge.close()


def test_pauses_between_engines():
    assert next_pause(None, 0.1) == 0
    assert [next_pause(pause, 0.1) for pause in (0.0, 1.0, 2.0, 16.0, 30.0)] == [1, 2, 4, 30, 30]
    assert next_pause(16.0, STEADY_AFTER_S + 1) == 0


async def test_an_idle_engine_is_not_taken_for_hung():
    bridge = EngineBridge(config(), silence_limit_s=3.0)
    await bridge.start()
    try:
        await asyncio.sleep(5.5)
        assert (bridge.state, bridge.restarts) == (EngineState.READY, 0)
    finally:
        await bridge.close()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"model_path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"device": "abacus"}, "abacus"),
        ({"kv_cache_dtype": "i16"}, "--kv-cache-dtype i16"),
        ({"quantization": "w4"}, "--quantization must be one of none, w8a8"),
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size 2 is for --device ascend"),
        ({"max_model_len": 5000}, "--max-model-len"),
        ({"num_blocks": 2, "max_model_len": 512}, "--kv-cache-memory-bytes"),
        ({"block_size": 24}, "--block-size"),
    ],
)
async def test_a_start_that_cannot_work_says_why(broken, words):
    bridge = EngineBridge(config(**broken), silence_limit_s=30)
    with pytest.raises(ModelError, match=words):
        await bridge.start()
    await bridge.close()
    assert bridge._process.returncode == 1


async def test_close_ends_the_engine_and_open_streams():
    bridge = EngineBridge(config(), silence_limit_s=30)
    await bridge.start()
    stream = bridge.submit([request(max_tokens=1000)])
    await anext(stream)
    process = bridge._process
    await bridge.close()
    with pytest.raises(EngineDead):
        await collect(stream)
    assert process.returncode is not None
    with pytest.raises(EngineUnavailable):
        bridge.submit([request()])


async def test_a_draining_bridge_finishes_what_is_open_and_takes_nothing_new(bridge):
    stream = bridge.submit([request(max_tokens=20)])
    bridge.drain()
    with pytest.raises(EngineUnavailable):
        bridge.submit([request("late")])
    assert len(await collect(stream)) == 20


def start_engine():
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "engine.process", str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        stderr=subprocess.PIPE,
    )
    theirs.close()
    ours.settimeout(30)
    return ours, process


def test_the_engine_process_ends_with_its_server():
    ours, process = start_engine()
    ours.sendall(encode_frame(config()))
    assert ours.recv(1)
    ours.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_link_that_sends_garbage_is_not_trusted():
    ours, process = start_engine()
    ours.sendall(encode_frame(config()))
    ours.recv(1)
    ours.sendall(b"\xff" * 64)
    assert process.wait(30) == 1
    assert b"BadFrame" in process.stderr.read()
    process.stderr.close()
    ours.close()


def test_frames_survive_any_cut():
    messages = [request(str(i)) for i in range(5)]
    data = b"".join(map(encode_frame, messages))
    for size in (1, 3, 7, 100, len(data)):
        reader = FrameReader()
        frames = [f for start in range(0, len(data), size) for f in reader.feed(data[start : start + size])]
        assert frames == [encode_frame(message)[4:] for message in messages]
