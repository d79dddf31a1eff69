"""POST /v1/completions: plain text in, its continuation out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from engine.errors import InvalidRequest
from engine.types import EngineReady, SamplingParams, TokenDelta, TokenLogprobs
from server.answers import CompletionUsage, TextChoice, TextCompletion
from server.context import ServerContext, Vocabulary
from server.disconnect import DisconnectWatch
from server.echo import Echo, Prompt, echo_of
from server.envelope import record_of
from server.generation import Answer, build_call, off_loop_if_long
from server.grammar.answers import grammar_of
from server.logprobs import TextLogprobsWriter, joined
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
        with service.admission.reserve(len(prompts) * (request.n or 1)):
            async with DisconnectWatch(receive):
                grammar = await grammar_of(request.response_format, service.context.grammars, len(body))
                size = sum(map(len, prompts))
                token_ids, echoes = await off_loop_if_long(size, lambda: _encoded(request, prompts, service.context))
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
                answer_format = TextFormat(call.id, request, service.context.vocabulary, echoes, said)
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


def _encoded(
    request: CompletionRequest, prompts: Sequence[Prompt], context: ServerContext
) -> tuple[list[list[int]], list[Echo]]:
    """The tokens of prompts; and how they are shown, if they are."""
    encoder, vocabulary = context.prompts, context.vocabulary
    token_ids = [encoder.text(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not request.echo:
        return token_ids, []
    with_offsets = request.logprobs is not None
    return token_ids, [
        echo_of(prompt, ids, encoder, vocabulary, with_offsets=with_offsets)
        for prompt, ids in zip(prompts, token_ids, strict=True)
    ]


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

    With ``echo`` each answer begins with its prompt: in a stream, in the first chunk. The prompt's log probabilities
    come in events of their own, each for all choices of the prompt: the engine computes them with the first choice, and
    has all of them before any choice goes on.
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
        self._num_told = [0] * len(echoes)  # of each prompt's tokens, with log probabilities
        self._writers: dict[int, TextLogprobsWriter] = {}
        self._no_usage: UnsetType | None = None if request.include_usage else UNSET

    def chunk(self, index: int, delta: TokenDelta) -> TextCompletion | None:
        """See ``AnswerFormat.chunk``."""
        if delta.prompt_logprobs is not None:
            choices = self._prompt_choices(index // self._n, delta.prompt_logprobs)
        elif delta.text or (self._logprobs and delta.logprobs) or delta.finish:
            finish = delta.finish.value if delta.finish else None
            choices = [self._choice(index, delta.text, delta.logprobs or (), finish)]
        else:
            choices = []
        if not choices:
            return None
        completion = self._completion(choices, self._no_usage)
        self._said = without_metadata(self._said)
        return completion

    def usage_chunk(self, usage: CompletionUsage) -> TextCompletion:
        """See ``AnswerFormat.usage_chunk``."""
        return self._completion([], usage)

    def whole(self, answers: Sequence[Answer], usage: CompletionUsage) -> TextCompletion:
        """See ``AnswerFormat.whole``."""
        told = {}
        for place in range(len(self._echoes) if self._logprobs else 0):
            entries = answers[place * self._n].prompt_logprobs
            told[place] = self._echoes[place].logprobs(0, entries, self._vocabulary)
            self._num_told[place] = 1 + len(entries)
        choices = []
        for index, answer in enumerate(answers):
            finish = answer.finish.value if answer.finish else "stop"
            choice = self._choice(index, "".join(answer.text), answer.logprobs, finish)
            if choice.logprobs is not None and index // self._n in told:
                choice = replace(choice, logprobs=joined(told[index // self._n], choice.logprobs))
            choices.append(choice)
        return self._completion(choices, usage)

    def _prompt_choices(self, place: int, entries: Sequence[TokenLogprobs]) -> list[TextChoice]:
        """The next of a prompt's tokens, as all of its choices begin with them."""
        logprobs = self._echoes[place].logprobs(self._num_told[place], entries, self._vocabulary)
        self._num_told[place] += len(logprobs.tokens)
        return [
            TextChoice(index, self._opening(index), logprobs, None)
            for index in range(place * self._n, (place + 1) * self._n)
        ]

    def _choice(self, index: int, text: str, entries: Sequence[TokenLogprobs], finish: str | None) -> TextChoice:
        """What is new of a choice."""
        is_first, text = index not in self._writers, self._opening(index) + text
        if not self._logprobs:
            return TextChoice(index, text, None, finish)
        logprobs = self._writers[index].write(entries)
        if is_first and self._echoes and not self._num_told[index // self._n]:  # a prompt of one token
            logprobs = joined(self._echoes[index // self._n].logprobs(0, (), self._vocabulary), logprobs)
        return TextChoice(index, text, logprobs, finish)

    def _opening(self, index: int) -> str:
        """What a choice's text begins with, the first time that there is anything of it."""
        if index in self._writers:
            return ""
        text = self._echoes[index // self._n].text if self._echoes else ""
        self._writers[index] = TextLogprobsWriter(self._vocabulary, len(text))
        return text

    def _completion(self, choices: list[TextChoice], usage: CompletionUsage | UnsetType | None) -> TextCompletion:
        return TextCompletion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage, **self._said
        )
