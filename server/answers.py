"""What clients receive: the response bodies and stream chunks of the API as structs, encoded once each by msgspec.

Field for field as openapi.yaml has them; a field set to ``UNSET`` is left out. Built by the routes' formats.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class PromptTokensDetails(Struct, frozen=True):
    """How many prompt tokens came out of the prefix cache."""

    cached_tokens: int


class CompletionUsage(Struct, frozen=True):
    """What a request cost, over all of its choices; a prompt with several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


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


class Delta(Struct, frozen=True):
    """What a chunk adds to a chat answer; the role comes once, first."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """What a chunk adds to one of the n answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of a chat stream. ``usage`` is left out unless the client asked for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None | UnsetType = UNSET
    service_tier: str | UnsetType = UNSET


class TextLogprobs(Struct, frozen=True):
    """Log probabilities in the older format: parallel lists with one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
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
