"""The part of a completion that both APIs share: checks against the model, admission, the engine, the answer.

``CompletionService`` is built by ``app`` and handed to the routes of chat and text completions.
"""

from __future__ import annotations

import secrets

import msgspec
from starlette.types import Receive, Scope, Send

from engine.types import EngineReady
from server.admission import Admission
from server.context import ServerContext
from server.disconnect import ClientDisconnected
from server.engine_client import EngineUnavailable, TokenStream
from server.envelope import record_of
from server.errors import UnknownModel, answer_for
from server.generation import AnswerFormat, Call, CallProgress, collect, off_loop_if_long
from server.guard import read_json_body
from server.metrics import Metrics
from server.sampling import check_text_length, check_vocabulary
from server.schemas import SamplingFields
from server.sse import EventWriter, StreamLimits, event, stream_answer


class CompletionService:
    """Runs calls against the engine and answers them.

    Attributes:
        context: what the server was started with.
        admission: places for open requests.
    """

    def __init__(self, context: ServerContext, metrics: Metrics) -> None:
        self.context = context
        self.admission = Admission(context.max_waiting)
        self._metrics = metrics

    async def read_body(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body; see ``guard.read_json_body``."""
        return await read_json_body(
            scope,
            receive,
            max_body_bytes=self.context.max_body_bytes,
            idle_s=self.context.body_idle_s,
            total_s=self.context.body_total_s,
        )

    def check(self, request: SamplingFields) -> EngineReady:
        """Hold the request against the loaded model; returns what the engine said about it.

        Raises:
            UnknownModel: another model is asked for.
            EngineUnavailable: no model has been loaded yet.
            InvalidRequest: a token id that the model does not have.
        """
        ready = self.check_model(request.model)
        check_vocabulary(request, ready)
        return ready

    def check_model(self, name: str | None) -> EngineReady:
        """Hold a model's name, None for any, against what is served; raises as ``check``."""
        if name is not None and name not in self.context.model_names:
            raise UnknownModel(name)
        ready = self.context.engine.ready
        if ready is None:
            raise EngineUnavailable("The model is still loading; try again shortly.", retry_after_s=5)
        return ready

    async def prediction_ids(self, request: SamplingFields, ready: EngineReady) -> list[int]:
        """Tokens of the request's prediction; none without one. An answer can have no more than the context has.

        Raises:
            ContextLengthExceeded: it is longer than any answer.
        """
        if request.prediction is None:
            return []
        text, prompts = request.prediction.text, self.context.prompts
        check_text_length(len(text), ready, self.context.max_chars_per_token, "prediction", "prediction")
        token_ids = await off_loop_if_long(len(text), lambda: prompts.prediction(text))
        return token_ids[: ready.max_model_len]

    async def answer(self, call: Call, answer_format: AnswerFormat, scope: Scope, send: Send) -> None:
        """Generate, and send the answer as the call wants it.

        Raises:
            UpwellError: the answer is an error. If the stream had begun, its error event has been sent.
            ClientDisconnected: the client left, or does not read.
        """
        progress = CallProgress(call, self._metrics)
        deltas = self.context.engine.submit(call.requests)
        try:
            if call.stream:
                await self._stream(call, deltas, progress, answer_format, scope, send)
            else:
                answers = await collect(deltas, progress, len(call.requests))
                usage = progress.usage()
                encoded = await off_loop_if_long(
                    sum(answer.num_chars(call.choices_per_prompt) for answer in answers),
                    lambda: msgspec.json.encode(answer_format.whole(answers, usage)),
                )
                await send_json(encoded, send)
        except Exception as error:
            progress.give_up("abort" if isinstance(error, ClientDisconnected) else "error")
            raise
        finally:
            deltas.close()
            progress.give_up("abort")
            usage = progress.usage()
            record = record_of(scope)
            record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens

    async def _stream(
        self,
        call: Call,
        deltas: TokenStream,
        progress: CallProgress,
        answer_format: AnswerFormat,
        scope: Scope,
        send: Send,
    ) -> None:
        writer = EventWriter(scope, send)
        limits = StreamLimits(self.context.keep_alive_s, self.context.write_stall_s)
        try:
            await stream_answer(
                deltas, progress, answer_format, writer, include_usage=call.include_usage, limits=limits
            )
        except ClientDisconnected:
            raise
        except Exception as error:
            if writer.started:
                told = event(answer_for(error, record_of(scope).request_id).body)
                await writer.write_within(limits.write_stall_s, told, last=True)
            raise


def new_id(prefix: str) -> str:
    """An id that no other request has."""
    return prefix + secrets.token_hex(16)


async def send_json(encoded: bytes, send: Send) -> None:
    """Answer with JSON."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(encoded))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": encoded})
