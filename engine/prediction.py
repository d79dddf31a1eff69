"""What an answer is likely to be, beside the answer as it comes: which tokens to try next.

A request may come with a prediction: the code that is to be edited, the text that is to be corrected. ``Sequence``
owns one ``Prediction`` and tells it every token. Where the two go together, the tokens that the prediction has next are
worth a try in the same step: the engine takes those that come anyway. Where they part, the place is looked for again:
near where they parted by a single token, farther off by three in a row.

What is tried depends on the prediction and the answer alone. Work is bounded for each token, and linear over all.
"""

from __future__ import annotations

from bisect import bisect_left

MOST_DRAFTS = 16
"""Tokens that are tried at once with the last one known."""
FIRST_DRAFTS = 4
"""Tokens that are tried where the answer begins, and nothing is known of how good the prediction is."""
NEAR = 16
"""How far from where they parted a single token is enough to go on by."""
RUN = 3
"""Tokens in a row that are enough anywhere, and that make a place certain."""
READ_AHEAD = 128
"""Tokens of the prediction that are made ready to be found for each token of the answer that is not where it should be:
some 25 us."""

_TRIED, _CAME = 1, 2


class Prediction:
    """How far one answer has come in its prediction.

    Args:
        token_ids: the prediction; at least one.
    """

    def __init__(self, token_ids: tuple[int, ...]) -> None:
        self._ids = token_ids
        self._marks = bytearray(len(token_ids))
        self._place = 0
        self._is_placed = True
        self._certain = 0  # the place up to which the answer is known to have come
        self._run = RUN  # tokens in a row that came as expected
        self._trust = FIRST_DRAFTS
        self._last: tuple[int, ...] = ()
        self._found: dict[tuple[int, ...], list[int]] = {}
        self._num_read = 0

    @property
    def num_accepted(self) -> int:
        """Tokens of the prediction that came where they were expected."""
        return self._marks.count(_CAME)

    @property
    def num_rejected(self) -> int:
        """Tokens of the prediction that were tried, and have not come."""
        return self._marks.count(_TRIED)

    def drafts(self) -> tuple[int, ...]:
        """What may come next, as far as it is worth a try: up to ``MOST_DRAFTS`` tokens."""
        if not self._is_placed:
            return ()
        return self._ids[self._place : self._place + self._trust]

    def note_tried(self, count: int) -> None:
        """So many of ``drafts`` are tried, before the answer goes on."""
        for place in range(self._place, self._place + count):
            self._marks[place] = self._marks[place] or _TRIED

    def note(self, token_id: int) -> None:
        """The answer goes on by a token."""
        self._last = (*self._last, token_id)[-RUN:]
        if self._expected() == token_id:
            self._marks[self._place] = _CAME
            self._place += 1
            self._run += 1
            self._trust = min(2 * self._trust + 1, MOST_DRAFTS)
            if self._run >= RUN:
                self._certain = self._place
            return
        if self._is_placed:
            self._trust //= 4
        self._look_for(token_id)

    def _expected(self) -> int | None:
        """The token that comes next if the answer goes on as the prediction does."""
        return self._ids[self._place] if self._is_placed and self._place < len(self._ids) else None

    def _look_for(self, token_id: int) -> None:
        """Find where the answer goes on in the prediction: by its last tokens, else near where it was by the last."""
        self._read_on()
        places = self._found.get(self._last, ())
        if places:
            next_ = bisect_left(places, self._certain)
            self._put(places[next_ if next_ < len(places) else -1], run=RUN)
            return
        try:
            self._put(self._ids.index(token_id, self._certain, self._certain + NEAR) + 1, run=0)
        except ValueError:
            self._is_placed = False

    def _put(self, place: int, *, run: int) -> None:
        self._place, self._run, self._is_placed = place, run, True
        if run >= RUN:
            self._certain = place

    def _read_on(self) -> None:
        """Make some more of the prediction ready to be found: where runs of tokens end in it."""
        end = min(self._num_read + READ_AHEAD, len(self._ids) - RUN + 1)
        for start in range(self._num_read, end):
            self._found.setdefault(self._ids[start : start + RUN], []).append(start + RUN)
        self._num_read = max(end, self._num_read)
