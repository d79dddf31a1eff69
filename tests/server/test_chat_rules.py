"""Messages, tools, forms and thoughts of a chat: what is missing, out of place or contradicts another, by its path."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.rig import CHAT, chat, refused

INVALID, UNKNOWN, UNSUPPORTED = "invalid_value", "unknown_parameter", "unsupported_parameter"
MISSING = "missing_required_parameter"


def _calls(**fields: Any) -> dict[str, Any]:
    """The assistant's message with one tool call, by other fields than it needs."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {"role": "assistant", "tool_calls": [call | fields]}


def _called(arguments: str) -> dict[str, Any]:
    return _calls(function={"name": "f", "arguments": arguments})


def _tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def _allowed(*tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": list(tools)}}


def _continued(content: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": content}], "continue_final_message": True, **fields}


CALLS = _calls()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", INVALID),
        ({"messages": "hi"}, "messages", INVALID),
        ({"messages": None}, "messages", MISSING),
        ({"messages": [1]}, "messages[0]", INVALID),
        ({"messages": [None]}, "messages[0]", INVALID),
        ({"messages": [{"role": "user"}]}, "messages[0].content", MISSING),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", MISSING),
        ({"messages": [{"content": "x"}]}, "messages[0].role", MISSING),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", INVALID),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role", INVALID),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role", INVALID),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", UNSUPPORTED),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", MISSING),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id", INVALID),
        ({"messages": [CALLS, {"role": "tool", "tool_call_id": "1"}]}, "messages[1].content", MISSING),
        (
            {"messages": [CALLS, {"role": "tool", "tool_call_id": "1", "content": "x", "name": "g"}]},
            "messages[1].name",
            INVALID,
        ),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id", INVALID),
        ({"messages": [{"role": "user", "content": "x", "name": ""}]}, "messages[0].name", INVALID),
        ({"messages": [{"role": "user", "content": "x", "name": "x" * 65}]}, "messages[0].name", INVALID),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", MISSING),
        ({"messages": [CALLS | {"role": "user"}]}, "messages[0].tool_calls", INVALID),
        ({"messages": [{"role": "user", "content": "x", "refusal": "x"}]}, "messages[0].refusal", INVALID),
        (
            {"messages": [{"role": "system", "content": "x", "reasoning_content": "x"}]},
            "messages[0].reasoning_content",
            INVALID,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]},
            "messages[0].content[0].type",
            INVALID,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "refusal": "x"}]}]},
            "messages[0].content[0].refusal",
            INVALID,
        ),
        ({"messages": [_calls(id="")]}, "messages[0].tool_calls[0].id", INVALID),
        ({"messages": [_calls(type="custom")]}, "messages[0].tool_calls[0].type", UNSUPPORTED),
        ({"messages": [_calls(function={"name": "f"})]}, "messages[0].tool_calls[0].function.arguments", MISSING),
        ({"messages": [_called("{")]}, "messages[0].tool_calls[0].function.arguments", INVALID),
        ({"messages": [_called("[]")]}, "messages[0].tool_calls[0].function.arguments", INVALID),
        ({"messages": [{"role": "user", "content": "x", "contnt": ""}]}, "messages[0].contnt", UNKNOWN),
        ({"messages": [{"role": "user", "content": "x", "annotations": [1]}]}, "messages[0].annotations", UNSUPPORTED),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages", INVALID),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]", INVALID),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", MISSING),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", MISSING),
        (
            {"messages": [{"role": "user", "content": [{"type": "txt", "text": ""}]}]},
            "messages[0].content[0].type",
            INVALID,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
            "messages[0].content[0].type",
            UNSUPPORTED,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "x": 1}]}]},
            "messages[0].content[0].x",
            UNKNOWN,
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type", INVALID),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", UNSUPPORTED),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", MISSING),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.name",
            MISSING,
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            MISSING,
        ),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "x"}}},
            "response_format.json_schema",
            INVALID,
        ),
        ({"response_format": {"type": "regex"}}, "response_format.regex", MISSING),
        ({"response_format": {"type": "regex", "regex": ""}}, "response_format.regex", INVALID),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format.regex", "invalid_grammar"),
        ({"response_format": {"type": "choice", "choice": []}}, "response_format.choice", INVALID),
        ({"response_format": {"type": "choice", "choice": [""]}}, "response_format.choice[0]", INVALID),
        ({"response_format": {"type": "lark", "lark": "start"}}, "response_format.lark", "invalid_grammar"),
        ({"response_format": {"type": "lark", "regex": "x"}}, "response_format.regex", INVALID),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", UNSUPPORTED),
        ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING),
        ({"tools": [_tool("a b")]}, "tools[0].function.name", INVALID),
        ({"tools": [_tool("x" * 65)]}, "tools[0].function.name", INVALID),
        ({"tools": [_tool("f"), _tool("f")]}, "tools[1].function.name", INVALID),
        ({"tools": [_tool("f", parameters=[])]}, "tools[0].function.parameters", INVALID),
        ({"tools": [_tool("f", strict=1)]}, "tools[0].function.strict", INVALID),
        ({"tools": [_tool("f", defer_loading=True)]}, "tools[0].function.defer_loading", UNKNOWN),
        ({"tools": [_tool(f"f{i}") for i in range(129)]}, "tools", INVALID),
        ({"tool_choice": "required"}, "tool_choice", INVALID),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", INVALID),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", INVALID),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", INVALID),
        ({"tools": [_tool("f")], "tool_choice": "any"}, "tool_choice", INVALID),
        ({"tools": [_tool("f")], "tool_choice": {"type": "function"}}, "tool_choice.function", MISSING),
        (
            {"tools": [_tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
            INVALID,
        ),
        ({"tools": [_tool("f")], "tool_choice": {"type": "custom", "custom": {}}}, "tool_choice.type", UNSUPPORTED),
        ({"tools": [_tool("f")], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", MISSING),
        (
            {"tools": [_tool("f")], "tool_choice": _allowed({"type": "function", "function": {"name": "g"}})},
            "tool_choice.allowed_tools.tools[0].function.name",
            INVALID,
        ),
        ({"tools": [_tool("f")], "tool_choice": _allowed()}, "tool_choice.allowed_tools.tools", INVALID),
        ({"reasoning_effort": "huge"}, "reasoning_effort", INVALID),
        ({"reasoning_effort": "low"}, "reasoning_effort", UNSUPPORTED),
        ({"thinking": {"type": "enabled"}}, "thinking", UNSUPPORTED),
        ({"thinking": {"type": "maybe"}}, "thinking.type", INVALID),
        ({"thinking": {"type": "auto", "budget_tokens": 0}}, "thinking.budget_tokens", INVALID),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, "thinking", INVALID),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", UNSUPPORTED),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking", UNSUPPORTED),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs", INVALID),
        ({"continue_final_message": True}, "continue_final_message", INVALID),
        (_continued("Once", add_generation_prompt=True), "add_generation_prompt", INVALID),
        ({"add_generation_prompt": False}, "add_generation_prompt", INVALID),
        ({"messages": [CALLS], "continue_final_message": True}, "continue_final_message", INVALID),
        (_continued("", tools=[]), "continue_final_message", INVALID),
        (_continued("x", response_format={"type": "json_object"}), "response_format", INVALID),
        (_continued("x", tools=[_tool("f")], tool_choice="required"), "tool_choice", INVALID),
        (_continued("x", thinking={"type": "enabled"}), "thinking", INVALID),
        (_continued("x", reasoning_effort="low"), "reasoning_effort", INVALID),
        ({"prediction": {"type": "content"}}, "prediction.content", MISSING),
        ({"prediction": {"type": "draft", "content": ""}}, "prediction.type", INVALID),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", UNKNOWN),
        ({"response_format": "text"}, "response_format", INVALID),
    ],
    ids=lambda v: repr(v)[:60],
)
async def test_chat_refuses(fields: dict[str, Any], param: str, code: str) -> None:
    error = await refused(CHAT, chat() | fields)
    assert (error["param"], error["code"]) == (param, code)
