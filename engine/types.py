"""What crosses a boundary: between the server and the engine process, and between a caller and ``Engine``.

Every type here is a frozen ``msgspec.Struct`` of plain data. On the wire each is a msgpack array (``array_like``), so
field order is part of the protocol; both ends are always the same version of this file, since the server starts its
engine itself. Times named ``*_at_s`` are ``time.monotonic()`` seconds, which on Linux all processes share.
"""

from __future__ import annotations

import enum
import math

import msgspec

from engine.errors import InvalidRequest

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 128


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """An end-of-sequence token, a stop token or a stop string."""
    LENGTH = "length"
    """``max_tokens`` reached."""
    ERROR = "error"
    """See ``TokenDelta.error``."""


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """How the next token is chosen, and when to stop.

    The order of application is the order of the fields: bias and penalties on the raw logits, then temperature,
    then top_k, top_p and min_p, then one draw. Bounds are checked on construction, so also after decoding.

    Attributes:
        max_tokens: tokens to generate at most; with 0 the prompt is computed, and nothing else.
        logit_bias: (token id, bias) pairs, added to the raw logits.
        repetition_penalty: divides positive and multiplies negative logits of every token seen in prompt or answer.
        frequency_penalty: subtracted once per occurrence in the answer.
        presence_penalty: subtracted once if the token occurs in the answer.
        temperature: 0 means greedy: the highest logit, the lowest token id on a tie.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        seed: 64-bit key of the request's own random numbers.
        choice: which of the n answers to one request this is; a second word of the key.
        stop: texts that end the answer; not part of it.
        stop_token_ids: tokens that end the answer; not part of its text.
        min_tokens: neither end-of-sequence nor stop tokens before that many tokens.
        ignore_eos: end-of-sequence tokens do not end the answer.
        logprobs: None for none, else how many alternatives to report with each token, 0 to 20.

    Raises:
        InvalidRequest: a value out of bounds, naming the field.
    """

    max_tokens: int
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check every bound; NaN fails each comparison and so is refused too."""
        _require(self.max_tokens >= 0, "max_tokens", "0 or more")
        _require(0.0 <= self.temperature <= 2.0, "temperature", "between 0 and 2")
        _require(self.top_k >= 0, "top_k", "0 (off) or a positive number")
        _require(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1")
        _require(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1")
        _require(0.01 <= self.repetition_penalty <= 100.0, "repetition_penalty", "between 0.01 and 100")
        _require(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", "between -2 and 2")
        _require(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", "between -2 and 2")
        _require(-(2**63) <= self.seed < 2**64, "seed", "a 64-bit integer")
        _require(0 <= self.choice < 2**31, "n", "a small index")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "between 0 and max_tokens")
        _require(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} texts")
        _require(all(0 < len(s) <= 1000 for s in self.stop), "stop", "texts of 1 to 1000 characters")
        _require(len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} ids")
        _require(len(self.logit_bias) <= MAX_LOGIT_BIAS, "logit_bias", f"at most {MAX_LOGIT_BIAS} entries")
        _require(
            all(math.isfinite(b) and -100.0 <= b <= 100.0 for _, b in self.logit_bias),
            "logit_bias",
            "biases between -100 and 100",
        )
        _require(
            self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS,
            "top_logprobs",
            f"between 0 and {MAX_TOP_LOGPROBS}",
        )


def _require(ok: bool, param: str, expected: str) -> None:
    if not ok:
        raise InvalidRequest(f"{param} must be {expected}.", param=param)


class Thoughts(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a model writes before it answers, between two markers.

    Attributes:
        start, end: the markers, as text; tokens may cut them in any way.
        is_open: the prompt ends amid thoughts. Otherwise the answer has thoughts if it begins with ``start``.
        start_ids: ``start`` in tokens, in the model's own way. Before an answer that is held to a grammar, a model that
            is free to think can only do so if the first of them is the whole marker.
        is_forced: the answer is made to begin with ``start_ids``; otherwise that is the model's to decide.
        end_ids: tokens that end thoughts which have used up their budget, in the model's own way.
        budget: tokens that the thoughts may have, without the markers; None for any number.

    Raises:
        InvalidRequest: a marker without text, or tokens missing that are to be forced.
    """

    start: str
    end: str
    is_open: bool = False
    start_ids: tuple[int, ...] = ()
    is_forced: bool = False
    end_ids: tuple[int, ...] = ()
    budget: int | None = None

    def __post_init__(self) -> None:
        """Check that what is to be forced can be."""
        _require(bool(self.start and self.end), "thinking", "between two markers")
        _require(bool(self.start_ids) or not self.is_forced, "thinking", "begun with tokens, if it is forced")
        _require(
            self.budget is None or (self.budget >= 0 and bool(self.end_ids)),
            "thinking.budget_tokens",
            "0 or more, where the model's thoughts can be ended",
        )


class GenerateRequest(msgspec.Struct, frozen=True, array_like=True, tag="generate"):
    """One answer to generate. A chat request with n=3 is three of these.

    Attributes:
        request_id: unique among open requests.
        prompt_ids: at least one token.
        priority: lower runs first; equal priorities run in order of arrival.
        tenant: the prefix cache never shares a block between two tenants.
        arrived_at_s: when the server accepted the request.
        grammar: what the answer may say after its thoughts, in llguidance's JSON form; empty for anything.
        shown_ids: control tokens whose text is part of the answer's.
        thoughts: what the model thinks between, before it answers; None if it does not.
        prediction_ids: what the answer is likely to be. It changes when tokens come, not which.
        keep_cached: its blocks leave the prefix cache after those of requests without it.
        group: a name that the choices of one request share; they compute their prompt once. Empty for a lone choice.
        prompt_logprobs: None for none, else how many alternatives to report with each of the prompt's tokens but the
            first. Of a group, the first choice alone asks; no other one has a token before all of them are reported.

    Raises:
        InvalidRequest: a number of alternatives out of bounds.
    """

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    priority: int = 0
    tenant: str = ""
    arrived_at_s: float = 0.0
    grammar: str = ""
    shown_ids: tuple[int, ...] = ()
    thoughts: Thoughts | None = None
    prediction_ids: tuple[int, ...] = ()
    keep_cached: bool = False
    group: str = ""
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        _require(
            self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_TOP_LOGPROBS,
            "logprobs",
            f"between 0 and {MAX_TOP_LOGPROBS}",
        )


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """The client left. Unknown ids are ignored: the request may have ended meanwhile. No delta answers this."""

    request_id: str


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural log probabilities of the model's own distribution (before bias, penalties and temperature).

    Attributes:
        top: (token id, logprob) of the most likely tokens, likeliest first; ties by lower id.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class CacheMiss(enum.StrEnum):
    """Why no more of a prompt was found in the prefix cache."""

    NEW = "new"
    """None of it is known."""
    DIFFERS = "differs"
    """It goes on otherwise than all that is known."""
    EVICTED = "evicted"
    """The next block was known, and had to make room. After many more evictions that is forgotten."""
    PREFIX_CACHING_OFF = "prefix_caching_off"
    """``CacheConfig.enable_prefix_caching`` is off."""
    PROMPT_LOGPROBS = "prompt_logprobs"
    """Log probabilities of the prompt were asked for; the cache has none."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What one request cost; sent with its last delta.

    Attributes:
        cached_tokens: prompt tokens that were found in the prefix cache when the request was first admitted.
        queue_s: arrival to first admission; prefill_s: admission to first token; decode_s: first to last token.
        preemptions: how often the request gave up its blocks and was computed again.
        reasoning_tokens: tokens of the answer that were thoughts, with their markers.
        accepted_tokens: tokens of the answer that its prediction foretold.
        rejected_tokens: tokens of the prediction that were tried, and did not come.
        cache_miss: why no more of the prompt was found in the prefix cache at that time; None if all was but its
            last token, which is always computed.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    preemptions: int
    reasoning_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    cache_miss: CacheMiss | None = None


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended with FinishReason.ERROR; code as in ``errors.InvalidRequest``."""

    code: str
    message: str
    param: str | None = None


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one request.

    ``text`` is what may be shown now: it never ends in part of a character, and it holds back what may turn out to be
    the beginning of a stop string. So ``token_ids`` may be non-empty while ``text`` is empty, and the other way round.
    Exactly one delta of a request has ``finish`` set, and it is the last one.

    Attributes:
        prompt_logprobs: of the next tokens of the prompt, beginning with its second, if they were asked for. They come
            in deltas that hold nothing else, all before the first token of the answer.
    """

    request_id: str
    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprobs] | None = None
    finish: FinishReason | None = None
    usage: Usage | None = None
    error: ErrorInfo | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


GAP_BOUNDS_S = (25e-6, 50e-6, 75e-6, 1e-4, 1.5e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.025)
"""Upper bounds of the sizes by which ``EngineStats`` counts gaps between steps."""


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """State after a step, and counters since the engine started.

    Attributes:
        native_cpu_s: CPU seconds of all threads that compute, in native code.
        native_wall_s: seconds that the engine waited for native code.
        gaps_s: seconds between the native code of steps that followed each other; see ``step_gaps.StepGaps``.
        gap_counts: how many such gaps there were, by size: up to each of ``GAP_BOUNDS_S``, and longer.
        native_rested_calls: native calls that one of several threads made alone.
    """

    running: int = 0
    waiting: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0
    blocks_used: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    native_cpu_s: float = 0.0
    native_wall_s: float = 0.0
    gaps_s: float = 0.0
    gap_counts: tuple[int, ...] = (0,) * (len(GAP_BOUNDS_S) + 1)
    native_rested_calls: int = 0


class StepOutput(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """The ONE message of a step; with no deltas, a sign of life of an idle engine or from amid a long prompt.

    Attributes:
        stats: with the end of a request, when idle, and a few times a second; else nothing new is said.
    """

    deltas: list[TokenDelta]
    stats: EngineStats | None


class LoadProgress(msgspec.Struct, frozen=True, array_like=True, tag="loading"):
    """Bytes of weights laid out so far."""

    done_bytes: int
    total_bytes: int


class EngineReady(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The engine can take requests.

    Attributes:
        max_model_len: tokens that prompt and answer may have together.
        provenance: operation name -> backend that runs it.
        fingerprint: of what tokens depend on beside the request; see ``fingerprint``.
    """

    architecture: str
    vocab_size: int
    max_model_len: int
    num_blocks: int
    block_size: int
    backend: str
    provenance: dict[str, str]
    weights_bytes: int
    kv_cache_bytes: int
    fingerprint: str = ""


class EngineFailed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The engine process is about to exit.

    Attributes:
        expected: True for a ModelError or ConfigError, whose message is all there is to say.
    """

    message: str
    expected: bool


Inbound = GenerateRequest | Abort
Outbound = StepOutput | LoadProgress | EngineReady | EngineFailed
