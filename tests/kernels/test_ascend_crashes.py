"""A compiler that dies of a signal is asked again; one that refuses is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kernels.ascend.crashes import TRIES, crashes_survived


def dying(times, *, of="os.kill(os.getpid(), signal.SIGSEGV)"):
    """A function that calls a program, which dies so many times before it does what it should."""
    calls = []

    def run():
        calls.append(None)
        what = of if len(calls) <= times else "print('compiled')"
        program = [sys.executable, "-c", f"import os, signal, sys; {what}"]
        try:
            return subprocess.run(program, check=True, capture_output=True, text=True, env=os.environ).stdout
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"stage failed: {error}")  # noqa: B904  (as triton does)

    return run, calls


@pytest.mark.parametrize("times", [0, 1, TRIES - 1])
def test_a_program_that_crashes_is_called_again(times):
    run, calls = dying(times)
    assert crashes_survived(run) == "compiled\n"
    assert len(calls) == times + 1


def test_one_that_always_crashes_is_given_up():
    run, calls = dying(TRIES)
    with pytest.raises(RuntimeError, match=r"died with <Signals\.SIGSEGV: 11>"):
        crashes_survived(run)
    assert len(calls) == TRIES


@pytest.mark.parametrize(
    ("how", "said"), [("sys.exit(1)", "exit status 1"), ("os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM")]
)
def test_what_is_refused_or_ended_on_purpose_is_not_asked_for_again(how, said):
    run, calls = dying(1, of=how)
    with pytest.raises(RuntimeError, match=said):
        crashes_survived(run)
    assert len(calls) == 1
