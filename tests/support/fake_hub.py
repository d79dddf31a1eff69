"""A model hub on the loopback that speaks as much of Hugging Face's protocol as its client needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves one repository, and notes which files were fetched.

    Attributes:
        stall: a file of which half is sent, and then nothing more until the hub ends.
        stalled: set once that has happened.
    """

    daemon_threads = True

    def __init__(self, repository: str, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files = files
        self.fetched: list[str] = []
        self.stall: str | None = None
        self.stalled = threading.Event()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def fake_hub(repository: str, files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    with FakeHub(repository, files) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        yield hub
        hub.ended.set()
        hub.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        api, resolve = f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/{COMMIT}/"
        if path in {api, f"{api}/revision/{COMMIT}"}:
            siblings = [{"rfilename": name} for name in hub.files]
            self._send_json({"id": hub.repository, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"{api}/tree/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in hub.files.items()]
            self._send_json(tree)
        elif path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
            self._send_file(path.removeprefix(resolve))
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def _send_file(self, name: str) -> None:
        hub, content = self.server, self.server.files[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self._send(200, content, headers)
            return
        hub.fetched.append(name)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if hub.stall == name:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            hub.stalled.set()
            hub.ended.wait()
            return
        self._send(206 if start else 200, content[start:], headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
