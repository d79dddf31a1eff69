"""What calls a model may make, as a grammar: written in the way of its family, so that its own parser reads them.

Called by ``server.chosen_tools`` for a request whose calls are to be held to something. Every answer that a grammar
allows is read by the family's parser as calls of the tools that may be called, as many as may be, with arguments that
are valid by their schemas; before them there is text only where there may be. Nothing follows the last call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.chat_schemas import MAX_TOOLS
from server.grammar.forms import ANSWER, WHITESPACE, of_calls
from server.grammar.places import Path
from server.tools.answer import Answer
from server.tools.families import FAMILIES, PYTHON_TAG
from server.tools.lark import ANYTHING, Lark, one_of, quoted, up_to, without
from server.tools.named_calls import (
    ARGS,
    CALL_BEGIN,
    CALL_END,
    CALL_ID,
    CALLS_BEGIN,
    CALLS_END,
    FENCE,
    KIND,
    TOOL_CALLS,
    TOOL_SEP,
)
from server.tools.parameters import Parameters
from server.tools.safe_json import documents
from server.tools.source import Source
from server.tools.xml_calls import GLM_4_5, QWEN3_CODER, SEED_OSS, Tags

MAX_CALLS = MAX_TOOLS
"""Of one answer: more could not be sent back with the next request."""
ANY_OBJECT = {"type": "object"}
_LEAD = r"/[ \t\r\n]{1,8}/"
"""Blanks before the first call, such as models write after their thoughts."""
_GAP = f"/(?:{WHITESPACE})?/"
"""Blanks between two tokens of JSON."""
_ID = "/[A-Za-z0-9]{9}/"
_CLOSE = f'{_GAP} "}}"'


@dataclass(frozen=True)
class AllowedTool:
    """A tool that may be called.

    Attributes:
        name: of the function.
        schema: of the arguments, as ``checked_schema`` gives it; None if they may be any.
        parameters: as the client sent them.
        path: where those are in the request.
    """

    name: str
    schema: dict[str, Any] | None
    parameters: Mapping[str, Any]
    path: Path


@dataclass(frozen=True)
class CallRules:
    """What a request asks of an answer's calls.

    Attributes:
        tools: that may be called.
        names: of all that the model is told of, which its parser knows.
        is_required: there has to be a call.
        is_single: there may be one at most.
        answer: the grammar of an answer without a call, if such an answer may be and has one.
        is_marked: a marker tells calls from such answers, in a family that else has none.
    """

    tools: Sequence[AllowedTool]
    names: Sequence[str]
    is_required: bool
    is_single: bool
    answer: str = ""
    is_marked: bool = False


@dataclass(frozen=True)
class Shape:
    """How a family writes calls.

    Attributes:
        opener: the marker that they begin with.
        call: writes one, after the opener.
        comes_again: the opener stands before each call, not once before all.
        begin: before the first one, after the opener.
        separator: between two calls.
        end: after the last one.
    """

    opener: str
    call: Callable[[Lark, AllowedTool], str]
    comes_again: bool = True
    begin: str = ""
    separator: str = '"\\n"?'
    end: Callable[[Lark], str] = lambda _: ""


def grammar_of_calls(form: str, rules: CallRules, token_ids: Mapping[str, int]) -> str:
    """A grammar for an answer, as the engine takes it.

    Args:
        form: one of ``SHAPES``, or ``llama3_json``.
        rules: what the calls are held to.
        token_ids: the markers that are single control tokens of the vocabulary.

    Raises:
        InvalidRequest: a schema asks for what this family's calls cannot hold, by the path of its keyword.
    """
    lark = Lark(token_ids)
    if form == "llama3_json":
        start = _llama3(lark, rules)
    else:
        start = _with_opener(lark, SHAPES[form], form.partition(":")[0], rules)
    if rules.answer:
        start += f" | {ANSWER}"
    return of_calls(lark.text(start), rules.answer)


def _with_opener(lark: Lark, shape: Shape, family: str, rules: CallRules) -> str:
    call = lark.rule(" | ".join(shape.call(lark, tool) for tool in rules.tools))
    opener = lark.marker(shape.opener)
    further = f"{shape.separator} {opener if shape.comes_again else ''} {call}"
    calls = lark.rule(f"{shape.begin} {call} {_repeated(further, rules)} {shape.end(lark)}")
    if rules.is_required or rules.answer:
        return f"{lark.terminal(_LEAD)}? {opener} {calls}"
    openers = FAMILIES[family].syntax(Source(), Answer(), ()).openers
    text = lark.terminal(without(*openers))
    if lark.is_token(shape.opener):
        return f"{text} ({opener} {calls})?"
    others = [each for each in openers if each != shape.opener]
    return f"{text} | {lark.terminal(up_to(shape.opener, *others))} {calls}"


def _repeated(further: str, rules: CallRules) -> str:
    return "" if rules.is_single else f"({further}){{0,{MAX_CALLS - 1}}}"


def _llama3(lark: Lark, rules: CallRules) -> str:
    """Objects with no marker before them: what begins like a call of one of the tools is one."""
    call = lark.rule(" | ".join(lark.json(_call_schema(tool)) for tool in rules.tools))
    more = _repeated(f'";" " "? {call}', rules)
    tag = f"{lark.marker(PYTHON_TAG)}{'' if rules.is_marked else '?'} "
    if not (rules.is_marked or lark.is_token(PYTHON_TAG)):
        tag = ""
    if rules.is_required or rules.answer:
        return f"{lark.terminal(_LEAD)}? {tag}{call} {more}"
    text = _text_of_llama3(rules.names)
    starts = [lark.terminal(text)]
    for tool in rules.tools:
        head = lark.terminal(f'{text} "{{" {_GAP} {_member("name")} {quoted(_in_quotes(tool.name))}')
        tail = lark.terminal(f'{_GAP} "," {_GAP} {_member("parameters")}')
        starts.append(f"{head} {tail} {_arguments(lark, tool)} {lark.terminal(_CLOSE)} {more}")
    if tag:
        starts.append(f"{lark.terminal(text)} {lark.marker(PYTHON_TAG)} {call} {more}")
    return " | ".join(starts)


def _text_of_llama3(names: Sequence[str]) -> str:
    """Part of a terminal for texts in which no call begins, nor is one that is to be found further on."""
    blanks = r"/[ \t\r\n]*/"
    name = one_of([quoted(_in_quotes(name)) for name in names])
    begin = f'"\\"name\\"" {blanks} ":" {blanks} {name}'
    return f"({ANYTHING} & ~({ANYTHING} ({begin} | {quoted(PYTHON_TAG)}) {ANYTHING}))"


def _call_schema(tool: AllowedTool) -> dict[str, Any]:
    """A schema for a call that is an object."""
    schema = tool.schema or ANY_OBJECT
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "parameters": {"$ref": "#/$defs/0"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
        "$defs": documents(schema),
    }


def _in_quotes(text: str) -> str:
    return f'"{text}"'


def _member(name: str) -> str:
    """Part of a terminal: a member's name, up to its value."""
    return f'{quoted(_in_quotes(name))} {_GAP} ":" {_GAP}'


def _object(lark: Lark, tool: AllowedTool) -> str:
    """A call as an object."""
    name = f"{_member('name')} {quoted(_in_quotes(tool.name))}"
    head = lark.terminal(f'"{{" {_GAP} {name} {_GAP} "," {_GAP} {_member("arguments")}')
    return f"{head} {_arguments(lark, tool)} {lark.terminal(_CLOSE)}"


def _arguments(lark: Lark, tool: AllowedTool) -> str:
    return lark.json(tool.schema or ANY_OBJECT)


def _hermes(lark: Lark, tool: AllowedTool) -> str:
    blanks = f"{lark.terminal(_LEAD)}?"
    return f"{blanks} {_object(lark, tool)} {blanks} {lark.marker('</tool_call>')}"


def _mistral(lark: Lark, tool: AllowedTool) -> str:
    return f"{quoted(tool.name)} {lark.marker(ARGS)} {_arguments(lark, tool)}"


def _mistral_with_id(lark: Lark, tool: AllowedTool) -> str:
    call_id = f"{lark.marker(CALL_ID)} {lark.terminal(_ID)}"
    return f"{quoted(tool.name)} {call_id} {lark.marker(ARGS)} {_arguments(lark, tool)}"


def _deepseek_v3(lark: Lark, tool: AllowedTool) -> str:
    begin = f"{lark.marker(CALL_BEGIN)} {quoted(KIND)} {lark.marker(TOOL_SEP)}"
    head, tail = quoted(f"{tool.name}\n{FENCE}json\n"), quoted(f"\n{FENCE}")
    return f"{begin} {head} {_arguments(lark, tool)} {tail} {lark.marker(CALL_END)}"


def _deepseek_v3_1(lark: Lark, tool: AllowedTool) -> str:
    begin = f"{lark.marker(CALL_BEGIN)} {quoted(tool.name)} {lark.marker(TOOL_SEP)}"
    return f"{begin} {_arguments(lark, tool)} {lark.marker(CALL_END)}"


def _in_tags(tags: Tags) -> Callable[[Lark, AllowedTool], str]:
    def call(lark: Lark, tool: AllowedTool) -> str:
        writer = Parameters(lark, tags)
        values = writer.any() if tool.schema is None else writer.of(tool.schema, tool.parameters, tool.path)
        if not tags.has_function:
            return f'{quoted(tool.name)} "\\n"? {values} {lark.marker(tags.function_end)}'
        begin = quoted(f"\n{tags.function}{tool.name}{tags.name_end}\n")
        return f'{begin} {values} {lark.marker(tags.function_end)} "\\n" {lark.marker(tags.block_end)}'

    return call


SHAPES = {
    "hermes": Shape("<tool_call>", _hermes),
    "qwen3_coder": Shape(QWEN3_CODER.block, _in_tags(QWEN3_CODER)),
    "seed_oss": Shape(SEED_OSS.block, _in_tags(SEED_OSS)),
    "glm_4_5": Shape(GLM_4_5.block, _in_tags(GLM_4_5)),
    "mistral": Shape(
        TOOL_CALLS,
        _object,
        comes_again=False,
        begin='" "? "["',
        separator='"," " "?',
        end=lambda _: '"]"',
    ),
    "mistral:id": Shape(TOOL_CALLS, _mistral_with_id, separator=""),
    "mistral:args": Shape(TOOL_CALLS, _mistral, separator=""),
    "deepseek_v3": Shape(CALLS_BEGIN, _deepseek_v3, comes_again=False, end=lambda lark: lark.marker(CALLS_END)),
    "deepseek_v3_1": Shape(
        CALLS_BEGIN, _deepseek_v3_1, comes_again=False, separator="", end=lambda lark: lark.marker(CALLS_END)
    ),
}
"""By the name of the family, and of its form where it has several."""
