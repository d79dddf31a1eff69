"""What clients may send in a chat: messages, tools, forms of the answer, and the body of a request.

As ``schemas``, which has what both APIs share: shapes, types and bounds, and what is refused by name. What goes with
what (a tool's answer with its id, a named tool with a tool of that name) is ``validation``'s.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from engine.types import MAX_TOP_LOGPROBS
from server.schemas import MAX_NAME_CHARS, NOT_TEXT, ContentPart, Count, FunctionName, RequestStruct, SamplingFields

MAX_MESSAGES = 4096
MAX_TOOLS = 128

ANSWERS_ARE_TEXT = "This model's answers are text."
KEPT_IN_CACHE = "Send prompt_cache_key: prompts of requests with one leave the cache last."

Role = Literal["system", "developer", "user", "assistant", "tool"]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
Participant = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class CalledFunction(RequestStruct, frozen=True, kw_only=True):
    """What an earlier answer called; the arguments are JSON text."""

    name: FunctionName
    arguments: str


class MessageToolCall(RequestStruct, frozen=True, kw_only=True):
    """One call of an earlier answer."""

    refused_words: ClassVar = {"type": {"custom": "Only functions can be called here."}}
    refused_fields: ClassVar = {"custom": "Only functions can be called here."}

    id: CallId
    type: Literal["function"]
    function: CalledFunction


class Message(RequestStruct, frozen=True, kw_only=True):
    """One turn of a conversation; parts of the content are joined with nothing in between."""

    refused_words: ClassVar = {"role": {"function": "Send role 'tool' with a tool_call_id instead."}}
    refused_fields: ClassVar = {
        "audio": NOT_TEXT.format("audio"),
        "annotations": "",
        "function_call": "Send tool_calls.",
    }
    as_absent: ClassVar = {"annotations": [], "tool_calls": []}

    role: Role
    content: str | list[ContentPart] | None = None
    name: Participant | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None

    @property
    def text(self) -> str:
        """The content as one string; what the assistant refused counts as said, too."""
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part.text or part.refusal or "" for part in content)
        return content + (self.refusal or "")


class Function(RequestStruct, frozen=True, kw_only=True):
    """A tool's function; without parameters it takes none."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestStruct, frozen=True, kw_only=True):
    """Something that an answer may call."""

    refused_words: ClassVar = {"type": {"custom": "Only functions can be tools here."}}
    refused_fields: ClassVar = {"custom": "Only functions can be tools here."}

    type: Literal["function"]
    function: Function


class NamedFunction(RequestStruct, frozen=True, kw_only=True):
    """The name of a tool."""

    name: FunctionName


class NamedTool(RequestStruct, frozen=True, kw_only=True):
    """A tool by its name."""

    refused_words: ClassVar = Tool.refused_words
    refused_fields: ClassVar = Tool.refused_fields

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestStruct, frozen=True, kw_only=True):
    """Some of the tools, one of which may or must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class ToolChoice(RequestStruct, frozen=True, kw_only=True):
    """A named tool, or several that are allowed."""

    refused_words: ClassVar = Tool.refused_words
    refused_fields: ClassVar = Tool.refused_fields

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class Thinking(RequestStruct, frozen=True, kw_only=True):
    """Whether the model thinks before it answers, as Volcano Ark has it, and for how many tokens at most."""

    type: Literal["enabled", "disabled", "auto"]
    budget_tokens: Count | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    refused_fields: ClassVar = SamplingFields.refused_fields | {
        "audio": ANSWERS_ARE_TEXT,
        "chat_template": "It is the model's own; send the text that it would make to /v1/completions.",
        "function_call": "Send tool_choice.",
        "functions": "Send tools.",
        "modalities": ANSWERS_ARE_TEXT,
        "moderation": "",
        "prompt_cache_options": KEPT_IN_CACHE,
        "prompt_cache_retention": KEPT_IN_CACHE,
        "prompt_logprobs": "Send echo with logprobs to /v1/completions.",
        "store": "No answer is kept.",
        "verbosity": "Ask for it in a message.",
        "web_search_options": "Send tools, and search when one is called.",
    }
    as_absent: ClassVar = SamplingFields.as_absent | {"modalities": ["text"], "store": False}

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
