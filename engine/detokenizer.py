"""Token ids to text, one token at a time, and the stop strings that end an answer.

Each ``Sequence`` owns one ``IncrementalDetokenizer``. Invariants: the pieces it returns, joined, are the text of all
tokens (``Tokenizer.decode``) up to the first stop string; no piece holds part of a character or of a stop string; and
where tokens begin and end makes no difference. The stop string that is complete first counts; of several that are
complete with the same character, the longest. Time is linear in the text, whatever the stop strings.
"""

from __future__ import annotations

from codecs import utf_8_decode
from functools import lru_cache
from typing import Protocol


class Vocabulary(Protocol):
    """What is needed of a ``TokenTable`` (or of a whole ``Tokenizer``)."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token."""

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, which adds nothing to an answer."""


class IncrementalDetokenizer:
    """One answer's text.

    Attributes:
        stopped: the stop string that ended the text, or None. Once it is set, nothing more is shown.
    """

    __slots__ = ("_held", "_is_special", "_shown", "_stops", "_token_bytes", "_undecoded", "stopped")

    def __init__(self, vocabulary: Vocabulary, stop: tuple[str, ...], shown_ids: tuple[int, ...] = ()) -> None:
        """``shown_ids``: control tokens whose text is part of the answer's."""
        self.stopped: str | None = None
        self._shown = frozenset(shown_ids)
        self._token_bytes = vocabulary.token_bytes
        self._is_special = vocabulary.is_special
        self._stops = StopMatcher(stop) if stop else None
        self._undecoded = b""
        self._held = ""

    def push(self, token_id: int, *, is_forced: bool = False) -> str:
        """Take a token; return the text that may be shown now, which may be none.

        What the model did not choose is no stop string, nor part of one.
        """
        shown = self.bytes_of(token_id)
        if not shown:
            return ""
        data = self._undecoded + shown
        text, num_decoded = utf_8_decode(data, "replace", False)
        self._undecoded = data[num_decoded:]
        if self._stops is None:
            return text
        return self._pass(text, self._stops) if is_forced else self._filter(text, self._stops)

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to the answer; nothing if it is a control token that is not shown."""
        if self._is_special(token_id) and token_id not in self._shown:
            return b""
        return self._token_bytes(token_id)

    def flush(self) -> str:
        """The answer has ended: return what was held back. The rest of a character becomes U+FFFD."""
        text, _ = utf_8_decode(self._undecoded, "replace", True)
        self._undecoded = b""
        if self._stops is not None:
            text = self._filter(text, self._stops)
        text, self._held = text + self._held, ""
        return text

    def _pass(self, text: str, stops: StopMatcher) -> str:
        """Show ``text``, and what may have been the beginning of a stop string, which it is not any more."""
        stops.reset()
        text, self._held = self._held + text, ""
        return text

    def _filter(self, text: str, stops: StopMatcher) -> str:
        """Cut ``text`` at a stop string, and hold back what may be the beginning of one."""
        if self.stopped is not None:
            return ""
        num_held = len(self._held)
        found = stops.feed(text)
        text = self._held + text
        if found is not None:
            end, self.stopped = found
            self._held = ""
            return text[: num_held + end - len(self.stopped)]
        shown = len(text) - stops.num_matched
        self._held = text[shown:]
        return text[:shown]


class StopMatcher:
    """Looks for stop strings in a text that comes in pieces.

    Each stop string is followed by its own Knuth-Morris-Pratt automaton, so a character costs a bounded number of steps
    on average, and none of the text has to be kept. Source: Knuth, Morris, Pratt 1977.

    Attributes:
        num_matched: how many characters at the end of the text so far may be the beginning of a stop string.
    """

    __slots__ = ("_first", "_states", "_stops", "num_matched")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.num_matched = 0
        self._stops = [(stop, _fallbacks(stop)) for stop in stops]
        self._states = [0] * len(stops)
        self._first = frozenset(stop[0] for stop in stops)

    def reset(self) -> None:
        """Forget what may have been the beginning of a stop string."""
        self.num_matched = 0
        self._states = [0] * len(self._stops)

    def feed(self, text: str) -> tuple[int, str] | None:
        """Take the next piece of the text.

        Returns:
            (how much of ``text`` lies before the end of the stop string, the stop string), or None.
        """
        if not self.num_matched and self._first.isdisjoint(text):
            return None
        for index, character in enumerate(text):
            if self.num_matched or character in self._first:
                found = self._step(character)
                if found:
                    return index + 1, found
        return None

    def _step(self, character: str) -> str:
        """Move every automaton by one character; return the longest stop string that this completes, or ""."""
        states, found = self._states, ""
        for i, (stop, fallbacks) in enumerate(self._stops):
            state = states[i]
            while state and stop[state] != character:
                state = fallbacks[state]
            if stop[state] == character:
                state += 1
                if state == len(stop):
                    state = fallbacks[state]
                    found = max(found, stop, key=len)
            states[i] = state
        self.num_matched = max(states)
        return found


@lru_cache(maxsize=64)
def _fallbacks(stop: str) -> tuple[int, ...]:
    """For each length of a matched prefix, the longest shorter prefix that the match also ends with."""
    fallbacks = [0, 0]
    state = 0
    for character in stop[1:]:
        while state and stop[state] != character:
            state = fallbacks[state]
        state += stop[state] == character
        fallbacks.append(state)
    return tuple(fallbacks)
