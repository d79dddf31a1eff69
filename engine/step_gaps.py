"""How long Python takes from the native code of one step to that of the next, counted by size.

Owned by the engine. A gap is what a step took beyond its native code: choosing tokens, their text, the message to the
server, the look into the inbox, the next plan and batch, and whatever else the processor did meanwhile. While the
engine has no requests it waits for some, and that is no gap.
"""

from __future__ import annotations

from bisect import bisect_left

from engine.types import GAP_BOUNDS_S


class StepGaps:
    """Counts since the engine was made.

    Attributes:
        counts: gaps up to each of ``GAP_BOUNDS_S``, those up to the bound before left out, and the longer ones.
        total_s: all gaps together.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_BOUNDS_S) + 1)
        self.total_s = 0.0
        self._last: tuple[float, float] | None = None

    def step(self, now_s: float, native_s: float) -> None:
        """A step has computed; nothing is counted without native code, which this is the time between.

        Args:
            now_s: the clock's time, at the same point of every step.
            native_s: seconds by the same clock that native code has run so far.
        """
        if self._last is not None:
            last_now_s, last_native_s = self._last
            in_native_s = native_s - last_native_s
            if in_native_s > 0:
                gap_s = now_s - last_now_s - in_native_s
                self.counts[bisect_left(GAP_BOUNDS_S, gap_s)] += 1
                self.total_s += gap_s
        self._last = (now_s, native_s)

    def idle(self) -> None:
        """There is nothing to do: the time until the next step is no gap."""
        self._last = None
