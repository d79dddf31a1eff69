"""The families of models that call tools: what each writes, and what else has to be known of it.

Chosen when the server starts, by the model's chat template (``family_of_template``) or by a flag, whose values are
``FAMILIES``. ``parser`` makes the parser of one answer.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from server.tools.answer import Answer
from server.tools.call_reader import CallReader, CallSyntax
from server.tools.json_calls import JsonCalls
from server.tools.named_calls import (
    ARGS,
    CALL_BEGIN,
    CALL_END,
    CALL_ID,
    CALLS_BEGIN,
    CALLS_END,
    TOOL_CALLS,
    TOOL_SEP,
    DeepSeekCalls,
    MistralCalls,
)
from server.tools.parts import CallParser, Tool
from server.tools.source import Source
from server.tools.xml_calls import GLM_4_5, QWEN3_CODER, SEED_OSS, Tags, XmlCalls

PYTHON_TAG = "<|python_tag|>"
MISTRAL_ID_CHARS = 9
_ALPHANUMERIC = string.ascii_letters + string.digits
_ARGUMENTS_AS_JSON = re.compile(r"arguments['\"]?\]?\s*\|\s*tojson")


@dataclass(frozen=True)
class Family:
    """How a family of models calls tools.

    Attributes:
        syntax: makes the reader of one answer's calls.
        markers: texts that may be control tokens of the vocabulary, which have to be shown to the parser.
        joins_arguments: its own templates join the arguments of earlier calls to other text, so they want them as a
            string; others want an object.
        has_short_ids: its templates and tokenizers take no ids of calls but nine letters and digits.
    """

    syntax: Callable[[Source, Answer, Sequence[Tool]], CallSyntax]
    markers: tuple[str, ...]
    joins_arguments: bool = False
    has_short_ids: bool = False

    def arguments_as_text(self, template: str) -> bool:
        """Whether a template is to be given the arguments of earlier calls as a string of JSON, not as an object."""
        return self.joins_arguments and not _ARGUMENTS_AS_JSON.search(template)

    def new_call_id(self) -> str:
        """An id for a call, as the family takes it."""
        if self.has_short_ids:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(MISTRAL_ID_CHARS))
        return f"call_{secrets.token_hex(12)}"


def _hermes(source: Source, answer: Answer, _: Sequence[Tool]) -> CallSyntax:
    return JsonCalls(source, answer, opener="<tool_call>", closer="</tool_call>")


def _llama3(source: Source, answer: Answer, tools: Sequence[Tool]) -> CallSyntax:
    return JsonCalls(source, answer, opener=PYTHON_TAG, bare=tools)


def _in_tags(tags: Tags) -> Callable[[Source, Answer, Sequence[Tool]], CallSyntax]:
    return lambda source, answer, tools: XmlCalls(source, answer, tags, tools)


def _tag_markers(tags: Tags) -> tuple[str, ...]:
    ends = (tags.key, tags.key_end, tags.value, tags.value_end, tags.function, tags.function_end)
    return tags.block, tags.block_end, *(end for end in ends if end.startswith("<") and end.endswith(">"))


_DEEPSEEK = Family(
    lambda source, answer, _: DeepSeekCalls(source, answer),
    (CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, TOOL_SEP),
    joins_arguments=True,
)

FAMILIES = MappingProxyType(
    {
        "hermes": Family(_hermes, ("<tool_call>", "</tool_call>")),
        "qwen3_coder": Family(_in_tags(QWEN3_CODER), _tag_markers(QWEN3_CODER)),
        "llama3_json": Family(_llama3, (PYTHON_TAG,)),
        "mistral": Family(
            lambda source, answer, _: MistralCalls(source, answer), (TOOL_CALLS, CALL_ID, ARGS), has_short_ids=True
        ),
        "deepseek_v3": _DEEPSEEK,
        "deepseek_v3_1": _DEEPSEEK,
        "glm_4_5": Family(_in_tags(GLM_4_5), _tag_markers(GLM_4_5)),
        "seed_oss": Family(_in_tags(SEED_OSS), _tag_markers(SEED_OSS)),
    }
)
"""By the name that the flag takes."""


def parser(family: str, tools: Sequence[Tool], *, only_first: bool = False) -> CallParser:
    """The parser of one answer.

    Args:
        family: one of ``FAMILIES``.
        tools: that the client offers.
        only_first: an answer that does not begin with a call has none, whatever its text holds.
    """
    syntax = FAMILIES[family].syntax
    return CallReader(lambda source, answer: syntax(source, answer, tools), only_first=only_first)


def form_of(family: str, template: str) -> str:
    """The form in which a family calls tools that has several, by the source of a template; else the family's name.

    Mistral's have been an array, then a name before each call's arguments, with an id between them for a while.
    """
    if family != "mistral":
        return family
    return "mistral:id" if CALL_ID in template else "mistral:args" if ARGS in template else family


def family_of_template(source: str) -> str | None:
    """The family whose calls a chat template writes; None if it writes none, or some that are not known here.

    Args:
        source: of the template, in Jinja.
    """
    rules = (
        ("seed_oss", SEED_OSS.block in source),
        ("qwen3_coder", QWEN3_CODER.function in source and QWEN3_CODER.key in source),
        ("glm_4_5", GLM_4_5.key in source and GLM_4_5.value in source),
        ("deepseek_v3", TOOL_SEP in source and "```json" in source),
        ("deepseek_v3_1", TOOL_SEP in source),
        ("mistral", TOOL_CALLS in source),
        # Hunyuan's calls, which are others, stand in <tool_calls>.
        ("hermes", "<tool_call>" in source and "arguments" in source and "<tool_calls>" not in source),
        ("llama3_json", _is_llama3(source)),
    )
    return next((family for family, matches in rules if matches), None)


def _is_llama3(source: str) -> bool:
    return '"parameters"' in source and ("<|start_header_id|>" in source or "ipython" in source)
