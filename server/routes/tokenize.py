"""POST /tokenize and POST /detokenize: text to tokens and back, as the model's prompts and answers have them.

They take none of the places that completions wait for, and hold up none of them: only so many are dealt with at once,
and long texts on threads of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
from msgspec.structs import asdict
from starlette.types import Receive, Scope, Send

from server.admission import Admission
from server.answers import Detokenized, Tokenized
from server.chat_schemas import ChatRequest
from server.conversation import conversation_of
from server.disconnect import DisconnectWatch
from server.generation import LONG_TEXT_CHARS, off_loop_if_long
from server.logprobs import text_of, token_string
from server.sampling import check_token_ids
from server.service import CompletionService, send_json
from server.tokenize_schemas import TokenizeRequest
from server.validation import check_chat, parse_detokenize, parse_tokenize

MAX_AT_ONCE = 32
"""Bodies, of 8 MB at most each, that are held at once; more are answered with a 429."""
NUM_THREADS = 2
"""For long texts. They are not those on which the prompts of completions are tokenised, which so find one, too."""


class Turns:
    """Bounds what both endpoints do at once; one for both."""

    def __init__(self) -> None:
        self._places = Admission(MAX_AT_ONCE)
        self._threads = ThreadPoolExecutor(NUM_THREADS, "tokenize")

    async def run(self, size: int, encode: Callable[[], bytes], receive: Receive) -> bytes:
        """The result of ``encode``, which deals with ``size`` characters or tokens.

        Raises:
            Overloaded: there is no place.
            ClientDisconnected: the client left.
        """
        with self._places.reserve(1):
            async with DisconnectWatch(receive):
                if size <= LONG_TEXT_CHARS:
                    return encode()
                return await asyncio.get_running_loop().run_in_executor(self._threads, encode)


class Tokenize:
    """ASGI endpoint: the token ids of a text, or of a conversation as a chat completion's prompt has them."""

    def __init__(self, service: CompletionService, turns: Turns) -> None:
        self._service = service
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = await self._service.read_body(scope, receive)
        request = await off_loop_if_long(len(body), partial(parse_tokenize, body))
        max_model_len = self._service.check_model(request.model).max_model_len

        def encode() -> bytes:
            token_ids = self._token_ids(request)
            vocabulary = self._service.context.vocabulary
            strings = [token_string(vocabulary, i) for i in token_ids] if request.return_token_strs else None
            return msgspec.json.encode(Tokenized(len(token_ids), max_model_len, token_ids, strings))

        await send_json(await self._turns.run(len(body), encode, receive), send)

    def _token_ids(self, request: TokenizeRequest) -> list[int]:
        prompts = self._service.context.prompts
        if request.prompt is not None:
            return prompts.text(request.prompt, add_special=request.add_special_tokens is not False)
        return prompts.chat(conversation_of(chat_of(request), prompts.profile)).token_ids


class Detokenize:
    """ASGI endpoint: the text of token ids, control tokens by their names."""

    def __init__(self, service: CompletionService, turns: Turns) -> None:
        self._service = service
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = await self._service.read_body(scope, receive)
        request = await off_loop_if_long(len(body), partial(parse_detokenize, body))
        ready = self._service.check_model(request.model)

        def encode() -> bytes:
            check_token_ids(request.tokens, ready, "tokens")
            return msgspec.json.encode(Detokenized(text_of(request.tokens, self._service.context.vocabulary)))

        await send_json(await self._turns.run(len(request.tokens), encode, receive), send)


def chat_of(request: TokenizeRequest) -> ChatRequest:
    """The chat completion whose prompt is asked for.

    Raises:
        InvalidRequest: fields that do not go together.
    """
    given = asdict(request)
    chat = ChatRequest(
        **{name: value for name, value in given.items() if name in ChatRequest.__struct_fields__ and value is not None}
        | {"model": request.model or ""}
    )
    check_chat(chat)
    return chat
