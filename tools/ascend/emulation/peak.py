"""How much memory something takes at its peak on this machine's processor, by torch's own account of what it allots."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile

QUIET = "99"
"""A level that none of the profiler's own messages have."""


def peak_bytes(run: Callable[[], None]) -> int:
    """Run it: the most bytes of tensors that were allotted within it and not yet given back, operations' own included.

    What is given back within it, but was there before, is taken off.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    results = profiled.profiler.kineto_results if profiled.profiler else None
    changes = [int(event.nbytes()) for event in (results.events() if results else ()) if event.name() == "[memory]"]
    return max(accumulate(changes, initial=0))
