"""A chat request as the model's template takes it: messages, tools, and how the model is to think.

Called by the route once the request is sound. Every refusal names the field that this model cannot honour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from server.chat_profile import BUDGET, EFFORT, ChatProfile
from server.chat_schemas import ChatRequest, Message, Thinking, Tool
from server.reasoning import Markers
from server.schemas import ResponseFormat
from server.strict_json import parse_json
from server.tools.written_out import introduced, written_out

KWARGS = frozenset({"enable_thinking", "thinking", BUDGET, EFFORT})
"""What ``chat_template_kwargs`` may hold, if the template reads it."""
UNLIMITED = -1
"""What a template is told of a budget where there is none."""


@dataclass(frozen=True)
class Conversation:
    """What a template is given.

    Attributes:
        messages: as templates know them.
        variables: all others that it reads.
        continues: the last message is to be gone on with, not answered.
        thinks: whether the model is to think before it answers; None where that is for it to decide.
        opens_answer: the prompt ends with what opens an answer, unless it continues.
    """

    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    continues: bool = False
    thinks: bool | None = None
    opens_answer: bool = True

    @property
    def num_content_chars(self) -> int:
        """Of what is said in the messages, which no prompt is shorter than."""
        return sum(len(message["content"]) for message in self.messages)


def conversation_of(request: ChatRequest, profile: ChatProfile) -> Conversation:
    """What the template is to be given.

    Raises:
        InvalidRequest: a field that this model's template has no place for, or text that is not the JSON it wants.
    """
    thinks, variables = _thinking(request, profile)
    messages = [_message(message, f"messages[{i}]", profile) for i, message in enumerate(request.messages)]
    tools = [_tool(tool) for tool in request.tools or ()] if request.tool_choice != "none" else []
    if not profile.takes_tools:
        messages, tools = written_out(messages, tools), []
    if tools:
        variables["tools"] = tools
    if described := _described(request.response_format):
        messages = introduced(messages, described)
    return Conversation(
        messages,
        variables,
        continues=bool(request.continue_final_message),
        thinks=thinks,
        opens_answer=request.add_generation_prompt is not False,
    )


def _described(answer_format: ResponseFormat | None) -> str:
    """What a client says of the schema that the answer keeps to."""
    schema = answer_format.json_schema if answer_format else None
    return f"Answer with {schema.name} as JSON: {schema.description}" if schema and schema.description else ""


def _message(message: Message, path: str, profile: ChatProfile) -> dict[str, Any]:
    """Templates know the developer under the older name, and calls with what they were made with as an object."""
    made: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    if message.name is not None and not profile.shows_names and message.role != "tool":
        made["content"] = f"{message.name}: {message.text}"
    for name in ("name", "reasoning_content", "tool_call_id"):
        if getattr(message, name) is not None:
            made[name] = getattr(message, name)
    if message.role == "assistant" and message.reasoning_content is None and profile.thoughts is not None:
        made |= _thoughts_apart(message.text, profile.thoughts)
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(
                        call.function.arguments, f"{path}.tool_calls[{i}].function.arguments", profile
                    ),
                },
            }
            for i, call in enumerate(message.tool_calls)
        ]
    return made


def _thoughts_apart(text: str, markers: Markers) -> dict[str, str]:
    """An earlier answer that a client kept whole; nothing if it does not begin with thoughts that end.

    Its markers mean nothing where a client writes them, so the template could not tell its thoughts.
    """
    begun = text.lstrip()
    if not begun.startswith(markers.start) or markers.end not in begun:
        return {}
    thoughts, _, content = begun.removeprefix(markers.start).partition(markers.end)
    return {"reasoning_content": thoughts.strip(), "content": content.lstrip()}


def _arguments(text: str, path: str, profile: ChatProfile) -> object:
    """As the template takes them; none at all are an empty object."""
    try:
        found = parse_json((text.strip() or "{}").encode())
    except (InvalidRequest, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{path} is not JSON; send the text of an object.", param=path) from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} is not a JSON object; send the text of one.", param=path)
    return text if profile.arguments_as_text else found


def _tool(tool: Tool) -> dict[str, Any]:
    function = tool.function
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        },
    }


def _thinking(request: ChatRequest, profile: ChatProfile) -> tuple[bool | None, dict[str, Any]]:
    """Whether the model is to think, and variables of the template by which it does, or does not."""
    budget = _budget(request.thinking, profile)
    wanted = _is_to_think(request.thinking, request.reasoning_effort)
    variables: dict[str, Any] = {}
    if wanted is not None and profile.switch is not None:
        variables[profile.switch] = wanted
    elif wanted and profile.thoughts is None:
        raise _cannot("thinking" if request.thinking else EFFORT, "does not think before it answers")
    elif wanted is False and profile.thoughts is not None and BUDGET not in profile.variables:
        raise _cannot("thinking" if request.thinking else EFFORT, "has a template that cannot turn thinking off")
    if request.reasoning_effort not in {None, "none"} and EFFORT in profile.variables:
        variables[EFFORT] = request.reasoning_effort
    if BUDGET in profile.variables and (wanted is not None or budget is not None):
        variables[BUDGET] = 0 if wanted is False else budget or UNLIMITED
    variables |= _kwargs(request.chat_template_kwargs or {}, profile, variables)
    switched = variables.get(profile.switch) if profile.switch else wanted
    return switched if isinstance(switched, bool) else None, variables


def _budget(thinking: Thinking | None, profile: ChatProfile) -> int | None:
    """How many tokens thoughts may have.

    Raises:
        InvalidRequest: there are none.
    """
    if thinking is None or thinking.budget_tokens is None:
        return None
    if thinking.type == "disabled":
        raise InvalidRequest(
            "thinking.budget_tokens goes with thoughts, which thinking.type disables; send one of them.",
            param="thinking.budget_tokens",
        )
    if profile.thoughts is None:
        raise _cannot("thinking.budget_tokens", "does not think before it answers")
    return thinking.budget_tokens


def _is_to_think(thinking: Thinking | None, effort: str | None) -> bool | None:
    """None where the model is to decide.

    Raises:
        InvalidRequest: one field says yes, the other no.
    """
    by_effort = None if effort is None else effort != "none"
    by_type = {"enabled": True, "disabled": False}.get(thinking.type) if thinking else None
    if by_type is not None and by_effort is not None and by_type != by_effort:
        raise InvalidRequest("thinking and reasoning_effort contradict each other; send one of them.", param="thinking")
    return by_effort if by_type is None else by_type


def _kwargs(given: Mapping[str, Any], profile: ChatProfile, variables: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        param = f"chat_template_kwargs.{name[:64]}"
        if name not in KWARGS:
            allowed = ", ".join(sorted(KWARGS & profile.variables)) or "none of them in this model's template"
            raise InvalidRequest(f"{param} cannot be set; {allowed} can.", param=param, code="unsupported_parameter")
        if name not in profile.variables:
            raise _cannot(param, "has a chat template that does not read it")
        if not isinstance(value, bool | int | str) or (isinstance(value, str) and len(value) > 64):
            raise InvalidRequest(f"{param} must be a boolean, a number or a word.", param=param)
        if name in variables and variables[name] != value:
            raise InvalidRequest(f"{param} contradicts thinking or reasoning_effort; send one of them.", param=param)
    return dict(given)


def _cannot(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{param} cannot be honoured: this model {why}.", param=param, code="unsupported_parameter")
