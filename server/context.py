"""What the routes are given: the engine, the prompts, and the settings of the HTTP side.

Built once by the command line (or by a test) and handed to ``app.create_app``. Nothing here does input or output.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from engine.errors import InvalidRequest
from engine.tokenizer import Tokenizer
from server.chat_template import ChatTemplate
from server.engine_client import EngineClient
from server.metrics import Histogram, loop_lag_histogram


class PromptEncoder(Protocol):
    """From what a client sends to the token ids of a prompt. May be called from any thread."""

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a conversation, by the model's chat template, up to where the answer begins.

        Raises:
            InvalidRequest: the model has no chat template, or the template refuses these messages.
        """

    def text(self, prompt: str) -> list[int]:
        """The ids of a plain text, with the control tokens that the model begins a text with."""


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

    In a conversation only the template's own control tokens count: what a client writes never becomes one. A plain text
    is the whole prompt, written by whoever knows the model, so control tokens written in it do count; otherwise a
    client that renders its own template would get an answer to another prompt than it sent.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """See ``PromptEncoder.chat``."""
        if self._template is None:
            raise InvalidRequest(
                "This model has no chat template; send the whole text to /v1/completions instead.",
                param="messages",
                code="no_chat_template",
            )
        guarded = self._tokenizer.guard(messages)
        return self._tokenizer.encode_rendered(self._template.render(guarded.value), guarded.mark)

    def text(self, prompt: str) -> list[int]:
        """See ``PromptEncoder.text``."""
        return self._tokenizer.encode(prompt, add_special=True)


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
    loop_lag: Histogram = field(default_factory=loop_lag_histogram)
