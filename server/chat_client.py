"""``upwell chat``: a conversation in the terminal with a running server."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import httpx
import msgspec

from engine.errors import UpwellError
from server.settings import check_key, is_loopback

TIMEOUT = httpx.Timeout(10.0, read=600.0)


class ChatFailed(UpwellError):
    """The server could not be reached, or answered with an error."""


class Chat:
    """Keeps the messages and streams the answers to standard output.

    Args:
        url: address of the server.
        api_key: key to send, if it wants one.
        system: system message to begin with.
        options: further fields of each request; None leaves a field to the server.
    """

    def __init__(self, url: str, api_key: str | None, system: str | None, options: dict[str, float | None]) -> None:
        headers = {}
        if api_key is not None:
            check_key(api_key)
            headers["Authorization"] = f"Bearer {api_key}"
        self._url = url.rstrip("/")
        try:
            local = is_loopback(httpx.URL(self._url).host)
            # A proxy for the way out does not know this machine's own servers.
            self._client = httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT, trust_env=not local)
        except httpx.InvalidURL as error:
            raise ChatFailed(f"--url {url} is not an address: {error}.") from error
        self._options = options
        self._messages = [{"role": "system", "content": system}] if system else []
        self._model = self._first_model()

    def talk(self) -> None:
        """Ask and answer until end of input; Ctrl-C stops an answer, or ends the conversation at the prompt."""
        interactive = sys.stdin.isatty()
        if interactive:
            print(f"Chatting with {self._model} on {self._url}. Ctrl-D ends.", file=sys.stderr)
        while True:
            try:
                question = input("> " if interactive else "")
            except EOFError:
                return
            if question.strip():
                self.ask(question)

    def ask(self, question: str) -> None:
        """One question; prints the answer as it comes and remembers both."""
        self._messages.append({"role": "user", "content": question})
        answer = ""
        try:
            for piece in self._stream():
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        print()
        self._messages.append({"role": "assistant", "content": answer})

    def _stream(self) -> Iterator[str]:
        body = {"model": self._model, "messages": self._messages, "stream": True, **self._options}
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise ChatFailed(_error_text(response.read()))
                yield from _pieces(response.iter_lines())
        except httpx.HTTPError as error:
            raise ChatFailed(f"the connection to {self._url} broke: {error}.") from error

    def _first_model(self) -> str:
        try:
            response = self._client.get("/v1/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatFailed(f"no server answers on {self._url} ({error}); start one with: upwell serve") from error
        if response.status_code != httpx.codes.OK:
            raise ChatFailed(_error_text(response.content))
        try:
            return str(msgspec.json.decode(response.content)["data"][0]["id"])
        except (msgspec.DecodeError, LookupError, TypeError):
            raise ChatFailed(f"what answers on {self._url} is not an OpenAI-compatible server.") from None


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Texts of a server-sent event stream.

    Raises:
        ChatFailed: the server sent an error, or ended without saying that it is done.
    """
    for line in lines:
        data = line.removeprefix("data: ")
        if data == line:  # a comment or an empty line
            continue
        if data == "[DONE]":
            return
        event = msgspec.json.decode(data)
        if "error" in event:
            raise ChatFailed(event["error"]["message"])
        for choice in event["choices"]:
            yield choice["delta"].get("content") or ""
    raise ChatFailed("the answer was cut off.")


def _error_text(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return "the server answered with something that is not an OpenAI error."
