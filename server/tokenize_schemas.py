"""What clients may send to have text made tokens, and tokens text: the bodies of /tokenize and /detokenize, as vLLM's.

As ``schemas``. A conversation has the fields by which a chat's prompt is made, and no others.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from server.chat_schemas import MAX_MESSAGES, MAX_TOOLS, ChatRequest, Effort, Message, Thinking, Tool, ToolChoice
from server.schemas import RequestStruct, TokenId

CHAT_FIELDS = (
    "tools",
    "tool_choice",
    "reasoning_effort",
    "thinking",
    "chat_template_kwargs",
    "continue_final_message",
    "add_generation_prompt",
)
"""Fields that have a meaning beside ``messages`` alone."""


class TokenizeRequest(RequestStruct, frozen=True, kw_only=True):
    """The body of POST /tokenize: either a ``prompt`` or ``messages``."""

    refused_fields: ClassVar = {
        "chat_template": ChatRequest.refused_fields["chat_template"],
        "mm_processor_kwargs": "",
    }

    model: Annotated[str, Meta(min_length=1)] | None = None
    return_token_strs: bool | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    reasoning_effort: Effort | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeRequest(RequestStruct, frozen=True, kw_only=True):
    """The body of POST /detokenize."""

    model: Annotated[str, Meta(min_length=1)] | None = None
    tokens: list[TokenId]
