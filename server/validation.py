"""From the bytes of a body to a typed request.

Called by the routes, before ``sampling`` holds the request against the model. Invariants: every refusal is an
``InvalidRequest`` that names the field; a field is honoured or refused, never dropped; null means absent for every
optional field; no message quotes a prompt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from engine.errors import InvalidRequest
from server.schemas import (
    ALLOWED_VALUES,
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    MESSAGE_UNSUPPORTED,
    PART_UNSUPPORTED,
    RESPONSE_FORMAT_UNSUPPORTED,
    STREAM_OPTIONS_UNSUPPORTED,
    UNSUPPORTED_VALUES,
    ChatRequest,
    CompletionRequest,
    Message,
    RequestStruct,
    ResponseFormat,
    SamplingFields,
    StreamOptions,
    TextPart,
)
from server.strict_json import parse_json

R = TypeVar("R", ChatRequest, CompletionRequest)

_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_JSON_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


def parse_chat(body: bytes) -> ChatRequest:
    """The body of POST /v1/chat/completions.

    Raises:
        InvalidRequest: not JSON, not an object, or a field that is missing, unknown, unsupported or out of bounds.
    """
    members = _members(body, ChatRequest, CHAT_UNSUPPORTED)
    if isinstance(messages := members.get("messages"), list):
        members["messages"] = [_message(value, f"messages[{i}]") for i, value in enumerate(messages)]
    if "response_format" in members:
        members["response_format"] = _checked(
            members["response_format"], "response_format", ResponseFormat, RESPONSE_FORMAT_UNSUPPORTED
        )
    request = _convert(members, ChatRequest)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """The body of POST /v1/completions.

    Raises:
        InvalidRequest: as ``parse_chat``.
    """
    request = _convert(_members(body, CompletionRequest, COMPLETION_UNSUPPORTED), CompletionRequest)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequest(
            "best_of is supported only where it equals n.", param="best_of", code="unsupported_parameter"
        )
    return request


def _members(body: bytes, target: type[SamplingFields], unsupported: frozenset[str]) -> dict[str, Any]:
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    members: dict[str, Any] = _checked(value, "", target, unsupported)
    if "stream_options" in members:
        members["stream_options"] = _checked(
            members["stream_options"], "stream_options", StreamOptions, STREAM_OPTIONS_UNSUPPORTED
        )
        if members.get("stream") is not True:
            raise InvalidRequest("stream_options needs stream to be true.", param="stream_options")
    return members


def _message(value: object, path: str) -> object:
    message = _checked(value, path, Message, MESSAGE_UNSUPPORTED)
    if isinstance(message, dict) and isinstance(content := message.get("content"), list):
        message["content"] = [
            _checked(part, f"{path}.content[{i}]", TextPart, PART_UNSUPPORTED) for i, part in enumerate(content)
        ]
    return message


def _checked(value: Any, path: str, target: type[RequestStruct], unsupported: frozenset[str]) -> Any:
    """``value`` without its nulls, if it is an object that has only fields of ``target``; any other type as it is."""
    if not isinstance(value, dict):
        return value
    known = target.__struct_fields__
    for name, member in value.items():
        if name in known or (name in unsupported and member is None):
            continue
        param = f"{path}.{name}" if path else name
        if name in unsupported:
            raise _unsupported_part_of(value, param, path)
        raise InvalidRequest(_unknown_message(param, name, known), param=_shortened(param), code="unknown_parameter")
    return {name: member for name, member in value.items() if member is not None}


def _unsupported_part_of(value: dict[str, Any], param: str, path: str) -> InvalidRequest:
    """An object whose own type is unsupported is refused by that; else by the field."""
    kind = value.get("type")
    if isinstance(kind, str) and kind in UNSUPPORTED_VALUES:
        return _unsupported_value(f"{path}.type")
    return InvalidRequest(f"{param} is not supported by this server.", param=param, code="unsupported_parameter")


def _unknown_message(param: str, name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name[:64], known, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else "."
    return f"Unknown parameter '{_shortened(param)}'{hint}"


def _shortened(param: str) -> str:
    return param[:128].encode("unicode_escape").decode("ascii")


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
    if what.startswith("Invalid enum value"):
        value = what.removeprefix("Invalid enum value ").strip("'")
        return _unsupported_value(path) if value in UNSUPPORTED_VALUES else _wrong_value(path)
    return InvalidRequest(f"{param or 'The body'} is not valid: {_plain(what)}.", param=param)


def _wrong_value(param: str) -> InvalidRequest:
    return InvalidRequest(f"{param} must be {_allowed(param)}.", param=param)


def _unsupported_value(param: str) -> InvalidRequest:
    return InvalidRequest(f"{param} can only be {_allowed(param)} here.", param=param, code="unsupported_parameter")


def _allowed(param: str) -> str:
    return " or ".join(f"'{word}'" for word in ALLOWED_VALUES[param.rpartition(".")[2]])


def _plain(what: str) -> str:
    """'Expected `int | null`, got `bool`' -> 'expected integer, got boolean'."""

    def words(match: re.Match[str]) -> str:
        names = [name for name in match[1].split(" | ") if name != "null"]
        return " or ".join(_JSON_TYPES.get(name, name) for name in names) or "null"

    text = re.sub(r"`([\w |]+)`", words, what)
    return text[:1].lower() + text[1:]
