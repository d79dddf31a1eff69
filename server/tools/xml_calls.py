"""Calls whose parameters stand between tags: Qwen3-Coder, Seed-OSS and GLM-4.5.

    <tool_call><function=f><parameter=k>value</parameter></function></tool_call>                     Qwen3-Coder
    <seed:tool_call>, else the same                                                                 Seed-OSS
    <tool_call>f<arg_key>k</arg_key><arg_value>value</arg_value></tool_call>                         GLM-4.5

JSON is made of them. A parameter of type string comes out as it comes in; of another, when it has ended: only then is
it known whether the text is what the schema wants, or has to be a string all the same. Whitespace between tags is
markup; other text between parameters is content, and the call goes on. It ends with its tag, or where its block ends or
another one begins. ``</parameter>`` ends a value wherever it stands, since the formats know no escapes; where a model
forgets it, the next parameter's tag on a line of its own does, or the ends of function and block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from server.tools.answer import Answer
from server.tools.json_calls import MAX_NAME_CHARS
from server.tools.named_calls import NAME
from server.tools.parts import Tool
from server.tools.source import Markers, Reading, Source
from server.tools.typed_values import ParameterTypes, TypedValue

IN_TAG = re.compile(r"[^<>\r\n]+")
"""Part of a name that a tag holds."""


@dataclass(frozen=True)
class Tags:
    """What a family writes.

    Attributes:
        block, block_end: around a call.
        function: within the block, before the name; "" if the name comes at once.
        name_end: after the name; "" if the name ends where the first parameter or the call's end begins.
        function_end: ends the call.
        key, key_end: around a parameter's name.
        value: opens a parameter's value; "" if the end of the name does.
        value_end: ends it.
        is_on_lines: whether values stand on lines of their own, so that a newline at the beginning and one at the end
            are not theirs; None if that is to be taken so where there is one at the beginning.
    """

    block: str
    block_end: str
    function: str
    name_end: str
    function_end: str
    key: str
    key_end: str
    value: str
    value_end: str
    is_on_lines: bool | None

    @property
    def has_function(self) -> bool:
        """Whether the function has tags of its own."""
        return bool(self.function)


QWEN3_CODER = Tags(
    block="<tool_call>",
    block_end="</tool_call>",
    function="<function=",
    name_end=">",
    function_end="</function>",
    key="<parameter=",
    key_end=">",
    value="",
    value_end="</parameter>",
    is_on_lines=True,
)
SEED_OSS = replace(QWEN3_CODER, block="<seed:tool_call>", block_end="</seed:tool_call>", is_on_lines=None)
GLM_4_5 = Tags(
    block="<tool_call>",
    block_end="</tool_call>",
    function="",
    name_end="",
    function_end="</tool_call>",
    key="<arg_key>",
    key_end="</arg_key>",
    value="<arg_value>",
    value_end="</arg_value>",
    is_on_lines=False,
)


class XmlCalls:
    """Calls in tags.

    Args:
        source: of the answer's text.
        answer: gets the calls.
        tags: of the family.
        tools: whose schemas give the parameters their types; parameters of other functions are strings.
    """

    def __init__(self, source: Source, answer: Answer, tags: Tags, tools: Iterable[Tool]) -> None:
        self._source = source
        self._answer = answer
        self._tags = tags
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self.openers: tuple[str, ...] = (tags.block, tags.function) if tags.has_function else (tags.block,)
        self.closers: tuple[str, ...] = (tags.block_end,) if tags.has_function else ()
        self._between = Markers(tags.key, tags.function_end, *self.openers, *self.closers)
        self._ends = Markers(*value_ends(tags))
        self._ends_on_line = Markers("\n" + tags.value_end, *value_ends(tags))

    def calls(self, opener: str) -> Reading[bool]:
        """See ``CallSyntax``."""
        source, tags = self._source, self._tags
        name = yield from self._name_in_function(opener) if tags.has_function else self._name_in_block()
        if not name:
            return False
        source.drop()
        self._answer.open_call(name)
        types = ParameterTypes(self._schemas.get(name))
        before = "{"
        while (yield from self._next_marker()) == tags.key:
            key = yield from self._key()
            if not key:
                self._answer.content(source.release())
                continue
            source.drop()
            self._answer.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            if not (yield from self._value(types.of(key))):
                return True
        if (yield from source.peek()):  # the end of the function, or what implies it
            yield from source.read(Markers(tags.function_end))
            source.drop()
            self._answer.arguments("{}" if before == "{" else "}")
        return True

    def _name_in_function(self, opener: str) -> Reading[str]:
        source, tags = self._source, self._tags
        if opener == tags.block:
            yield from source.blanks()
            if not (yield from source.read(Markers(tags.function))):
                return ""
        name = yield from source.run(IN_TAG, MAX_NAME_CHARS)
        return name.strip() if (yield from source.read(Markers(tags.name_end))) else ""

    def _name_in_block(self) -> Reading[str]:
        source, tags = self._source, self._tags
        yield from source.blanks()
        name = yield from source.run(NAME, MAX_NAME_CHARS)
        yield from source.blanks()
        return name if (yield from source.ahead(Markers(tags.key, tags.function_end))) else ""

    def _next_marker(self) -> Reading[str]:
        """Go on to what comes after a parameter, or before the first; held until it is known to belong to the call."""
        source = self._source
        source.hold()
        yield from source.blanks()
        marker = yield from source.ahead(self._between)
        if not marker:
            self._answer.content(source.release())
            marker = yield from source.until(self._between, self._answer.content)
            source.hold()
        return marker

    def _key(self) -> Reading[str]:
        """Read a parameter's name, up to where its value begins; "" if that cannot be done."""
        source, tags = self._source, self._tags
        source.skip(len(tags.key))
        key = yield from source.run(IN_TAG, MAX_NAME_CHARS)
        if not (yield from source.read(Markers(tags.key_end))):
            return ""
        if tags.value:
            yield from source.blanks()
            if not (yield from source.read(Markers(tags.value))):
                return ""
        return key.strip()

    def _value(self, types: frozenset[str]) -> Reading[bool]:
        """Read a value and what ends it. Returns whether it has an end."""
        source = self._source
        value = TypedValue(types, self._answer.arguments)
        is_on_line = self._tags.is_on_lines
        if is_on_line is not False and (yield from source.peek()) == "\n":
            source.skip(1)
            is_on_line = True
        end = yield from source.until(self._ends_on_line if is_on_line else self._ends, value.feed)
        if not end:
            value.cut_off()
            return False
        value.end()
        source.skip(len(end) if end.endswith(self._tags.value_end) else len("\n"))
        return True


def value_ends(tags: Tags) -> tuple[str, ...]:
    """What ends a value, wherever it stands."""
    if not tags.has_function:
        return (tags.value_end,)
    return tags.value_end, f"\n{tags.key}", f"\n{tags.function_end}\n{tags.block_end}"
