"""A typed request held against the loaded model: its context, its vocabulary, and the engine's sampling parameters.

Called by the routes after ``validation``. Invariant: what can never run is refused here, before it is handed over.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from engine.errors import ContextLengthExceeded, InvalidRequest
from engine.types import EngineReady, SamplingParams
from server.chat_schemas import ChatRequest
from server.schemas import SamplingFields


def check_text_length(
    num_chars: int, ready: EngineReady, max_chars_per_token: int, param: str, what: str = "prompt"
) -> None:
    """Refuse a text that cannot fit, without tokenising it.

    Raises:
        ContextLengthExceeded: longer than any text of ``max_model_len`` tokens.
    """
    if num_chars > max_chars_per_token * ready.max_model_len:
        raise ContextLengthExceeded(
            f"The {what} has {num_chars} characters, more than can fit the model's context of "
            f"{ready.max_model_len} tokens; shorten it.",
            param=param,
        )


def check_num_tokens(num_tokens: int, ready: EngineReady, param: str) -> None:
    """Refuse more tokens than any prompt has, without looking at them.

    Raises:
        ContextLengthExceeded: more than ``max_model_len``.
    """
    if num_tokens > ready.max_model_len:
        raise ContextLengthExceeded(
            f"The model's context is {ready.max_model_len} tokens; the prompt has {num_tokens}. Shorten it.",
            param=param,
        )


def check_token_ids(token_ids: Sequence[int], ready: EngineReady, param: str) -> None:
    """Refuse ids outside the model's vocabulary.

    Raises:
        InvalidRequest: naming ``param``.
    """
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < ready.vocab_size):
        raise InvalidRequest(f"{param} must hold token ids from 0 to {ready.vocab_size - 1}.", param=param)


def check_vocabulary(request: SamplingFields, ready: EngineReady) -> None:
    """Refuse stop_token_ids and logit_bias that name tokens the model does not have.

    Raises:
        InvalidRequest: naming the field.
    """
    check_token_ids(request.stop_token_ids or (), ready, "stop_token_ids")
    check_token_ids([int(key) for key in request.logit_bias or ()], ready, "logit_bias")


def requested_max_tokens(request: SamplingFields) -> int | None:
    """``max_tokens`` under either of its names, or None.

    Raises:
        InvalidRequest: both names are given and they differ.
    """
    if not isinstance(request, ChatRequest) or request.max_completion_tokens is None:
        return request.max_tokens
    if request.max_tokens not in (None, request.max_completion_tokens):
        raise InvalidRequest("max_tokens and max_completion_tokens differ; send one of them.", param="max_tokens")
    return request.max_completion_tokens


def completion_budget(num_prompt_tokens: int, requested: int | None, ready: EngineReady, param: str) -> int:
    """Tokens that the answer may have: what was asked for, else all that is left of the context.

    Raises:
        InvalidRequest: an empty prompt.
        ContextLengthExceeded: prompt and answer do not fit the context together.
    """
    if num_prompt_tokens == 0:
        raise InvalidRequest("The prompt is empty; it needs at least one token.", param=param)
    left = ready.max_model_len - num_prompt_tokens
    if left < (1 if requested is None else requested):
        asked = ", which leaves none for the answer" if not requested else f" and {requested} tokens were asked for"
        raise ContextLengthExceeded(
            f"The model's context is {ready.max_model_len} tokens; the prompt has {num_prompt_tokens}{asked}. "
            "Shorten the prompt or lower max_tokens.",
            param=param,
        )
    return left if requested is None else requested


def sampling_params(request: SamplingFields, *, max_tokens: int, logprobs: int | None, seed: int) -> SamplingParams:
    """The engine's form of the sampling fields, for the first choice.

    Raises:
        InvalidRequest: a value out of bounds, naming the field.
    """
    stop = request.stop
    return SamplingParams(
        max_tokens=max_tokens,
        logit_bias=tuple((int(key), bias) for key, bias in (request.logit_bias or {}).items()),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        temperature=_or(request.temperature, 1.0),
        top_k=max(request.top_k or 0, 0),
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        min_tokens=request.min_tokens or 0,
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
    )


def seed_of(request: SamplingFields) -> int:
    """The request's seed, else a random one: answers without a seed differ from one another."""
    return secrets.randbits(63) if request.seed is None else request.seed


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
