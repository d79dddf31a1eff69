"""OpenAI's package for JavaScript against a real server with the default model: ``npm/*.test.mjs``, run by node."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.judges.fetched import NPM_PACKAGE, node, npm_packages
from tests.support.server_process import running_server

MODEL, KEY = "smollm2-135m", "sk-test-key"
FILES = sorted(path.name for path in NPM_PACKAGE.glob("*.test.mjs"))


@pytest.fixture(scope="module")
def server():
    with running_server(MODEL, "--api-key", KEY) as made:
        yield made


@pytest.fixture(scope="module")
def packages():
    return npm_packages()


@pytest.mark.parametrize("file", FILES)
def test_the_package_gets_what_it_expects(file, server, packages):
    names = {"UPWELL_TEST_URL": f"{server.url}/v1", "UPWELL_TEST_KEY": KEY, "UPWELL_TEST_MODEL": MODEL}
    done = subprocess.run(
        [str(node()), "--test", "--test-reporter=spec", file],
        cwd=packages, env={**os.environ, **names}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests 0" not in done.stdout


def test_there_is_a_file_for_each_subject():
    assert [f"{name}.test.mjs" for name in ("chat", "errors", "streaming", "structured", "tools")] == FILES
