"""What goes with what in a request: fields of a message by its role, tools and the choice of one, forms of the answer.

Called by ``validation`` once shapes and types are right. Every refusal names the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.errors import InvalidRequest
from server.chat_schemas import ChatRequest, Message, ToolChoice
from server.schemas import ContentPart, Prediction, RequestStruct, ResponseFormat

_ASSISTANTS = ("tool_calls", "refusal", "reasoning_content")
"""Fields of the assistant's messages alone."""


def check_messages(messages: Sequence[Message]) -> None:
    """Fields by role, contents, and tools' answers to calls that were made.

    Raises:
        InvalidRequest: the first that is missing or has no place there.
    """
    called: dict[str, str] = {}
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.role != "assistant":
            _refuse_given(message, _ASSISTANTS, path, "only the assistant's messages have it")
        if message.role != "tool":
            _refuse_given(message, ("tool_call_id",), path, "only messages of role 'tool' have it")
        elif message.tool_call_id is None:
            raise _missing(f"{path}.tool_call_id")
        elif message.tool_call_id not in called:
            raise InvalidRequest(
                f"{path}.tool_call_id is not the id of a tool call in an earlier message.", param=f"{path}.tool_call_id"
            )
        elif message.name not in {None, called[message.tool_call_id]}:
            raise InvalidRequest(
                f"{path}.name is not the name of the function that was called; leave it out.", param=f"{path}.name"
            )
        if message.content is None and not (message.tool_calls or message.refusal):
            raise _missing(f"{path}.content")
        if isinstance(message.content, list):
            _check_parts(message.content, f"{path}.content", is_assistants=message.role == "assistant")
        called.update((call.id, call.function.name) for call in message.tool_calls or ())


def _refuse_given(message: Message, names: Iterable[str], path: str, reason: str) -> None:
    for name in names:
        if getattr(message, name) is not None:
            raise InvalidRequest(f"{path}.{name} has no place there: {reason}.", param=f"{path}.{name}")


def _check_parts(parts: Sequence[ContentPart], path: str, *, is_assistants: bool) -> None:
    for i, part in enumerate(parts):
        if part.type == "refusal" and not is_assistants:
            raise InvalidRequest(
                f"{path}[{i}].type can be 'refusal' in the assistant's messages alone.", param=f"{path}[{i}].type"
            )
        _check_variant(part, part.type, ("text", "refusal"), f"{path}[{i}]")


def check_continued(request: ChatRequest) -> None:
    """An answer that goes on with a text of the assistant's, and nothing in the request that holds for whole answers.

    Raises:
        InvalidRequest: it is another's message, or has calls; or a field holds for whole answers alone.
    """
    if not request.continue_final_message:
        return
    if request.add_generation_prompt:
        raise InvalidRequest(
            "add_generation_prompt contradicts continue_final_message; send one of them.", param="add_generation_prompt"
        )
    last, param = request.messages[-1], "continue_final_message"
    if last.role != "assistant" or last.tool_calls or not last.text:
        raise InvalidRequest(f"{param} needs the last message to be a text of the assistant's.", param=param)
    thinks = request.thinking is not None and request.thinking.type == "enabled"
    for name, is_given in (
        ("response_format", request.response_format is not None and request.response_format.type != "text"),
        ("tool_choice", request.tool_choice not in (None, "none", "auto")),
        ("thinking", thinks),
        ("reasoning_effort", request.reasoning_effort not in {None, "none"}),
    ):
        if is_given:
            raise InvalidRequest(
                f"{name} holds for a whole answer, but {param} asks for the rest of one; send one of them.", param=name
            )


def check_opened(request: ChatRequest) -> None:
    """An answer that is opened, or goes on with another: what follows a message of a user's is no answer.

    Raises:
        InvalidRequest: neither.
    """
    if request.add_generation_prompt is False and not request.continue_final_message:
        raise InvalidRequest(
            "add_generation_prompt can be false only with continue_final_message; to have a text of your own gone on "
            "with, send it to /v1/completions.",
            param="add_generation_prompt",
        )


def check_tools(request: ChatRequest) -> None:
    """Names that differ, and a choice among them.

    Raises:
        InvalidRequest: what is wrong, or missing.
    """
    names = [tool.function.name for tool in request.tools or ()]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidRequest(
                f"tools[{i}].function.name is the name of another tool, too.", param=f"tools[{i}].function.name"
            )
    if not names:
        for param, needs in (
            ("tool_choice", request.tool_choice not in (None, "none", "auto")),
            ("parallel_tool_calls", request.parallel_tool_calls is not None),
        ):
            if needs:
                raise InvalidRequest(f"{param} needs tools.", param=param)
    if isinstance(request.tool_choice, ToolChoice):
        _check_choice(request.tool_choice, set(names))


def _check_choice(choice: ToolChoice, names: set[str]) -> None:
    _check_variant(choice, choice.type, ("function", "allowed_tools"), "tool_choice")
    chosen = {"tool_choice.function.name": choice.function.name} if choice.function else {}
    if choice.allowed_tools:
        for i, tool in enumerate(choice.allowed_tools.tools):
            chosen[f"tool_choice.allowed_tools.tools[{i}].function.name"] = tool.function.name
    for param, name in chosen.items():
        if name not in names:
            raise InvalidRequest(f"{param} is not the name of any of the tools.", param=param)


def check_response_format(answer_format: ResponseFormat | None) -> None:
    """The field that its type names, and no other.

    Raises:
        InvalidRequest: one that is missing or has no place there.
    """
    if answer_format is None:
        return
    _check_variant(answer_format, answer_format.type, ("json_schema", "regex", "choice", "lark"), "response_format")
    if answer_format.json_schema is not None and answer_format.json_schema.schema is None:
        raise _missing("response_format.json_schema.schema")


def check_prediction(prediction: Prediction | None) -> None:
    """Parts of text.

    Raises:
        InvalidRequest: a field of a part that is missing or has no place there.
    """
    if prediction is not None and isinstance(prediction.content, list):
        _check_parts(prediction.content, "prediction.content", is_assistants=False)


def _check_variant(value: RequestStruct, kind: str, names: Iterable[str], path: str) -> None:
    """Of the fields that are each for the type of its name, there is the one of this type, and no other."""
    for name in names:
        given = getattr(value, name) is not None
        if name == kind and not given:
            raise _missing(f"{path}.{name}")
        if name != kind and given:
            raise InvalidRequest(f"{path}.{name} has no place where the type is '{kind}'.", param=f"{path}.{name}")


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"{param} is required.", param=param, code="missing_required_parameter")
