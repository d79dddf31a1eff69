"""Link 5: Ctrl-C at a terminal where a tensor parallel server runs: nobody complains, and all of its processes end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest
import transformers

from engine.parallel import GRACE_S, STOP_S
from server.bridge import STOP_GRACE_S
from tests.support.ascend_links import REPOSITORY, link
from tests.support.emulated_rank import UPWELL
from tests.support.judge import make_checkpoint
from tests.support.processes import are_gone, children
from tests.support.tiny_models import GOLDEN, TINY_VOCAB_SIZE

pytestmark = link(5)

OPTIONS = ("--device", "ascend", "--tensor-parallel-size", "2", "--eager", "--port", "0")
CTRL_C = b"\x03"
IN_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
END_S = max(STOP_GRACE_S, STOP_S + GRACE_S)
"""What an engine has to end in, before its server kills it, and a follower before its engine does."""
GONE_S = 5.0
"""From when a process gave up its terminal, which ends with it, or a compiler lost who had called it."""
IMPORTS_S = 10.0
"""A follower that is started looks at its socket when it has imported what it needs."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any") / "model"
    make_checkpoint(transformers.Qwen3Config, folder, vocab_size=TINY_VOCAB_SIZE, head_dim=32)
    shutil.copy(GOLDEN / "tiny-mistral" / "tokenizer.json", folder)
    return folder


class Terminal:
    """A terminal of its own, in which a command runs in the foreground."""

    def __init__(self, *command):
        self._own, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=REPOSITORY,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self.shown = ""
        self.pids = set()

    def read_until(self, pattern, within_s=60.0):
        """What a pattern finds in all that has been shown; ends at the latest when the command does."""
        deadline_s = time.monotonic() + within_s
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline_s, self.shown
            self._look()
            if select.select([self._own], [], [], 0.02)[0]:
                self.shown += os.read(self._own, 1 << 16).decode()
        return found

    def read_rest(self, within_s):
        """The exit code, once nobody has the terminal any more."""
        deadline_s = time.monotonic() + within_s
        with contextlib.suppress(OSError):  # EIO: nobody has it
            while time.monotonic() < deadline_s:
                if select.select([self._own], [], [], 0.02)[0]:
                    self.shown += os.read(self._own, 1 << 16).decode()
        return self.process.wait(max(deadline_s - time.monotonic(), 0))

    def wait_for_processes(self, number, within_s=60.0):
        deadline_s = time.monotonic() + within_s
        while len(self.pids) < number:
            assert time.monotonic() < deadline_s, self.shown
            self._look()

    def _look(self):
        """Note the processes that have left this terminal's session, as engines do as soon as they are made."""
        for child in children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(child) != self.process.pid:
                    self.pids |= {child, *children(child)}

    def press(self, keys):
        self._look()
        os.write(self._own, keys)

    def close(self):
        for pid in (self.process.pid, *self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._own)


@pytest.fixture
def serve(model):
    terminals = []

    def start():
        terminals.append(Terminal(*UPWELL, "serve", str(model), *OPTIONS))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_a_stream_finishes_and_all_end(serve):
    terminal = serve()
    url = terminal.read_until(r"Ready on (http\S+)")[1]
    body = {"model": "model", "prompt": "hello", "max_tokens": 150, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        terminal.press(CTRL_C)
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert len(terminal.pids) >= 2, "an engine and a follower, and what compiled for them"
    assert terminal.read_rest(END_S) == 0
    assert "^CFinishing 1 open requests" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert are_gone(terminal.pids, GONE_S)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_start_is_broken_off_and_all_end(serve, num_processes):
    """As soon as there is an engine, and as soon as that has a follower."""
    terminal = serve()
    terminal.wait_for_processes(num_processes)
    terminal.press(CTRL_C)
    assert terminal.read_rest(IMPORTS_S + END_S) == 128 + signal.SIGINT
    assert terminal.shown.strip() == "^C"
    assert are_gone(terminal.pids, GONE_S)
