"""An engine in a few lines: it implements ``EngineClient`` in this process, and does what a script says.

A script turns a request into steps: deltas to send, events to wait for, and the death of the engine. Nothing sleeps:
tests set the events. Tokens are bytes (``ByteVocabulary``), so texts and token ids are each other's obvious image.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from engine.errors import EngineDead
from engine.types import (
    EngineReady,
    EngineStats,
    ErrorInfo,
    FinishReason,
    GenerateRequest,
    TokenDelta,
    TokenLogprobs,
    Usage,
)
from server.chat_profile import ChatProfile
from server.context import ChatPrompt
from server.conversation import Conversation
from server.engine_client import EngineState, EngineUnavailable, TokenStream
from server.thoughts import MarkerTokens

BOS, EOS = 256, 257
VOCAB_SIZE = 258
MODEL = "fake-model"


NO_DETAILS = {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
"""``completion_tokens_details`` of a plain answer."""


class Die:
    """A step: the engine process ends."""


Step = TokenDelta | asyncio.Event | Die
Script = Callable[[GenerateRequest], Iterable[Step]]

READY = EngineReady(
    architecture="FakeForCausalLM",
    vocab_size=VOCAB_SIZE,
    max_model_len=1024,
    num_blocks=64,
    block_size=16,
    backend="fake",
    provenance={"attention": "fake"},
    weights_bytes=0,
    kv_cache_bytes=0,
    fingerprint="fp_0123456789ab",
)


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    """Made up, but a function of the token alone."""
    top = [((token_id + i) % 256, -0.5 - i) for i in range(num_top)]
    return TokenLogprobs(token_id, -0.5 - token_id / 1000, top)


def usage_of(request: GenerateRequest, num_tokens: int) -> Usage:
    """What a request costs; half of its prompt is said to have been cached."""
    prompt = len(request.prompt_ids)
    return Usage(prompt, num_tokens, prompt // 2, queue_s=0.001, prefill_s=0.002, decode_s=0.003, preemptions=0)


def deltas_for(request: GenerateRequest, text: str, cuts: Sequence[int] = ()) -> Iterator[TokenDelta]:
    """``text`` as deltas that end after the token counts in ``cuts``; no delta shows part of a character.

    What is asked for of the prompt comes before, with a delta for all but its last token, as the engine may do.
    """
    if request.prompt_logprobs is not None:
        scored = [logprobs_of(i, request.prompt_logprobs) for i in request.prompt_ids[1:]]
        for piece in filter(None, (scored[:-1], scored[-1:])):
            yield TokenDelta(request.request_id, [], "", prompt_logprobs=piece)
    token_ids = list(text.encode())[: request.sampling.max_tokens]
    finish = FinishReason.LENGTH if len(token_ids) < len(text.encode()) else FinishReason.STOP
    ends = [*sorted({cut for cut in cuts if 0 < cut < len(token_ids)}), len(token_ids)]
    shown = ""
    for start, end in zip([0, *ends], ends, strict=False):
        last = end == len(token_ids)
        so_far = bytes(token_ids[:end]).decode("utf-8", "replace" if last else "ignore")
        top = request.sampling.logprobs
        yield TokenDelta(
            request.request_id,
            token_ids[start:end],
            so_far[len(shown) :],
            None if top is None else [logprobs_of(i, top) for i in token_ids[start:end]],
            finish if last else None,
            usage_of(request, len(token_ids)) if last else None,
        )
        shown = so_far


def says(text: str) -> Script:
    """A script that answers every request with ``text``, one token a step."""
    return lambda request: deltas_for(request, text, range(len(text.encode())))


def failure(request: GenerateRequest, code: str, message: str, param: str | None = None) -> TokenDelta:
    """The delta that ends a request with an error."""
    return TokenDelta(request.request_id, [], "", finish=FinishReason.ERROR, error=ErrorInfo(code, message, param))


class FakeEngine:
    """Runs one task for each request.

    Attributes:
        submitted: every request handed over, in order.
        aborted: ids of aborted requests, in order.
    """

    def __init__(self, script: Script | None = None, ready: EngineReady | None = READY) -> None:
        self.script = script or says("Hello, world")
        self.state = EngineState.READY if ready else EngineState.LOADING
        self.ready = ready
        self.stats = EngineStats(blocks_free=ready.num_blocks if ready else 0)
        self.restarts = 0
        self.submitted: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self._streams: dict[str, TokenStream] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._prompts_done: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._tasks)

    def submit(self, requests: Sequence[GenerateRequest]) -> TokenStream:
        """See ``EngineClient.submit``."""
        if self.state is not EngineState.READY:
            raise EngineUnavailable(f"The engine is {self.state}.", retry_after_s=7)
        stream = TokenStream([request.request_id for request in requests], self._abort)
        for request in requests:
            self.submitted.append(request)
            self._streams[request.request_id] = stream
            self._tasks[request.request_id] = asyncio.get_running_loop().create_task(self._run(request, stream))
        return stream

    def die(self) -> None:
        """End the engine under all open requests, and start a new one."""
        self.restarts += 1
        self.stats = EngineStats()
        for request_id, stream in list(self._streams.items()):
            stream.fail(EngineDead("The engine ended unexpectedly; this request was lost. Send it again."))
            self._drop(request_id, cancel=True)

    async def _run(self, request: GenerateRequest, stream: TokenStream) -> None:
        """As in the engine, no choice of a group comes before the first one's prompt is done."""
        prompt_done = self._prompts_done[request.group or request.request_id]
        for step in self.script(request):
            await asyncio.sleep(0)
            if request.group not in {"", request.request_id}:
                await prompt_done.wait()
            elif not (isinstance(step, TokenDelta) and step.prompt_logprobs is not None):
                prompt_done.set()
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Die):
                self.die()
            else:
                stream.feed(step)
                if step.finish is not None:
                    break
        self._drop(request.request_id, cancel=False)

    def _abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self._drop(request_id, cancel=True)

    def _drop(self, request_id: str, *, cancel: bool) -> None:
        self._streams.pop(request_id, None)
        task = self._tasks.pop(request_id, None)
        if cancel and task is not None and task is not asyncio.current_task():
            task.cancel()


class ByteVocabulary:
    """Token ids are bytes; two more are control tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """The byte itself."""
        return b"" if token_id >= BOS else bytes([token_id])

    def token_text(self, token_id: int) -> str:
        """For control tokens their name."""
        return {BOS: "<bos>", EOS: "<eos>"}.get(token_id) or chr(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether it is one of the two."""
        return token_id >= BOS


class BytePrompts:
    """Prompts as UTF-8 bytes; a conversation as lines 'role: content'."""

    markers = MarkerTokens()

    def __init__(self, profile: ChatProfile | None = None) -> None:
        self.profile = profile or ChatProfile(family_name="hermes", call_form="hermes")

    def chat(self, conversation: Conversation) -> ChatPrompt:
        """See ``PromptEncoder.chat``."""
        return ChatPrompt(list("".join(f"{m['role']}: {m['content']}\n" for m in conversation.messages).encode()))

    def text(self, prompt: str, *, add_special: bool = True) -> list[int]:
        """See ``PromptEncoder.text``; there are no control tokens around a text."""
        return list(prompt.encode())

    def prediction(self, answer: str) -> list[int]:
        """See ``PromptEncoder.prediction``."""
        return list(answer.encode())
