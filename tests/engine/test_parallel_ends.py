"""Every end that tensor parallel processes can have: with a reason that names the rank, soon, and with none left."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from engine.config import CacheConfig, EngineConfig
from engine.errors import ConfigError, FollowerFailed
from engine.parallel import Followers
from engine.process import why
from engine.types import (
    EngineFailed,
    EngineReady,
    GenerateRequest,
    LoadProgress,
    Outbound,
    SamplingParams,
    StepOutput,
    TokenDelta,
)
from engine.wire import FrameReader, encode_frame
from kernels.ops import StepLimits
from tests.support.ascend_links import link
from tests.support.emulated_rank import ENGINE, ENVIRONMENT
from tests.support.judge import make_checkpoint
from tests.support.processes import are_gone, children
from tests.support.tiny_models import GOLDEN, TINY_VOCAB_SIZE

SOON_S = 6.0
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(transformers.Qwen3Config, folder, vocab_size=TINY_VOCAB_SIZE, head_dim=32)
    shutil.copy(GOLDEN / "tiny-mistral" / "tokenizer.json", folder)
    return folder


class EngineProcess:
    """Rank 0 as its server has it: at the other end of a socket."""

    def __init__(self, folder, **options):
        self._socket, theirs = socket.socketpair()
        self._reader, self._frames = FrameReader(), []
        self._decoder = msgspec.msgpack.Decoder(Outbound)
        with theirs:
            number = theirs.fileno()
            environment = {**os.environ, **ENVIRONMENT}
            self.process = subprocess.Popen([*ENGINE, str(number)], pass_fds=(number,), env=environment)
        given = {"device": "ascend", "max_num_seqs": 2, "max_num_batched_tokens": 64, "num_blocks": 8, **options}
        self.send(EngineConfig(model_path=str(folder), max_model_len=512, tensor_parallel_size=2, eager=True, **given))

    def send(self, message):
        self._socket.sendall(encode_frame(message))

    def receive(self, within_s=60.0):
        """The next message; None when the engine has closed its end."""
        self._socket.settimeout(within_s)
        while not self._frames:
            data = self._socket.recv(1 << 16)
            if not data:
                return None
            self._frames += self._reader.feed(data)
        return self._decoder.decode(self._frames.pop(0))

    def until(self, kind, within_s=60.0):
        """The next message of a kind, and those before it."""
        before, deadline_s = [], time.monotonic() + within_s
        while True:
            message = self.receive(max(deadline_s - time.monotonic(), 0.001))
            assert message is not None, before[-3:]
            if isinstance(message, kind):
                return message, before
            before.append(message)

    def followers(self):
        return [pid for pid, line in children(self.process.pid).items() if "follower" in line]

    def close(self):
        self._socket.close()

    def kill(self):
        pids = self.followers()
        self.process.kill()
        self.process.wait()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.close()


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    """Where an engine that is started later puts its temporary files."""
    folder = tmp_path / "with a space"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def start(model):
    engines = []

    def make(**options):
        engines.append(EngineProcess(model, **options))
        return engines[-1]

    yield make
    for engine in engines:
        if engine.process.poll() is None:
            engine.kill()
        engine.close()


@pytest.fixture
def engine(start):
    """One that is ready, and its only follower."""
    started = start()
    ready, before = started.until(EngineReady)
    assert all(isinstance(message, LoadProgress) for message in before)
    assert before[-1].done_bytes == before[-1].total_bytes == ready.weights_bytes
    (follower,) = started.followers()
    return started, follower


def ask(engine, name, max_tokens):
    engine.send(GenerateRequest(name, PROMPT, SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)))


def tokens_of(message):
    deltas: list[TokenDelta] = message.deltas if isinstance(message, StepOutput) else []
    return [token for delta in deltas for token in delta.token_ids]


class TestOverTheEmulation:
    pytestmark = link(5)

    @pytest.mark.parametrize("busy", [False, True])
    def test_a_follower_that_is_killed_ends_the_engine_with_its_rank_and_signal(self, engine, busy):
        """Amid steps rank 0 then waits for ever in native code: see ``emulated_rank``."""
        process, follower = engine
        if busy:
            ask(process, "long", 400)
            while not tokens_of(process.receive()):
                pass
        os.kill(follower, signal.SIGKILL)
        began_s = time.monotonic()
        failed, _ = process.until(EngineFailed, SOON_S)
        assert failed.message == "rank 1 of the tensor parallel processes failed: it ended with signal 9"
        assert not failed.expected
        assert process.process.wait(SOON_S) == 1
        assert time.monotonic() - began_s < SOON_S
        assert are_gone([follower], 0)

    def test_an_engine_that_is_killed_amid_steps_takes_its_followers_with_it(self, own_tmp, engine):
        process, follower = engine
        ask(process, "long", 400)
        while not tokens_of(process.receive()):
            pass
        process.process.kill()
        process.process.wait()
        assert are_gone([follower], SOON_S)
        assert list(own_tmp.iterdir()) == []

    def test_all_end_with_their_server_and_not_by_ctrl_c_which_is_the_servers_to_handle(self, engine):
        process, follower = engine
        for pid in (process.process.pid, follower):
            os.kill(pid, signal.SIGINT)
        ask(process, "answered", 3)
        assert sum(len(tokens_of(process.receive())) for _ in range(4)) == 3
        process.close()
        assert process.process.wait(SOON_S) == 0
        assert are_gone([follower], SOON_S)

    def test_an_engine_that_is_killed_while_all_load_leaves_none(self, start, own_tmp):
        """Neither processes nor files: so a server ends it whose start is broken off."""
        process = start()
        process.until(LoadProgress)
        deadline_s = time.monotonic() + SOON_S
        while not process.followers():
            assert time.monotonic() < deadline_s
        pids = process.followers()
        process.process.kill()
        process.process.wait()
        assert are_gone(pids, 2 * SOON_S)
        assert list(own_tmp.iterdir()) == []

    def test_a_follower_that_is_killed_while_all_load_ends_the_engine(self, start):
        process = start()
        deadline_s = time.monotonic() + 10 * SOON_S
        while not process.followers():
            assert time.monotonic() < deadline_s
        os.kill(process.followers()[0], signal.SIGKILL)
        failed, _ = process.until(EngineFailed, SOON_S)
        assert "rank 1" in failed.message
        assert process.process.wait(SOON_S) == 1


SAYS = """
import socket, sys
sys.path.insert(0, {root!r})
from engine.rank_messages import FollowerReady
from engine.types import EngineFailed, LoadProgress
from engine.wire import encode_frame
sock = socket.socket(fileno=int(sys.argv[1]))
sock.recv(1 << 16)
{what}
sock.recv(1)
"""


def saying(what):
    """A follower that says something once it has been told to start."""
    return (sys.executable, "-c", SAYS.format(root=str(Path(__file__).parents[2]), what=what))


def started(followers, size=3):
    config = EngineConfig(model_path="", tensor_parallel_size=size)
    followers.start(config, CacheConfig(4, 128), StepLimits(4, 4, 128))
    return followers


READY = "sock.sendall(encode_frame(LoadProgress(5, 10)) + encode_frame(FollowerReady()))"


def test_all_are_waited_for_and_asked_how_far_they_are():
    with Followers(command=saying(READY)) as followers:
        assert started(followers).progress(1, 10) >= (1, 30)
        followers.wait_until_ready(lambda: None)
        assert followers.progress(1, 10) == (1 + 5 + 5, 30)
        place = followers.leader(3)
        folder = Path(place.rendezvous.removeprefix("file://")).parent
        assert (place.rank, place.size, folder.stat().st_mode & 0o777) == (0, 3, 0o700)
    assert not folder.exists()


def temporary(monkeypatch, folder):
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("name", ["a#b", "a?b", "a\tb", "a\nb"])
def test_a_folder_that_torch_cannot_be_told_is_refused_by_name(monkeypatch, tmp_path, name):
    folder = temporary(monkeypatch, tmp_path / name)
    with Followers() as followers, pytest.raises(ConfigError, match="set TMPDIR") as caught:
        followers.leader(2)
    assert repr(str(folder)) in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "a%23b;c", "[a]&b=c@d:e", "ä\\"])
def test_torch_meets_in_the_file_that_it_is_told(monkeypatch, tmp_path, name):
    folder = temporary(monkeypatch, tmp_path / name)
    with Followers() as followers:
        store, _, _ = next(torch.distributed.rendezvous(followers.leader(1).rendezvous, 0, 1))
        store.set("key", "value")
        (made,) = folder.iterdir()
        assert (made / "rendezvous").stat().st_size > 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "words", "expected"),
    [
        ("sys.exit(7)", "it ended with exit code 7", False),
        ("sock.close(); __import__('time').sleep(60)", "it closed its socket", False),
        ("sock.sendall(encode_frame(EngineFailed('too large.', True)))", r"too large\.", True),
        ("sock.sendall(b'\\xff' * 8)", "BadFrame", False),
        ("sock.sendall(encode_frame('hello'))", "ValidationError", False),
    ],
)
def test_whoever_waits_is_told_why_one_failed(what, words, expected):
    with Followers(command=saying(what)) as followers:
        with pytest.raises(FollowerFailed, match=f"rank [12] .* failed: {words}") as caught:
            started(followers).wait_until_ready(lambda: None)
        assert caught.value.expected is expected
    assert not [line for line in children(os.getpid()).values() if what in line]


def test_a_failure_is_told_to_whoever_cannot_be_raised_in():
    told, came = [], threading.Event()

    def on_failure(failure):
        told.append(failure)
        came.set()

    with Followers(on_failure, saying(READY + "; sys.exit(4)")) as followers:
        started(followers)
        assert came.wait(SOON_S)
    assert "exit code 4" in str(told[0])


def test_nobody_is_told_of_followers_that_were_asked_to_end():
    told = []
    with Followers(told.append, saying(READY)) as followers:
        started(followers).wait_until_ready(lambda: None)
    time.sleep(1.5)
    assert told == []


def send_for_ever(followers):
    while True:
        followers.send(bytes(1 << 16))


def test_an_error_is_blamed_on_the_follower_that_failed_and_else_stays_itself():
    with Followers(command=saying(READY + "; sys.exit(4)")) as followers:
        with pytest.raises(FollowerFailed, match="exit code 4"), started(followers).blamed():
            raise RuntimeError("Connection closed by peer")
        with pytest.raises(FollowerFailed, match="exit code 4"):
            send_for_ever(followers)
    with Followers(command=saying(READY)) as followers:
        began_s = time.monotonic()
        with pytest.raises(MemoryError), started(followers).blamed():
            raise MemoryError
        assert time.monotonic() - began_s < 1
        with pytest.raises(RuntimeError, match="of another kind"), followers.blamed():
            raise RuntimeError("of another kind")


def test_one_that_does_not_end_is_killed():
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: __import__('time').sleep(1)"
    followers = started(Followers(command=saying(stubborn)), size=2)
    (follower,) = followers._followers
    followers.close()
    assert follower.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("NPU function error: aclrtSynchronizeStream, error code is 507015"), "RuntimeError; 507015: "),
        (KeyError("a name of 5070150 digits"), "KeyError; see the log"),
    ],
)
def test_an_error_with_an_ascend_code_says_what_it_means(error, words):
    assert why(error).startswith(words)
