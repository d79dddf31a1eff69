"""From the bytes of a body to a typed request.

Called by the routes, before ``sampling`` holds the request against the model. Invariants: every refusal is an
``InvalidRequest`` that names the field; a field is honoured or refused, never dropped; null means absent for every
optional field; no message quotes a prompt.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from engine.errors import InvalidRequest
from server.chat_rules import (
    check_continued,
    check_messages,
    check_opened,
    check_prediction,
    check_response_format,
    check_tools,
)
from server.chat_schemas import ChatRequest
from server.request_fields import checked
from server.schemas import CompletionRequest, RequestStruct
from server.strict_json import parse_json
from server.tokenize_schemas import CHAT_FIELDS, DetokenizeRequest, TokenizeRequest

R = TypeVar("R", bound=RequestStruct)

_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_JSON_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


def parse_chat(body: bytes) -> ChatRequest:
    """The body of POST /v1/chat/completions.

    Raises:
        InvalidRequest: not JSON, not an object, a field that is missing, unknown, unsupported or out of bounds, or
            fields that do not go together.
    """
    request = _convert(_members(body, ChatRequest), ChatRequest)
    check_response_format(request.response_format)
    check_prediction(request.prediction)
    check_chat(request)
    check_opened(request)
    return request


def check_chat(request: ChatRequest) -> None:
    """What goes with what in a chat.

    Raises:
        InvalidRequest: fields that do not go together.
    """
    check_messages(request.messages)
    check_tools(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    check_continued(request)


def parse_completion(body: bytes) -> CompletionRequest:
    """The body of POST /v1/completions.

    Raises:
        InvalidRequest: as ``parse_chat``.
    """
    request = _convert(_members(body, CompletionRequest), CompletionRequest)
    check_response_format(request.response_format)
    check_prediction(request.prediction)
    schema = request.response_format.json_schema if request.response_format else None
    if schema is not None and schema.description is not None:
        raise InvalidRequest(
            "response_format.json_schema.description is told to the model in a chat; here, put it into the prompt.",
            param="response_format.json_schema.description",
            code="unsupported_parameter",
        )
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequest(
            "best_of is supported only where it equals n.", param="best_of", code="unsupported_parameter"
        )
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens can be 0 only with echo; ask for 1 token or more.", param="max_tokens")
    return request


def parse_tokenize(body: bytes) -> TokenizeRequest:
    """The body of POST /tokenize.

    Raises:
        InvalidRequest: as ``parse_chat``.
    """
    request = _convert(_members(body, TokenizeRequest), TokenizeRequest)
    if request.messages is None:
        if request.prompt is None:
            message = "prompt is required, or messages."
            raise InvalidRequest(message, param="prompt", code="missing_required_parameter")
        for name in CHAT_FIELDS:
            if getattr(request, name) is not None:
                raise InvalidRequest(f"{name} needs messages.", param=name)
    elif request.prompt is not None:
        raise InvalidRequest("prompt cannot go with messages; send one of them.", param="prompt")
    elif request.add_special_tokens:
        raise InvalidRequest(
            "add_special_tokens cannot go with messages: a chat template has its own.",
            param="add_special_tokens",
            code="unsupported_parameter",
        )
    return request


def parse_detokenize(body: bytes) -> DetokenizeRequest:
    """The body of POST /detokenize.

    Raises:
        InvalidRequest: as ``parse_chat``.
    """
    return _convert(_members(body, DetokenizeRequest), DetokenizeRequest)


def _members(body: bytes, target: type[RequestStruct]) -> dict[str, Any]:
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    members: dict[str, Any] = checked(value, "", target)
    if "stream_options" in members and members.get("stream") is not True:
        raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
    return members


def _convert(members: dict[str, Any], target: type[R]) -> R:
    try:
        return msgspec.convert(members, target)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None


def _explained(problem: str) -> InvalidRequest:
    """A message of msgspec in the words of the API, with the field's path as ``param``."""
    match = _PROBLEM.fullmatch(problem)
    what, path = (match["what"], (match["path"] or "").removeprefix(".")) if match else (problem, "")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        param = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"{param} is required.", param=param, code="missing_required_parameter")
    param = path.split("[...]")[0] or None
    return InvalidRequest(f"{param or 'The body'} is not valid: {_plain(what)}.", param=param)


def _plain(what: str) -> str:
    """'Expected `int | null`, got `bool`' -> 'expected integer, got boolean'."""

    def words(match: re.Match[str]) -> str:
        names = [name for name in match[1].split(" | ") if name != "null"]
        return " or ".join(_JSON_TYPES.get(name, name) for name in names) or "null"

    text = re.sub(r"`([\w |]+)`", words, what)
    return text[:1].lower() + text[1:]
