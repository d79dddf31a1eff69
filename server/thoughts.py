"""How the engine is to deal with a model's thoughts: which tokens its markers are, and what one request asks for.

``marker_tokens`` is worked out once, when the prompts of a model are; ``thoughts_of`` for each request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import InvalidRequest
from engine.tokenizer import Tokenizer
from engine.types import Thoughts
from server.chat_profile import ChatProfile
from server.chat_template import ChatTemplate
from server.reasoning import Markers

_THOUGHT, _ANSWER = "THOUGHT", "ANSWER"
_BLANKS = " \t\r\n"


@dataclass(frozen=True)
class MarkerTokens:
    """The tokens of a model's markers.

    Attributes:
        start_ids: what begins its thoughts, as its template writes that; none if that is not to be had.
        end_ids: what ends them.
        shown_ids: control tokens that are markers, or part of one, so that they have to be shown.
        ids: of markers that are single control tokens, whole; the lowest of each.
        has_start_token: the start marker is one token, the first of ``start_ids``.
    """

    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    shown_ids: tuple[int, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    has_start_token: bool = False


def marker_tokens(profile: ChatProfile, template: ChatTemplate, tokenizer: Tokenizer) -> MarkerTokens:
    """The tokens of the profile's markers in a tokenizer."""
    texts = {token_id: tokenizer.token_text(token_id) for token_id in tokenizer.special_ids}
    shown = tuple(sorted(i for i, text in texts.items() if text and any(text in marker for marker in profile.markers)))
    ids = {texts[i]: i for i in reversed(shown) if texts[i] in profile.markers}
    if profile.thoughts is None:
        return MarkerTokens(shown_ids=shown, ids=ids)
    start, end = _written(profile.thoughts, profile, template)
    start_ids = _encoded(start, profile.thoughts.start, tokenizer)
    end_ids = _encoded(end, profile.thoughts.end, tokenizer)
    has_start_token = bool(start_ids) and tokenizer.token_text(start_ids[0]) == profile.thoughts.start
    return MarkerTokens(start_ids, end_ids, shown, ids, has_start_token)


def _written(markers: Markers, profile: ChatProfile, template: ChatTemplate) -> Markers:
    """The markers with the white space that the template puts behind the first and around the second.

    Where a template does not show thoughts that is not known, and the model goes on as it likes.
    """
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT},
    ]
    variables = {profile.switch: True} if profile.switch else {}
    try:
        rendered = template.render(messages, add_generation_prompt=False, **variables)
    except InvalidRequest:
        return markers
    start, end = map(re.escape, markers)
    found = re.search(rf"({start}[{_BLANKS}]*){_THOUGHT}([{_BLANKS}]*{end}[{_BLANKS}]*){_ANSWER}", rendered)
    return Markers(found[1], found[2]) if found else markers


def _encoded(text: str, marker: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a marker with white space around it; none if the tokenizer makes something else of it."""
    ids = tuple(tokenizer.encode(text, add_special=False))
    return ids if tokenizer.decode(ids, skip_special=False).strip(_BLANKS) == marker else ()


def thoughts_of(
    profile: ChatProfile,
    tokens: MarkerTokens,
    *,
    is_thinking: bool | None,
    wanted: bool | None,
    budget: int | None,
    has_form: bool,
) -> Thoughts | None:
    """How the engine is to deal with the thoughts of one answer; None if it has none.

    Args:
        profile: what the model can do.
        tokens: those of its markers.
        is_thinking: see ``ChatPrompt``.
        wanted: whether the client asks for thoughts; None if it leaves that to the model.
        budget: tokens that they may have.
        has_form: whether the answer after them is held to a grammar. Without thoughts it is so from its first token on;
            what looks like a start marker there is part of it.

    Raises:
        InvalidRequest: a budget where thoughts cannot be ended.
    """
    if profile.thoughts is None or is_thinking is False:
        return None
    if budget is not None and not tokens.end_ids:
        raise InvalidRequest(
            "thinking.budget_tokens cannot be honoured: this model's vocabulary cannot write what ends its thoughts.",
            param="thinking.budget_tokens",
            code="unsupported_parameter",
        )
    may_begin = is_thinking is None and wanted is not False
    is_forced = may_begin and wanted is True and bool(tokens.start_ids)
    if has_form and not (is_thinking or is_forced or (may_begin and tokens.has_start_token)):
        return None
    return Thoughts(
        start=profile.thoughts.start,
        end=profile.thoughts.end,
        is_open=is_thinking is True,
        start_ids=tokens.start_ids if may_begin else (),
        is_forced=is_forced,
        end_ids=tokens.end_ids,
        budget=budget,
    )
