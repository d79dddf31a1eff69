"""How many requests may be open at once.

Called by the routes before any rendering or tokenising, so that a burst costs the server nothing but refusals.
Invariant: the number of reserved requests never exceeds the limit, and every reservation is given back exactly once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from engine.errors import InvalidRequest
from server.errors import Overloaded


class Admission:
    """A count of open requests with a limit; used on one event loop, so a check and a count are one step."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._num_open = 0

    @property
    def num_open(self) -> int:
        """Requests reserved now."""
        return self._num_open

    @contextlib.contextmanager
    def reserve(self, num_requests: int) -> Iterator[None]:
        """Hold places for ``num_requests`` while the body runs.

        Raises:
            InvalidRequest: more than the server ever admits at once.
            Overloaded: no place is left now.
        """
        if num_requests > self._max_open:
            raise InvalidRequest(
                f"This asks for {num_requests} answers at once, and the server admits {self._max_open}; "
                "send fewer prompts or a smaller n.",
                param="n",
            )
        if self._num_open + num_requests > self._max_open:
            raise Overloaded
        self._num_open += num_requests
        try:
            yield
        finally:
            self._num_open -= num_requests
