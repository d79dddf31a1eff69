"""Renders a conversation with the model's chat template.

Built once when the server starts, from the template that came with the model; clients never send one. Used for every
chat request, on any thread. Jinja as Hugging Face's ``apply_chat_template`` sets it up, in the sandbox of
``template_sandbox``: whatever a template does, a request ends in a text or in an ``InvalidRequest``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from engine.errors import InvalidRequest, MalformedModel
from server.template_sandbox import TemplateLimitError, TemplateRefusalError, compile_template, limits

MAX_SOURCE_CHARS = 1 << 20
MAX_MESSAGE_CHARS = 500


class ChatTemplate:
    """One model's chat template.

    Args:
        source: Jinja source.
        special_tokens: name -> text of the tokenizer's special tokens; variables of the template.

    Raises:
        MalformedModel: the source is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise MalformedModel(f"The chat template has {len(source)} characters, more than {MAX_SOURCE_CHARS}.")
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            with limits():
                self._template = compile_template(source)
        except TemplateSyntaxError as error:
            reason = f"{error.message} (line {error.lineno})"
            raise MalformedModel(f"The chat template cannot be compiled: {reason[:MAX_MESSAGE_CHARS]}.") from error
        except (SyntaxError, ValueError, RecursionError, MemoryError, TemplateLimitError) as error:
            raise MalformedModel(f"The chat template cannot be compiled ({type(error).__name__}).") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a conversation, as the model was trained to read it.

        Args:
            messages: plain JSON data, as the client sent them.
            add_generation_prompt: end with what opens the assistant's answer.
            variables: more variables of the template, such as ``tools``.

        Raises:
            InvalidRequest: the template refuses the messages or cannot deal with them, or takes too long or too much.
        """
        values = {"tools": None, "documents": None} | self._special_tokens | variables
        values |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            with limits():
                return self._template.render(values)
        except TemplateRefusalError as error:
            raise _invalid(f"The model's chat template refuses these messages: {_shown(error)}") from error
        except TemplateLimitError as error:
            raise _invalid(f"The model's chat template {error} on these messages; send less.") from error
        except SecurityError as error:
            raise _invalid("The model's chat template tries what templates may not do; use another model.") from error
        except Exception as error:  # templates are programs: TypeError, UndefinedError, RecursionError, ...
            raise _invalid(
                f"The model's chat template cannot render these messages ({type(error).__name__}); "
                "check their roles and that each content is what this model takes."
            ) from error


def _shown(error: TemplateRefusalError) -> str:
    """The template's own words, on one line and not too many of them."""
    return " ".join(str(error.message).split())[:MAX_MESSAGE_CHARS]


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages", code="chat_template_error")
