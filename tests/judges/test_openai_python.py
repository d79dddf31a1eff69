"""The OpenAI SDK's own tests, run against a real server: they pass, or ``openai_python.toml`` says why not."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import openai
import pytest

from tests.judges.fetched import sdist
from tests.support.server_process import running_server

SUITE = tomllib.loads((Path(__file__).parent / "openai_python.toml").read_text())
NAMES = ("gpt-6-astra", "gpt-3.5-turbo-instruct")
"""Of the models that the suite asks for."""
NO_SUCCESS = ("failure", "error", "skipped")
MAX_MODEL_LEN = "32"
"""Most of its requests set no bound: an answer ends with the context, and what it says is not looked at."""


@pytest.fixture(scope="module")
def server():
    named = [option for name in NAMES for option in ("--served-model-name", name)]
    with running_server(*named, "--max-model-len", MAX_MODEL_LEN) as made:
        yield made


def outcomes(report):
    """(file, test) -> the messages of all its runs, "" for one that passed."""
    found = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname").rpartition(".")[0].replace(".", "/") + ".py"
        failure = next(
            (case.find(kind) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None
        )
        found[file, case.get("name").partition("[")[0]].append("" if failure is None else failure.get("message"))
    return found


def differences(found, left_out):
    """Where the outcomes are not those that the list has, in words."""
    listed = {(entry["file"], test) for entry in left_out for test in entry["tests"]}
    wrong = [f"{file}: {test} is listed, but there is no such test" for file, test in sorted(listed - set(found))]
    for (file, test), messages in sorted(found.items()):
        num_failed = len(messages) - messages.count("")
        if (file, test) in listed and num_failed < len(messages):
            wrong.append(f"{file}: {test} is listed, but passes in {messages.count('')} of {len(messages)} runs")
        elif (file, test) not in listed and num_failed:
            wrong.append(f"{file}: {test} fails in {num_failed} of {len(messages)} runs: {max(messages)}")
    return wrong


def test_the_suite_is_of_the_sdk_that_is_installed():
    assert openai.__version__ == SUITE["version"]


def test_what_passes_and_what_does_not_is_as_listed(server, tmp_path):
    folder, report = sdist("openai", SUITE["version"], SUITE["sha256"]), tmp_path / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=short",
         f"--junitxml={report}", *SUITE["files"]],
        cwd=folder, env={**os.environ, "TEST_API_BASE_URL": f"{server.url}/v1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stdout + done.stderr  # 1: some fail, as listed
    found = outcomes(report)
    assert not differences(found, SUITE["left_out"])
    assert sum(map(len, found.values())) == 215  # that they all were collected, with every client
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("messages", "listed", "problem"),
    [
        (["", ""], [], None),
        (["no", "no"], ["test_a"], None),
        (["", "no"], [], "a.py: test_a fails in 1 of 2 runs: no"),
        (["", "no"], ["test_a"], "a.py: test_a is listed, but passes in 1 of 2 runs"),
        (["", ""], ["test_a"], "a.py: test_a is listed, but passes in 2 of 2 runs"),
        (["", ""], ["test_b"], "a.py: test_b is listed, but there is no such test"),
    ],
)
def test_the_list_is_held_against_what_happened(messages, listed, problem):
    found, left_out = {("a.py", "test_a"): messages}, [{"file": "a.py", "tests": listed}]
    assert differences(found, left_out) == ([problem] if problem else [])
