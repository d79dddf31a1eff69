"""What clients may send: the request bodies of the API as typed structs, with the bounds of openapi.yaml.

Owned here: the shape, the types and the numeric bounds of every field, and the names of the fields that OpenAI's API
has and Upwell refuses. ``validation`` turns a body into one of these; nothing else builds them. A contract test holds
each field and bound to openapi.yaml. Every optional field is None when the client left it out or sent null.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

from engine.types import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS

MAX_CHOICES = 16
MAX_PROMPTS = 128
MAX_MESSAGES = 4096
MAX_API_STOPS = 4
MAX_STOP_CHARS = 1000
MAX_INT32 = 2**31 - 1

Role = Literal["system", "developer", "user", "assistant"]
ServiceTier = Literal["auto", "default", "flex", "priority"]
TextType = Literal["text"]

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=MAX_INT32)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
TokenKey = Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class RequestStruct(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every struct here has in common: unknown fields are refused."""


class TextPart(RequestStruct, frozen=True, kw_only=True):
    """One part of a message's content."""

    type: TextType
    text: str


class Message(RequestStruct, frozen=True, kw_only=True):
    """One turn of a conversation; parts of the content are joined with nothing in between."""

    role: Role
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(RequestStruct, frozen=True, kw_only=True):
    """How a stream looks."""

    include_usage: bool | None = None


class ResponseFormat(RequestStruct, frozen=True, kw_only=True):
    """Only plain text so far."""

    type: TextType


class SamplingFields(RequestStruct, frozen=True, kw_only=True):
    """The fields that chat and text completions share.

    ``seed`` is bounded by ``SamplingParams``: its upper bound does not fit the bounds a struct can hold.
    """

    model: Annotated[str, Meta(min_length=1)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Meta(max_length=MAX_LOGIT_BIAS)] | None = None
    seed: int | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=MAX_API_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_STOP_TOKEN_IDS)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    service_tier: ServiceTier | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/completions.

    ``prompt`` is a text, a list of texts, a list of token ids, or a list of such lists; a mixture is refused later.
    """

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None


CHAT_UNSUPPORTED = frozenset(
    {
        "audio",
        "chat_template",
        "chat_template_kwargs",
        "function_call",
        "functions",
        "metadata",
        "modalities",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "store",
        "tool_choice",
        "tools",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""Fields of OpenAI's API, or well known from other servers, that are refused by name."""

COMPLETION_UNSUPPORTED = frozenset({"echo", "suffix", "user", "prompt_embeds"})

MESSAGE_UNSUPPORTED = frozenset(
    {"name", "audio", "refusal", "annotations", "function_call", "tool_calls", "tool_call_id", "reasoning_content"}
)

PART_UNSUPPORTED = frozenset({"image_url", "input_audio", "file", "refusal", "prompt_cache_breakpoint"})

STREAM_OPTIONS_UNSUPPORTED = frozenset({"include_obfuscation"})

RESPONSE_FORMAT_UNSUPPORTED = frozenset({"json_schema"})

ALLOWED_VALUES: dict[str, tuple[str, ...]] = {
    "role": get_args(Role),
    "service_tier": get_args(ServiceTier),
    "type": get_args(TextType),
}
"""Last part of a field's path -> the words it may be, for error messages."""

UNSUPPORTED_VALUES = frozenset(
    {
        "tool",
        "function",
        "image_url",
        "input_audio",
        "file",
        "refusal",
        "json_object",
        "json_schema",
        "scale",
        "fast",
    }
)
"""Words of OpenAI's API that a field in ``ALLOWED_VALUES`` cannot take here."""
