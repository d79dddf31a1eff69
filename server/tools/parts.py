"""What an answer consists of, as parsers give it piece by piece, and what they need to know of a tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Tool:
    """A function that the client offers.

    Attributes:
        name: of the function.
        parameters: the JSON schema of its arguments, as the client sent it; None where it sent none.
    """

    name: str
    parameters: Mapping[str, object] | None = None


@dataclass
class CallDelta:
    """What a piece adds to a tool call.

    Attributes:
        index: of the call among the answer's, from 0.
        name: of the function, with the call's first delta; None with later ones.
        arguments: more of the arguments' JSON text.
    """

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass
class Parts:
    """What a piece of an answer adds: to its content and to its calls.

    Of each call there is one delta at most. Which came first in the text, content or calls, is not told.
    """

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class CallParser(Protocol):
    """Reads an answer that comes in pieces, of any size, cut anywhere. One for each answer.

    For every way to cut a text the parts add up to the same. It never raises, and takes time in proportion to the text.

    Nothing is lost. What is no call, or begins like one and is not, is content, character by character, and reading
    goes on where it broke; nothing of a call is given before its name is certain. Of a call that breaks later, the
    arguments so far stay as they are, and what does not belong to them is content. Left out of the content are the
    markup of calls, and whitespace at its beginning and end if a call comes before it or after it there.

    The name is the model's: it need not be that of a tool. Clients see what was called, as with OpenAI's own models,
    and answer with an error that the model can read.
    """

    def feed(self, text: str) -> Parts:
        """Take the next piece."""

    def finish(self, *, is_cut: bool = False) -> Parts:
        """The answer has ended: what was held back. Nothing may be fed from then on.

        Args:
            is_cut: it would have gone on. What was held back after a call begins markup then, and is no content.
        """
