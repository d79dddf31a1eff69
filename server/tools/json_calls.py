"""Calls that are JSON objects: Hermes and Qwen, Llama 3, and Mistral's array. Name and arguments are members.

    <tool_call>{"name": "f", "arguments": {..}}</tool_call>         or several objects, or an array of them
    {"name": "f", "parameters": {..}}; {"name": "g", ...}           Llama 3, with or without <|python_tag|>

Both "arguments" and "parameters" are understood, before the name too, which holds them back until it comes. A second
one breaks the call, and so does a second name. Other members ("type", "id") are passed over. A call without arguments,
or with null or an empty string for them, has "{}". Arguments that are an object written as a string come out as the
object, when the string has ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable
from enum import Enum

from server.tools.answer import Answer
from server.tools.call_reader import SEPARATORS
from server.tools.json_scanner import WORD, JsonScanner, read_json
from server.tools.parts import Tool
from server.tools.source import WHITESPACE, Reading, Source

MAX_NAME_CHARS = 256
"""Of a name or a key. OpenAI allows 64; a text that goes on for longer is none, and need not be held back."""
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_BRACKETS = ("{", "[")
_BARE_KEYS = ("type", "id", "name", "arguments", "parameters")


class Outcome(Enum):
    """What became of an object that may be a call."""

    NO_CALL = "no call"
    BROKEN = "broken"
    COMPLETE = "complete"


class CallObject:
    """One object, after its opening brace.

    Args:
        source: holds what may turn out to be no call.
        answer: gets the call.
        names: of the tools, where an object is a call only if it calls one of them, and has no unusual members.
    """

    def __init__(self, source: Source, answer: Answer, names: Container[str] | None) -> None:
        self._source = source
        self._answer = answer
        self._names = names
        self._is_open = False
        self._early: list[str] | None = None  # arguments that came before the name
        self._has_arguments = False

    def read(self) -> Reading[Outcome]:
        """Read up to the closing brace, or to what does not belong there.

        A call that is complete is no longer held. Otherwise the source holds what does not belong to its arguments.
        """
        source = self._source
        comma = True
        while True:
            yield from source.blanks()
            following = yield from source.peek()
            if following == "}" and self._is_open:
                source.skip(1)
                source.drop()
                if not self._has_arguments:
                    self._answer.arguments("{}")
                return Outcome.COMPLETE
            if not comma or not (yield from self._member()):
                return Outcome.BROKEN if self._is_open else Outcome.NO_CALL
            yield from source.blanks()
            comma = (yield from source.peek()) == ","
            if comma:
                source.skip(1)

    def _member(self) -> Reading[bool]:
        """Read a member. Returns whether it is whole, and may be in a call."""
        source = self._source
        key = yield from self._plain_string()
        yield from source.blanks()
        if key is None or (yield from source.peek()) != ":":
            return False
        source.skip(1)
        yield from source.blanks()
        if key == "name":
            return (yield from self._name())
        if key in ("arguments", "parameters"):
            return (yield from self._arguments())
        if self._names is not None and not self._is_open and key not in _BARE_KEYS:
            return False
        is_whole = yield from read_json(source, _ignore)
        if is_whole:
            self._accept()
        return is_whole

    def _accept(self) -> None:
        """What was read belongs to the call, if it is one."""
        if self._is_open:
            self._source.drop()
            self._source.hold()

    def _name(self) -> Reading[bool]:
        name = yield from self._plain_string()
        if not name or self._is_open or (self._names is not None and name not in self._names):
            return False
        self._answer.open_call(name)
        self._is_open = True
        self._accept()
        if self._early is not None:
            self._answer.arguments("".join(self._early))
            self._early = None
        return True

    def _arguments(self) -> Reading[bool]:
        source = self._source
        first = yield from source.peek()
        if self._has_arguments or not first or not (first in '{["' or WORD.match(first)):
            return False
        self._has_arguments = True
        if not self._is_open:
            self._early = []
            return (yield from read_arguments(source, first, self._early.append))
        source.drop()
        is_whole = yield from read_arguments(source, first, self._answer.arguments)
        source.hold()
        return is_whole

    def _plain_string(self) -> Reading[str | None]:
        """Read a string without escapes, such as names and keys are; None if something else comes."""
        source = self._source
        if (yield from source.peek()) != '"':
            return None
        source.skip(1)
        text = yield from source.run(_PLAIN, MAX_NAME_CHARS)
        if (yield from source.peek()) != '"':
            return None
        source.skip(1)
        return text


def read_arguments(source: Source, first: str, sink: Callable[[str], None]) -> Reading[bool]:
    """Read the value of a call's arguments, which begins with ``first`` (unread), giving it to ``sink``.

    Returns:
        Whether it is complete.
    """
    if first in "{[":
        return (yield from read_json(source, sink))
    pieces: list[str] = []
    is_whole = yield from read_json(source, pieces.append)
    sink(_as_object("".join(pieces)) if is_whole else "".join(pieces))
    return is_whole


def _as_object(value: str) -> str:
    """What a string or a word stands for as arguments."""
    if value == "null":
        return "{}"
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value).strip(WHITESPACE)
        text.encode()
    except ValueError:
        return value
    if not text:
        return "{}"
    scanner = JsonScanner()
    pieces: list[str] = []
    end = scanner.scan(text, 0, pieces.append)
    return "".join(pieces) if text.startswith("{") and scanner.is_complete and end == len(text) else value


def _ignore(text: str) -> None:
    """What nobody needs."""


def read_objects(source: Source, answer: Answer, bracket: str, names: Container[str] | None) -> Reading[bool]:
    """Read calls after a first bracket: "{", or "[" that begins an array of them. Separators are what models write.

    Args:
        source: holds what may turn out to be no call.
        answer: gets the calls.
        bracket: which of the two, read already.
        names: as of ``CallObject``.

    Returns:
        As ``CallSyntax.calls``.
    """
    if bracket == "[":
        yield from source.blanks()
        if (yield from source.peek()) != "{":
            return False
        source.skip(1)
    has_call = False
    while True:
        outcome = yield from CallObject(source, answer, names).read()
        has_call = has_call or outcome is not Outcome.NO_CALL
        if outcome is not Outcome.COMPLETE:
            if has_call:
                answer.content(source.release())
            return has_call
        source.hold()
        yield from source.run(SEPARATORS)
        following = yield from source.peek()
        if following == "]" and bracket == "[":
            source.skip(1)
            source.drop()
            return True
        if following != "{":
            return True
        source.skip(1)


class JsonCalls:
    """Calls in a block of their own, or bare in the text.

    Args:
        source: of the answer's text.
        answer: gets the calls.
        opener: of a block.
        closer: of a block; None if there is none.
        bare: of these tools, where an object (or an array) may be a call with no marker before it. It must call one of
            them then: any other is the answer's own text.
    """

    def __init__(
        self,
        source: Source,
        answer: Answer,
        *,
        opener: str,
        closer: str | None = None,
        bare: Iterable[Tool] | None = None,
    ) -> None:
        self._source = source
        self._answer = answer
        self._names = None if bare is None else frozenset(tool.name for tool in bare)
        self.openers: tuple[str, ...] = (opener,) if bare is None else (opener, *_BRACKETS)
        self.closers: tuple[str, ...] = () if closer is None else (closer,)

    def calls(self, opener: str) -> Reading[bool]:
        """See ``CallSyntax``."""
        source = self._source
        if opener in _BRACKETS:
            return (yield from read_objects(source, self._answer, opener, self._names))
        yield from source.blanks()
        if (yield from source.peek()) not in _BRACKETS:
            return False
        return (yield from read_objects(source, self._answer, source.skip(1), None))
