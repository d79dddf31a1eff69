"""What a call has cost: the usage that its client is told, over all choices, and where its time went.

Called by ``generation``. Invariant: the four parts of the time add up to the whole, in whole microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import Usage
from server.answers import CompletionTokensDetails, CompletionUsage, PromptTokensDetails, UpwellUsage


def usage_of(choices: Sequence[Usage | None], choices_per_prompt: int) -> CompletionUsage:
    """Tokens over all choices; None for one that has not ended.

    A prompt counts once, and what was cached of it is what its first choice found: the others find what that one has
    computed.
    """
    ended = [usage for usage in choices if usage]
    prompts = [usage for usage in choices[::choices_per_prompt] if usage]
    num_prompt = sum(usage.prompt_tokens for usage in prompts)
    num_answer = sum(usage.completion_tokens for usage in ended)
    return CompletionUsage(
        num_prompt,
        num_answer,
        num_prompt + num_answer,
        PromptTokensDetails(sum(usage.cached_tokens for usage in prompts)),
        CompletionTokensDetails(
            reasoning_tokens=sum(usage.reasoning_tokens for usage in ended),
            accepted_prediction_tokens=sum(usage.accepted_tokens for usage in ended),
            rejected_prediction_tokens=sum(usage.rejected_tokens for usage in ended),
        ),
    )


def account(
    choices: Sequence[Usage | None],
    choices_per_prompt: int,
    last: Usage,
    *,
    arrived_at_s: float,
    submitted_at_s: float,
    now_s: float,
) -> UpwellUsage:
    """Where the time went, and why no more of the prompts was cached.

    Args:
        choices: as ``usage_of`` has them.
        choices_per_prompt: the request's n.
        last: of the choice that ended last; queue, prefill and decode are this one's.
        arrived_at_s: when the request's head was there; ``last.queue_s`` begins here too.
        submitted_at_s: when its choices were handed to the engine: only from here on, time is spent in its queue.
        now_s: when all is done but to send what this is part of.
    """
    queue_us = _us(last.queue_s - (submitted_at_s - arrived_at_s))
    prefill_us, decode_us = _us(last.prefill_s), _us(last.decode_s)
    in_engine_us = queue_us + prefill_us + decode_us
    wall_us = max(_us(now_s - arrived_at_s), in_engine_us)  # each part is rounded by itself
    prompts = [usage for usage in choices[::choices_per_prompt] if usage]
    return UpwellUsage(
        wall_us=wall_us,
        queue_us=queue_us,
        prefill_us=prefill_us,
        decode_us=decode_us,
        transport_us=wall_us - in_engine_us,
        preemptions=sum(usage.preemptions for usage in choices if usage),
        missed_tokens=sum(usage.prompt_tokens - usage.cached_tokens for usage in prompts),
        cache_miss=next((usage.cache_miss.value for usage in prompts if usage.cache_miss), None),
    )


def _us(seconds: float) -> int:
    """Microseconds, and none where clocks were read in another order than things happened."""
    return max(0, round(1e6 * seconds))
