"""Calls whose name stands before their arguments: DeepSeek-V3 and V3.1, and Mistral's, which may be an array as well.

    [TOOL_CALLS]f[ARGS]{..}                                         with [CALL_ID]id before [ARGS], or without both
    [TOOL_CALLS][{"name": "f", "arguments": {..}}, ..]              as ``json_calls`` reads it
    <calls begin><call begin>function<sep>f, a fence around {..}<call end>...<calls end>             DeepSeek-V3
    <calls begin><call begin>f<sep>{..}<call end>...<calls end>                                      DeepSeek-V3.1

The name is certain where the arguments begin; in DeepSeek's forms, too, where the call ends without any.
"""

from __future__ import annotations

import re

from server.tools.answer import Answer
from server.tools.json_calls import MAX_NAME_CHARS, read_objects
from server.tools.json_scanner import read_json
from server.tools.source import Markers, Reading, Source

NAME = re.compile(r"[\w.-]+")
"""Part of a name that no quotes enclose. OpenAI's are of ASCII letters, digits, _ and -."""

TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
TOOL_SEP = "<｜tool▁sep｜>"
KIND = "function"
FENCE = "```"


class MistralCalls:
    """Calls of Mistral's models, in the forms of their tokenizers v2 to v13.

    Args:
        source: of the answer's text.
        answer: gets the calls.
    """

    openers = (TOOL_CALLS,)
    closers = ()
    _call_id = Markers(CALL_ID)
    _args = Markers(ARGS)
    _id = re.compile(r"[A-Za-z0-9]+")

    def __init__(self, source: Source, answer: Answer) -> None:
        self._source = source
        self._answer = answer

    def calls(self, opener: str) -> Reading[bool]:
        """See ``CallSyntax``."""
        source = self._source
        yield from source.blanks()
        if (yield from source.peek()) in ("{", "["):
            return (yield from read_objects(source, self._answer, source.skip(1), None))
        name = yield from source.run(NAME, MAX_NAME_CHARS)
        if not name:
            return False
        # Where control tokens are not shown, the arguments follow the name at once.
        if (yield from source.peek()) != "{" and not (yield from self._up_to_arguments()):
            return False
        yield from _open_with_arguments(source, self._answer, name)
        return True

    def _up_to_arguments(self) -> Reading[bool]:
        """Read what stands between a name and its arguments. Returns whether they come next."""
        source = self._source
        yield from source.blanks()
        if (yield from source.read(self._call_id)):
            yield from source.run(self._id, MAX_NAME_CHARS)
            yield from source.blanks()
        if not (yield from source.read(self._args)):
            return False
        yield from source.blanks()
        return (yield from source.peek()) == "{"


class DeepSeekCalls:
    """Calls of DeepSeek-V3, R1 and V3.1. Both forms are understood, whichever the model writes.

    Args:
        source: of the answer's text.
        answer: gets the calls.
    """

    openers = (CALLS_BEGIN, CALL_BEGIN)
    closers = (CALL_END, CALLS_END)
    _call_begin = Markers(CALL_BEGIN)
    _separator = Markers(TOOL_SEP)
    _end = Markers(CALL_END)
    _fence = Markers(FENCE)
    _language = re.compile(r"[a-z]+")

    def __init__(self, source: Source, answer: Answer) -> None:
        self._source = source
        self._answer = answer

    def calls(self, opener: str) -> Reading[bool]:
        """See ``CallSyntax``."""
        source = self._source
        if opener == CALLS_BEGIN:
            yield from source.blanks()
            if not (yield from source.read(self._call_begin)):
                return False
        name = yield from self._name()
        has_fence = (yield from source.read(self._fence)) == FENCE
        if has_fence:
            yield from source.run(self._language, len("json"))
            yield from source.blanks()
        if name and (yield from source.peek()) == "{":
            yield from _open_with_arguments(source, self._answer, name)
            if has_fence:
                yield from self._end_of_fence()
            return True
        if name and not has_fence and (yield from source.ahead(self._end)):
            source.drop()
            self._answer.open_call(name)
            self._answer.arguments("{}")
            return True
        return False

    def _name(self) -> Reading[str]:
        """Read the call's kind, which can only be ``function`` and may be left out, and its name; "" without a name."""
        source = self._source
        yield from source.blanks()
        name = yield from source.run(NAME, MAX_NAME_CHARS)
        yield from source.blanks()
        if not (yield from source.read(self._separator)):
            return ""
        yield from source.blanks()
        named = yield from source.run(NAME, MAX_NAME_CHARS)
        yield from source.blanks()
        return name if not named else named if name == KIND else ""

    def _end_of_fence(self) -> Reading[None]:
        source = self._source
        source.hold()
        yield from source.blanks()
        if (yield from source.read(self._fence)):
            source.drop()


def _open_with_arguments(source: Source, answer: Answer, name: str) -> Reading[None]:
    """The name is certain, and its arguments come next."""
    source.drop()
    answer.open_call(name)
    yield from read_json(source, answer.arguments)
