"""A device that has too little memory, at load or in a step: both kinds of process say what it is and the way out."""

from __future__ import annotations

import socket
import time

import msgspec
import pytest
import torch

from engine import follower, process
from engine.config import CacheConfig, EngineConfig
from engine.parallel import Followers
from engine.rank_messages import FollowerStart, encode_copies
from engine.types import EngineFailed, EngineReady, Outbound
from engine.wire import FrameReader, encode_frame
from kernels.ops import Parallel, StepLimits

ERRORS = (
    torch.OutOfMemoryError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity)"),
    RuntimeError("NPU function error: aclrtMallocAlign32, error code is 207001"),
)
FLAGS = ("--kv-cache-memory-bytes (set it, if it is not)", "--max-num-batched-tokens", "--max-model-len")


class Broken:
    """An engine or a runner whose first step raises."""

    has_work = True

    def __init__(self, error):
        self._error = error

    def step(self):
        raise self._error

    def copy_blocks(self, _copies):
        raise self._error


@pytest.fixture
def sockets(monkeypatch):
    """The other end of a process that runs here, and the number of its own."""
    for module in (process, follower):
        monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    ours, theirs = socket.socketpair()
    number = theirs.detach()
    monkeypatch.setattr(process.sys, "argv", ["engine", str(number)])
    with ours:
        yield ours, number


def last_word(sock):
    sock.settimeout(5)
    frames = FrameReader().feed(sock.recv(1 << 16))
    return msgspec.msgpack.Decoder(Outbound).decode(frames[-1])


def assert_told(failure):
    assert isinstance(failure, EngineFailed)
    assert failure.expected
    assert "the device has not enough memory" in failure.message
    assert all(flag in failure.message for flag in FLAGS)


def loading(error, when, made):
    """What stands in for loading: it raises, or what it makes does later."""

    def load(*_):
        if when == "at load":
            raise error
        return made

    return load


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", ["at load", "in a step"])
def test_the_engine_says_that_the_device_is_full(monkeypatch, caplog, sockets, error, when):
    ours, _ = sockets
    ready = EngineReady("a", 1, 1, 1, 16, "b", "c", 1, 1)
    monkeypatch.setattr(process, "load_engine", loading(error, when, (Broken(error), ready)))
    monkeypatch.setattr(process, "refuse_stubs", lambda: None)
    ours.sendall(encode_frame(EngineConfig(model_path="")))
    assert process.main() == 1
    assert_told(last_word(ours))
    assert str(error) in caplog.text, "the log keeps how much was asked for, and where"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", ["at load", "in a step"])
def test_a_follower_says_so_too(monkeypatch, sockets, error, when):
    ours, number = sockets
    monkeypatch.setattr(follower, "load_part", loading(error, when, Broken(error)))
    monkeypatch.setattr(follower, "end_with", lambda *_: None)
    start = FollowerStart(EngineConfig(model_path=""), Parallel(1, 2, ""), CacheConfig(4, 16), StepLimits(4, 4, 64))
    ours.sendall(encode_frame(start))
    if when == "in a step":
        monkeypatch.setattr(follower, "return_freed_memory", lambda: ours.sendall(encode_copies([(0, 1)])))
    assert follower.main(number) == 1
    assert_told(last_word(ours))


def test_other_errors_are_still_unforeseen():
    failure = process.failure_of(RuntimeError("error code is 507015"))
    assert (failure.expected, failure.message[:21]) == (False, "RuntimeError; 507015:")


@pytest.mark.parametrize("error", ERRORS)
def test_no_other_rank_is_waited_for_or_blamed(error):
    began_s = time.monotonic()
    with pytest.raises(RuntimeError) as caught, Followers().blamed():
        raise error
    assert caught.value is error
    assert time.monotonic() - began_s < 1
