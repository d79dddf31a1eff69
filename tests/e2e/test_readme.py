"""The README, run as it stands: both examples and the commands, against the server that ``make serve`` starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server_process import running_server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, default_model):
    """The Makefile beside the environment that runs the tests; a fresh set-up is what tools/check_install.sh tries."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


@pytest.fixture(scope="module")
def server(checkout):
    with running_server(
        command=["make", "-C", str(checkout), "-o", ".venv/.serve", "serve", "PORT=0", "DEVICE=reference"]
    ) as made:
        yield made


def run(server, checkout, text, program=("bash", "-eu", "-c")):
    environment = {**os.environ, "UPWELL_URL": server.url}
    done = subprocess.run(
        [*program, text.replace(ADDRESS, server.url)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_one_that_is_run():
    """Those of the two doors: make serve is the fixture, make test is this run; the others are below."""
    assert SHELL[0].strip() == "make serve"
    assert [block.split()[0] for block in SHELL] == ["make", "curl", "make", ".venv/bin/upwell"]
    assert len(PYTHON) == 1


def test_make_serve_says_that_it_is_ready_and_what_to_try(server):
    words = server.output()
    for needed in (server.url, "smollm2-135m", "context length 8,192", "curl"):
        assert needed in words


def test_curl(server, checkout):
    assert "Paris" in run(server, checkout, SHELL[1])


def test_the_line_it_suggests_works(server, checkout):
    suggestion = re.search(r"try +(curl.*?\}')", server.output(), re.DOTALL)[1]
    assert '"chat.completion"' in run(server, checkout, suggestion.replace('"messages"', '"max_tokens": 5, "messages"'))


def test_python(server, checkout):
    assert "Paris" in run(server, checkout, PYTHON[0], (sys.executable, "-c"))


@pytest.mark.parametrize("command", SHELL[3].splitlines())
def test_upwell_commands(server, checkout, command):
    assert run(server, checkout, command).strip()
