"""A pool of native threads is for one call at a time, in the process that made it; others are refused.

What is tested ends in waiting for ever where it fails, so each test is a process with a time limit.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.backends import DEVICES

pytestmark = pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")

BEGIN = """
import os, signal, threading
import numpy as np
from kernels.cpu.abi import MAX_PROGRAM, Batch, Op
from kernels.cpu.library import load_library
from kernels.cpu.lowering import one_call
from kernels.cpu.memory import address

library = load_library()
library.use(library.isas().split()[0])
x, best = np.arange(1 << 16, dtype=np.float32), np.zeros(1, dtype=np.int32)
short = one_call(Op.ARGMAX, 0, address(x), len(x), len(x), address(best))
long = np.repeat(short, MAX_PROGRAM)
pool = library.pool_new(2)

def call(program, pool=pool):
    try:
        return library.run(pool, address(program), len(program), Batch(num_tokens=1))
    except ValueError as error:
        return str(error)

assert call(short) == 0
assert best == len(x) - 1
"""

TWO_THREADS = """
BUSY = "pool: in use by another call"

seen = threading.Event()

def keep_busy():
    while not seen.is_set():
        call(long)

other = threading.Thread(target=keep_busy)
other.start()
results = {call(short)}
while BUSY not in results:
    results.add(call(short))
assert results <= {0, BUSY}, results
another = library.pool_new(2)
assert call(short, another) == 0
seen.set()
other.join()
assert call(one_call(99, 0)).startswith("program: ")
assert call(short) == 0
"""

FORK = """
child = os.fork()
if child == 0:
    signal.alarm(30)
    refused = call(short)
    best[0] = 0
    works = call(short, library.pool_new(2)) == 0 and best == len(x) - 1
    library.pool_free(pool)
    print(refused + (", and" if works else ", but not"), "a new one works", flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child has waited for ever"
assert call(short) == 0
library.pool_free(pool)
"""


def run(script):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_threads_call_is_refused_and_another_pool_is_not_in_the_way():
    run(TWO_THREADS)


def test_a_forks_call_is_refused_and_a_pool_of_its_own_works():
    told = "pool: made by another process; this one must make its own, and a new one works"
    assert run(FORK).strip() == told
