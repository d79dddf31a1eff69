"""What this model and this build can do, for programs: the answer of GET /v1/capabilities.

Every part is read from what decides it: the engine's word, the chat profile, the structs of requests, the limits that
refusals quote. Names are stable; openapi.yaml says what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

from msgspec import Struct

from engine.types import EngineReady
from server.chat_profile import EFFORT, ChatProfile
from server.chat_schemas import MAX_MESSAGES, MAX_TOOLS, ChatRequest, Message, ToolChoice
from server.context import ServerContext
from server.conversation import KWARGS
from server.deadline import MAX_TIMEOUT_S
from server.field_schemas import field_schemas, words_of
from server.grammar import formats, keywords
from server.schemas import (
    MAX_API_STOPS,
    MAX_CHOICES,
    MAX_PROMPTS,
    CompletionRequest,
    Prediction,
    RequestStruct,
    ResponseFormat,
    SamplingFields,
)
from server.tokenize_schemas import DetokenizeRequest, TokenizeRequest

OPENAI_FORMATS = frozenset({"text", "json_object", "json_schema"})
REQUESTS: dict[str, type[RequestStruct]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


class Device(Struct, frozen=True, kw_only=True):
    """What computes."""

    backend: str
    operations: dict[str, str]


class Modalities(Struct, frozen=True, kw_only=True):
    """Text, in and out."""

    input: list[str]
    output: list[str]


class Tools(Struct, frozen=True, kw_only=True):
    """How the model calls tools; without a family, its calls cannot be told from text."""

    family: str | None
    shown_by_template: bool
    choices: list[str]


class ThinkingAbility(Struct, frozen=True, kw_only=True):
    """Between which markers the model thinks, and what of it can be set; without a switch it always does."""

    start: str
    end: str
    switch: str | None
    budget: bool
    efforts: list[str]


class ChatAbility(Struct, frozen=True, kw_only=True):
    """What the model can do in a chat."""

    roles: list[str]
    tools: Tools
    thinking: ThinkingAbility | None
    template_variables: list[str]


class SchemaKeywords(Struct, frozen=True, kw_only=True):
    """Words of JSON Schema: held to, remarks without effect, and refused with what to do instead."""

    held: list[str]
    remarks: list[str]
    refused: dict[str, str]
    formats: list[str]


class ResponseFormats(Struct, frozen=True, kw_only=True):
    """Forms that an answer can be held to; extensions are those that OpenAI's API does not have."""

    types: list[str]
    extensions: list[str]
    json_schema: SchemaKeywords


class Limits(Struct, frozen=True, kw_only=True):
    """The most that a request may have; what fields may be stands in ``requests``."""

    body_bytes: int
    open_requests: int
    timeout_s: int
    choices: int
    messages: int
    prompts: int
    stops: int
    tools: int


class RequestAbility(Struct, frozen=True, kw_only=True):
    """Fields of one path's requests, and those that are known and refused."""

    fields: dict[str, Any]
    refused: list[str]


class Capabilities(Struct, frozen=True, kw_only=True):
    """The whole answer."""

    object: Literal["capabilities"] = "capabilities"
    version: str
    system_fingerprint: str
    models: list[str]
    architecture: str
    max_model_len: int
    vocab_size: int
    device: Device
    modalities: Modalities
    endpoints: list[str]
    chat: ChatAbility | None
    response_formats: ResponseFormats
    predictions: list[str]
    service_tiers: list[str]
    limits: Limits
    requests: dict[str, RequestAbility]


def capabilities(context: ServerContext, ready: EngineReady, endpoints: Iterable[str]) -> Capabilities:
    """What can be done now.

    Args:
        context: what the server was started with.
        ready: what the engine said.
        endpoints: "METHOD /path" of all routes.
    """
    return Capabilities(
        version=_version(),
        system_fingerprint=ready.fingerprint,
        models=list(context.model_names),
        architecture=ready.architecture,
        max_model_len=ready.max_model_len,
        vocab_size=ready.vocab_size,
        device=Device(backend=ready.backend, operations=ready.provenance),
        modalities=Modalities(input=["text"], output=["text"]),
        endpoints=sorted(endpoints),
        chat=_chat(context.prompts.profile),
        response_formats=_response_formats(),
        predictions=words_of(Prediction, "type"),
        service_tiers=words_of(SamplingFields, "service_tier"),
        limits=Limits(
            body_bytes=context.max_body_bytes,
            open_requests=context.max_waiting,
            timeout_s=MAX_TIMEOUT_S,
            choices=MAX_CHOICES,
            messages=MAX_MESSAGES,
            prompts=MAX_PROMPTS,
            stops=MAX_API_STOPS,
            tools=MAX_TOOLS,
        ),
        requests={
            path: RequestAbility(fields=field_schemas(struct), refused=sorted(struct.refused_fields))
            for path, struct in REQUESTS.items()
        },
    )


def _chat(profile: ChatProfile) -> ChatAbility | None:
    if not profile.has_template:
        return None
    thoughts = profile.thoughts
    choices = words_of(ChatRequest, "tool_choice") + words_of(ToolChoice, "type")
    return ChatAbility(
        roles=words_of(Message, "role"),
        tools=Tools(family=profile.family_name, shown_by_template=profile.takes_tools, choices=choices),
        thinking=None
        if thoughts is None
        else ThinkingAbility(
            start=thoughts.start,
            end=thoughts.end,
            switch=profile.switch,
            budget=True,
            efforts=words_of(ChatRequest, "reasoning_effort") if EFFORT in profile.variables else [],
        ),
        template_variables=sorted(KWARGS & profile.variables),
    )


def _response_formats() -> ResponseFormats:
    types = words_of(ResponseFormat, "type")
    return ResponseFormats(
        types=types,
        extensions=[name for name in types if name not in OPENAI_FORMATS],
        json_schema=SchemaKeywords(
            held=sorted(keywords.KEPT),
            remarks=sorted(keywords.REMARKS | keywords.ROOT_REMARKS),
            refused=keywords.REFUSED,
            formats=sorted([*formats.HELD, *formats.INTEGERS]),
        ),
    )


@cache
def _version() -> str:
    return version("upwell")
