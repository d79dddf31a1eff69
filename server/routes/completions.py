"""POST /v1/completions: plain text in, its continuation out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import UNSET, UnsetType
from starlette.types import Receive, Scope, Send

from engine.errors import InvalidRequest
from engine.types import EngineReady, SamplingParams, TokenDelta, TokenLogprobs
from server.answers import CompletionUsage, TextChoice, TextCompletion
from server.context import PromptEncoder, Vocabulary
from server.disconnect import DisconnectWatch
from server.envelope import record_of
from server.generation import Answer, build_call, off_loop_if_long
from server.grammar.answers import grammar_of
from server.logprobs import Echo, TextLogprobsWriter
from server.request_effects import SaidWithAnswer, note_who, said_with_answer, without_metadata
from server.sampling import (
    check_num_tokens,
    check_text_length,
    check_token_ids,
    completion_budget,
    sampling_params,
    seed_of,
)
from server.schemas import MAX_PROMPTS, CompletionRequest
from server.service import CompletionService, new_id
from server.validation import parse_completion

Prompt = str | list[int]


class Completions:
    """ASGI endpoint: one or more texts, or token ids, to be continued."""

    def __init__(self, service: CompletionService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        service = self._service
        body = await service.read_body(scope, receive)
        request = await off_loop_if_long(len(body), lambda: parse_completion(body))
        ready = service.check(request)
        note_who(request, record_of(scope))
        prompts = prompts_of(request)
        for prompt in prompts:
            _check_prompt(prompt, ready, service.context.max_chars_per_token)
        num_chars = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        with service.admission.reserve(len(prompts) * (request.n or 1)):
            async with DisconnectWatch(receive):
                grammar = await grammar_of(request.response_format, service.context.grammars, len(body))
                token_ids = await off_loop_if_long(num_chars, lambda: _encode_all(prompts, service.context.prompts))
                foretold = await service.prediction_ids(request, ready)
                asked = _with_sampling(request, token_ids, ready)
                record = record_of(scope)
                call = build_call(
                    new_id("cmpl-"),
                    request,
                    record,
                    asked,
                    grammar=grammar,
                    prediction_ids=foretold,
                    prompt_logprobs=request.prompt_logprobs,
                )
                said = said_with_answer(request, ready.fingerprint)
                vocabulary = service.context.vocabulary
                echoes = _echoes(prompts, token_ids, vocabulary) if request.echo else []
                answer_format = TextFormat(call.id, request, vocabulary, echoes, said)
                await service.answer(call, answer_format, scope, send)


def prompts_of(request: CompletionRequest) -> list[Prompt]:
    """The request's prompts, each a text or a list of token ids.

    Raises:
        InvalidRequest: no prompt, too many, or a mixture.
    """
    given = request.prompt
    if isinstance(given, str):
        return [given]
    texts = [item for item in given if isinstance(item, str)]
    token_ids = [item for item in given if isinstance(item, int)]
    lists = [item for item in given if isinstance(item, list)]
    if not given or len(given) not in (len(texts), len(token_ids), len(lists)):
        raise InvalidRequest(
            "prompt must be a text, a list of texts, a list of token ids, or a list of such lists.", param="prompt"
        )
    prompts: list[Prompt] = [token_ids] if token_ids else [*texts, *lists]
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt may hold {MAX_PROMPTS} prompts at most.", param="prompt")
    return prompts


def _check_prompt(prompt: Prompt, ready: EngineReady, max_chars_per_token: int) -> None:
    if isinstance(prompt, str):
        check_text_length(len(prompt), ready, max_chars_per_token, "prompt")
    else:
        check_num_tokens(len(prompt), ready, "prompt")
        check_token_ids(prompt, ready, "prompt")


def _encode_all(prompts: Sequence[Prompt], encoder: PromptEncoder) -> list[list[int]]:
    return [encoder.text(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def _with_sampling(
    request: CompletionRequest, prompts: Sequence[list[int]], ready: EngineReady
) -> list[tuple[list[int], SamplingParams]]:
    pairs = []
    for prompt_ids in prompts:
        budget = completion_budget(len(prompt_ids), request.max_tokens, ready, "prompt")
        seed = seed_of(request)  # without one in the request, equal prompts get answers that differ
        sampling = sampling_params(request, max_tokens=budget, logprobs=request.logprobs, seed=seed)
        pairs.append((prompt_ids, sampling))
    return pairs


class TextFormat:
    """Text answers and chunks; one for each request.

    With ``echo`` each answer begins with its prompt: in a stream, in the first chunk. From the engine the prompt's log
    probabilities come with its first choice alone, and all of them before any other choice has anything.
    """

    def __init__(
        self,
        call_id: str,
        request: CompletionRequest,
        vocabulary: Vocabulary,
        echoes: Sequence[Echo],
        said: SaidWithAnswer,
    ) -> None:
        self._id = call_id
        self._created = int(time.time())
        self._model = request.model
        self._vocabulary = vocabulary
        self._logprobs = request.logprobs is not None
        self._said = said
        self._n = request.n or 1
        self._echoes = echoes
        self._begun: set[int] = set()
        self._of_prompts: dict[int, list[TokenLogprobs]] = {}
        self._writers: dict[int, TextLogprobsWriter] = {}
        self._no_usage: UnsetType | None = None if request.include_usage else UNSET

    def chunk(self, index: int, delta: TokenDelta) -> TextCompletion | None:
        """See ``AnswerFormat.chunk``."""
        of_prompt, entries = delta.prompt_logprobs or [], delta.logprobs or []
        if not (delta.text or (self._logprobs and entries) or of_prompt or delta.finish):
            return None
        finish = delta.finish.value if delta.finish else None
        choice = self._choice(index, delta.text, of_prompt, entries, finish)
        completion = self._completion([choice], self._no_usage)
        self._said = without_metadata(self._said)
        return completion

    def usage_chunk(self, usage: CompletionUsage) -> TextCompletion:
        """See ``AnswerFormat.usage_chunk``."""
        return self._completion([], usage)

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> TextCompletion:
        """See ``AnswerFormat.whole``."""
        choices = [
            self._choice(
                index,
                "".join(answer.text),
                answer.prompt_logprobs,
                answer.logprobs,
                answer.finish.value if answer.finish else "stop",
            )
            for index, answer in enumerate(answers)
        ]
        return self._completion(choices, usage)

    def _choice(
        self,
        index: int,
        text: str,
        of_prompt: list[TokenLogprobs],
        entries: list[TokenLogprobs],
        finish: str | None,
    ) -> TextChoice:
        """What is new of a choice; with what is told first, if this is the first of it."""
        place, is_first = index // self._n, index not in self._begun
        echo = self._echoes[place] if self._echoes else None
        if is_first:
            self._begun.add(index)
            self._writers[index] = TextLogprobsWriter(self._vocabulary, echo)
            text = (echo.text if echo else "") + text
        if not self._logprobs:
            return TextChoice(index, text, None, finish)
        if self._n > 1 and echo is not None:
            of_first = self._of_prompts.setdefault(place, [])
            if index % self._n == 0:
                of_first += of_prompt
            elif is_first:
                of_prompt = of_first
        return TextChoice(index, text, self._writers[index].write(entries, of_prompt), finish)

    def _completion(self, choices: list[TextChoice], usage: CompletionUsage | UnsetType | None) -> TextCompletion:
        return TextCompletion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage, **self._said
        )


def _echoes(prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]], vocabulary: Vocabulary) -> list[Echo]:
    return [Echo.of(prompt, ids, vocabulary) for prompt, ids in zip(prompts, token_ids, strict=True)]
