"""What clients receive: the response bodies and stream chunks of the API as structs, encoded once each by msgspec.

Field for field as openapi.yaml has them; a field set to ``UNSET`` is left out. Built by the routes' formats.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class PromptTokensDetails(Struct, frozen=True):
    """How many prompt tokens came out of the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    """How many of the answer's tokens were thoughts, and of a prediction's how many were right and how many not."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UpwellUsage(Struct, frozen=True, kw_only=True):
    """Where a request's time went, in microseconds, and why no more of its prompt was cached; see ``cost``."""

    wall_us: int
    queue_us: int
    prefill_us: int
    decode_us: int
    transport_us: int
    preemptions: int
    missed_tokens: int
    cache_miss: str | None


class CompletionUsage(Struct, frozen=True):
    """What a request cost, over all of its choices; a prompt with several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()
    upwell: UpwellUsage | UnsetType = UNSET


class TopLogprob(Struct, frozen=True):
    """One alternative to a token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(Struct, frozen=True):
    """A token of a chat answer and its likeliest alternatives."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log probabilities of a chat answer or chunk."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CalledFunction(Struct, frozen=True):
    """What is called, and with what: JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """One tool call of an answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The assistant's turn; no content means that it is nothing but tool calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    """One of the n answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The answer of POST /v1/chat/completions without ``stream``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str
    metadata: dict[str, str] | UnsetType = UNSET


class FunctionDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to what is called; the name comes once, first."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to one tool call; id and type come once, first."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Delta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to a chat answer; the role comes once, first."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """What a chunk adds to one of the n answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of a chat stream. ``usage`` is left out unless the client asked for it; ``metadata`` comes first."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str
    metadata: dict[str, str] | UnsetType = UNSET


class TextLogprobs(Struct, frozen=True):
    """Log probabilities in the older format: parallel lists with one entry a token; a prompt's first token has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Struct, frozen=True):
    """One answer, or in a stream what a chunk adds to it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class TextCompletion(Struct, frozen=True, kw_only=True):
    """The answer of POST /v1/completions, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage | None | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str
    metadata: dict[str, str] | UnsetType = UNSET


class Tokenized(Struct, frozen=True):
    """The answer of POST /tokenize; the strings only if they were asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Struct, frozen=True):
    """The answer of POST /detokenize."""

    prompt: str


class ModelCard(Struct, frozen=True, kw_only=True):
    """One served model; ``max_model_len`` is left out until the engine has been ready."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "upwell"
    max_model_len: int | UnsetType = UNSET


class ModelList(Struct, frozen=True, kw_only=True):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
