"""What the routes are given: the engine, the prompts, and the settings of the HTTP side.

Built once by the command line (or by a test) and handed to ``app.create_app``. Nothing here does input or output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

from engine.errors import InvalidRequest
from engine.tokenizer import Tokenizer
from server.chat_profile import ChatProfile
from server.chat_template import ChatTemplate
from server.conversation import Conversation
from server.engine_client import EngineClient
from server.grammar.trial import GrammarTrial
from server.metrics import Histogram, loop_lag_histogram
from server.reasoning import Markers
from server.thoughts import MarkerTokens, marker_tokens

_NAME = "upwell-asks-for-names"


class ChatPrompt(NamedTuple):
    """A conversation as the model reads it.

    Attributes:
        is_thinking: whether the answer goes on with thoughts, amid which the prompt ends; False if it comes after them,
            and has none of its own; None if it may begin with some.
    """

    token_ids: list[int]
    is_thinking: bool | None = None


class PromptEncoder(Protocol):
    """From what a client sends to the token ids of a prompt. May be called from any thread."""

    @property
    def profile(self) -> ChatProfile:
        """What the model can do in a chat."""

    @property
    def markers(self) -> MarkerTokens:
        """The tokens of what means something in its answers."""

    def chat(self, conversation: Conversation) -> ChatPrompt:
        """The ids of a conversation, by the model's chat template, up to where the answer begins.

        Raises:
            InvalidRequest: the model has no chat template, or the template refuses these messages.
        """

    def text(self, prompt: str, *, add_special: bool = True) -> list[int]:
        """The ids of a plain text, with the control tokens that the model begins a text with if ``add_special``."""

    def prediction(self, answer: str) -> list[int]:
        """The ids of a text that an answer may be, without what models put around texts."""


class Vocabulary(Protocol):
    """What single tokens stand for."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to the answer."""

    def token_text(self, token_id: int) -> str:
        """The token as a readable string."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which adds nothing to the answer."""


class ModelPrompts:
    """Prompts by a model's own tokenizer and chat template.

    In a conversation only the template's own control tokens count, and the other tokens that it, or the model's
    profile, gives a meaning: what a client writes never becomes one. A plain text
    is the whole prompt, written by whoever knows the model, so control tokens written in it do count; otherwise a
    client that renders its own template would get an answer to another prompt than it sent.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, profile: ChatProfile | None = None) -> None:
        self._template = template
        self._profile = profile or ChatProfile(has_template=template is not None)
        if template is not None:
            self._profile = replace(self._profile, shows_names=_shows_names(template))
        self._markers = MarkerTokens()
        if template is not None:
            tokenizer = tokenizer.guarding("\n".join([template.source, *self._profile.markers]))
            self._markers = marker_tokens(self._profile, template, tokenizer)
        self._tokenizer = tokenizer

    def prepare(self) -> None:
        """Build what is otherwise built when it is first needed."""
        self._tokenizer.prepare()

    @property
    def profile(self) -> ChatProfile:
        """See ``PromptEncoder.profile``."""
        return self._profile

    @property
    def markers(self) -> MarkerTokens:
        """See ``PromptEncoder.markers``."""
        return self._markers

    def chat(self, conversation: Conversation) -> ChatPrompt:
        """See ``PromptEncoder.chat``."""
        if self._template is None:
            raise InvalidRequest(
                "This model has no chat template; send the whole text to /v1/completions instead.",
                param="messages",
                code="no_chat_template",
            )
        guarded = self._tokenizer.guard({"messages": conversation.messages, "variables": conversation.variables})
        messages, variables = guarded.value["messages"], guarded.value["variables"]
        render = partial(self._template.render, messages, **variables)
        rendered = render(add_generation_prompt=conversation.opens_answer and not conversation.continues)
        is_thinking: bool | None = False
        if conversation.continues:
            rendered = _cut_after(rendered, messages[-1]["content"])
        elif self._profile.thoughts is not None:
            is_thinking = _is_thinking(rendered, self._profile.thoughts, render)
        return ChatPrompt(self._tokenizer.encode_rendered(rendered, guarded.mark), is_thinking)

    def text(self, prompt: str, *, add_special: bool = True) -> list[int]:
        """See ``PromptEncoder.text``."""
        return self._tokenizer.encode(prompt, add_special=add_special)

    def prediction(self, answer: str) -> list[int]:
        """See ``PromptEncoder.prediction``."""
        return self._tokenizer.encode(answer, add_special=False)


def _shows_names(template: ChatTemplate) -> bool:
    asked = [{"role": "user", "content": "?", "name": _NAME}]
    try:
        return _NAME in template.render(asked, add_generation_prompt=True)
    except InvalidRequest:
        return False


def _is_thinking(rendered: str, thoughts: Markers, render: Callable[..., str]) -> bool | None:
    """See ``ChatPrompt``.

    Args:
        rendered: ends with what opens the answer; clients cannot write markers, so those in it are the template's.
        thoughts: their markers.
        render: gives the same without what opens the answer, which is rarely needed.
    """
    if rendered.rstrip().endswith(thoughts):
        return rendered.rstrip().endswith(thoughts.start)
    started = rendered.rfind(thoughts.start)
    if started <= rendered.rfind(thoughts.end):
        return None
    # Thoughts begun by the template, or markers that it speaks of, say in a system message of its own.
    return True if started >= len(render(add_generation_prompt=False)) else None


def _cut_after(rendered: str, content: str) -> str:
    """A conversation up to the end of its last message's content, with which the answer goes on.

    Raises:
        InvalidRequest: the template shows another text.
    """
    for shown in (content, content.strip()):
        place = rendered.rfind(shown) if shown else -1
        if place >= 0:
            return rendered[: place + len(shown)]
    raise InvalidRequest(
        "continue_final_message cannot be honoured: the model's chat template does not show the last message as it is.",
        param="continue_final_message",
        code="chat_template_error",
    )


@dataclass(frozen=True, kw_only=True)
class ServerContext:
    """What routes need.

    Attributes:
        model_names: the names this model goes by in requests; the first is shown in /health.
        max_chars_per_token: no text has more characters a token; longer ones are refused without tokenising them.
        max_waiting: requests (each choice of each prompt is one) that may be open at once.
        api_keys: keys that clients may use; none means that no key is asked for.
        allowed_hosts: host names to accept in the Host header, or None for any; see ``guard.LOOPBACK_HOSTS``.
        max_body_bytes: longest body taken.
        body_idle_s: how long a client may pause in the middle of its body.
        body_total_s: how long a client may take for its whole body.
        keep_alive_s: silence after which a stream gets a comment, so that nothing on the way takes it for dead.
        write_stall_s: how long a client may leave an event unread before it counts as gone.
        grammars: where grammars are tried out.
        created: wall clock time shown as the model's ``created``.
        loop_lag: where the HTTP server notes how late its event loop is.
    """

    engine: EngineClient
    prompts: PromptEncoder
    vocabulary: Vocabulary
    model_names: tuple[str, ...]
    max_chars_per_token: int = 16
    max_waiting: int = 256
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: frozenset[str] | None = None
    max_body_bytes: int = 8 << 20
    body_idle_s: float = 10.0
    body_total_s: float = 60.0
    keep_alive_s: float = 10.0
    write_stall_s: float = 60.0
    created: int = field(default_factory=lambda: int(time.time()))
    grammars: GrammarTrial = field(default_factory=GrammarTrial)
    loop_lag: Histogram = field(default_factory=loop_lag_histogram)
