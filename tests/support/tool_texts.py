"""Answers with tool calls, as models of each family write them, and what a parser makes of an answer in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from server.tools.families import parser
from server.tools.named_calls import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, TOOL_SEP
from server.tools.parts import Parts, Tool

Call = tuple[str, dict[str, Any]]

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "deep": {"type": "object"},
        "list": {"type": "array", "items": {}},
        "flag": {"type": "boolean"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "object"}, {"$ref": "#/$defs/none"}]},
    },
    "$defs": {"none": {"type": "null"}},
}
TOOLS = [Tool("f", SCHEMA), Tool("get_weather", SCHEMA), Tool("no-schema.2")]


def pieces(text: str, cuts: Sequence[int]) -> Iterator[str]:
    """``text`` cut at these places."""
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    for begin, end in pairwise(edges):
        yield text[begin:end]


def every(text: str, size: int) -> range:
    """Cuts into pieces of a size."""
    return range(size, len(text), size)


def deltas(family: str, text: str, cuts: Sequence[int] = (), tools: Sequence[Tool] = TOOLS) -> list[Parts]:
    """What a parser gives, piece by piece and at the end."""
    reader = parser(family, tools)
    return [reader.feed(piece) for piece in pieces(text, cuts)] + [reader.finish()]


def added_up(parts: Sequence[Parts]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and name and arguments of each call. Checks that clients could add up the deltas, too."""
    names: list[str] = []
    arguments: list[list[str]] = []
    for part in parts:
        indices = [call.index for call in part.calls]
        assert indices == sorted(set(indices)), "one delta a call, in order"
        for call in part.calls:
            assert (call.name is not None) == (call.index == len(names)), "the name comes first, and once"
            if call.name is not None:
                names.append(call.name)
                arguments.append([])
            assert call.index == len(names) - 1, "only the last call goes on"
            arguments[-1].append(call.arguments)
    return "".join(part.content for part in parts), list(zip(names, map("".join, arguments), strict=True))


def parsed(
    family: str, text: str, cuts: Sequence[int] = (), tools: Sequence[Tool] = TOOLS
) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls of an answer."""
    return added_up(deltas(family, text, cuts, tools))


def written(family: str, calls: Sequence[Call], *, style: int = 0) -> str:
    """The calls as the family's models write them; of the ways that occur, the one with this number."""
    return {
        "hermes": _hermes,
        "qwen3_coder": _qwen3_coder,
        "llama3_json": _llama3,
        "mistral": _mistral,
        "deepseek_v3": _deepseek_v3,
        "deepseek_v3_1": _deepseek_v3_1,
        "glm_4_5": _glm,
        "seed_oss": _seed_oss,
    }[family](calls, style)


def _object(call: Call, key: str, style: int) -> str:
    name, arguments = call
    members = {"name": name, key: arguments}
    if style == 1:
        members = {key: arguments, "name": name}
    elif style == 2:
        members = {"type": "function", "name": name, key: arguments, "id": "a1B2c3D4e"}
    elif style == 3 and not arguments:
        members = {"name": name}
    return json.dumps(members, ensure_ascii=style == 3, indent=2 if style == 2 else None)


def _hermes(calls: Sequence[Call], style: int) -> str:
    objects = [_object(call, "arguments", style) for call in calls]
    if style == 4:
        return "<tool_call>[" + ", ".join(objects) + "]</tool_call>"
    if style == 5:
        return "<tool_call>\n" + "\n".join(objects) + "\n</tool_call>"
    space = "" if style == 3 else "\n"
    return space.join(f"<tool_call>{space}{text}{space}</tool_call>" for text in objects)


def _llama3(calls: Sequence[Call], style: int) -> str:
    objects = [_object(call, "arguments" if style == 3 else "parameters", style) for call in calls]
    if style == 4:
        return "[" + ",\n".join(objects) + "]"
    tag = "<|python_tag|>" if style in (2, 5) else ""
    return tag + (";", "; ", "\n", ", ", "", f";{tag}")[style].join(objects)


def _mistral(calls: Sequence[Call], style: int) -> str:
    if style < 4:
        objects = ", ".join(_object(call, "arguments", style) for call in calls)
        return "[TOOL_CALLS]" + (" " if style == 1 else "") + f"[{objects}]"
    call_id = "[CALL_ID]a1B2c3D4e" if style == 4 else ""
    return "".join(f"[TOOL_CALLS]{name}{call_id}[ARGS]{_json(arguments)}" for name, arguments in calls)


def _deepseek_v3(calls: Sequence[Call], style: int) -> str:
    space = "" if style == 1 else "\n"
    texts = [
        f"{CALL_BEGIN}function{TOOL_SEP}{name}\n```json\n{_json(arguments)}\n```{CALL_END}" for name, arguments in calls
    ]
    return CALLS_BEGIN + space.join(texts) + ("" if style == 2 else CALLS_END)


def _deepseek_v3_1(calls: Sequence[Call], style: int) -> str:
    space = "\n" if style == 1 else ""
    texts = [f"{CALL_BEGIN}{name}{TOOL_SEP}{space}{_json(arguments)}{space}{CALL_END}" for name, arguments in calls]
    return ("" if style == 2 else CALLS_BEGIN) + "".join(texts) + ("" if style == 2 else CALLS_END)


def _qwen3_coder(calls: Sequence[Call], style: int) -> str:
    texts = []
    for name, arguments in calls:
        values = "".join(
            f"<parameter={k}>\n{_plain(v, python=style == 1)}\n</parameter>\n" for k, v in arguments.items()
        )
        function = f"<function={name}>\n{values}</function>"
        texts.append(function if style == 2 else f"<tool_call>\n{function}\n</tool_call>")
    return "\n".join(texts)


def _seed_oss(calls: Sequence[Call], style: int) -> str:
    if style == 2:
        return _qwen3_coder(calls, 0).replace("tool_call>", "seed:tool_call>")
    texts = []
    for name, arguments in calls:
        values = "".join(f"<parameter={k}>{_plain(v, python=style == 1)}</parameter>\n" for k, v in arguments.items())
        texts.append(f"<seed:tool_call>\n<function={name}>\n{values}</function>\n</seed:tool_call>")
    return "\n".join(texts)


def _glm(calls: Sequence[Call], style: int) -> str:
    space = "" if style == 1 else "\n"
    texts = []
    for name, arguments in calls:
        values = [
            f"<arg_key>{k}</arg_key>{space}<arg_value>{_plain(v, python=style == 2)}</arg_value>{space}"
            for k, v in arguments.items()
        ]
        texts.append(f"<tool_call>{name}{space}{''.join(values)}</tool_call>")
    return space.join(texts)


def _plain(value: object, *, python: bool) -> str:
    if isinstance(value, str):
        return value
    return str(value) if python and (value is None or isinstance(value, bool)) else _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


STYLES = {
    "hermes": 6,
    "qwen3_coder": 3,
    "llama3_json": 6,
    "mistral": 6,
    "deepseek_v3": 3,
    "deepseek_v3_1": 3,
    "glm_4_5": 3,
    "seed_oss": 3,
}
"""How many ways there are to write a family's calls."""
