"""Tools for models whose chat template has no place for them: told in words, called as the Hermes family does.

What a template would do is done to the messages: tools are described in the system message, earlier calls become part
of the assistant's text, and what tools answered becomes part of the user's turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_INTRODUCTION = """\
You can call functions. To call one, write a JSON object with its name and its arguments between tags, like this:
<tool_call>
{"name": "function_name", "arguments": {"argument_name": "value"}}
</tool_call>
What it gives comes back between <tool_response> tags. The functions, each with the JSON schema of its arguments:
"""


def written_out(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of the roles system, user and assistant alone, of contents and thoughts alone, that say the same.

    Args:
        messages: as templates know them; arguments of calls as objects.
        tools: as templates know them.
    """
    made: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            answer = f"<tool_response>\n{content}\n</tool_response>"
            if made and made[-1].get("answers"):
                made[-1]["content"] += "\n" + answer
                continue
            made.append({"role": "user", "content": answer, "answers": True})
            continue
        calls = [_call(call["function"]) for call in message.get("tool_calls", ())]
        made.append({"role": role, "content": "\n".join([*([content] if content or not calls else []), *calls])})
        if "reasoning_content" in message:
            made[-1]["reasoning_content"] = message["reasoning_content"]
    for message in made:
        message.pop("answers", None)
    if not tools:
        return made
    return introduced(
        made, _INTRODUCTION + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    )


def _call(function: Mapping[str, Any]) -> str:
    text = json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


def introduced(messages: list[dict[str, Any]], told: str) -> list[dict[str, Any]]:
    """With a text at the end of the system message, or in one of its own."""
    if messages and messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]
