"""What all tests share: the default model, fetched once into the user's cache, and that none is skipped unnoticed.

Where UPWELL_REQUIRE_ASCEND and UPWELL_REQUIRE_NATIVE are both set, as by .ci/run, a test or module that is skipped has
failed, whatever the reason.
"""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the suites run side by side: see settings.engine_environment
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # torch would import torch_npu, which finds no driver here

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from server.settings import DEFAULT_MODEL, cache_dir
from tools.ascend.stubs import LoadedOnDemand
from tools.ascend.toolchain import HOST_PROGRAMS

# transformers imports torch_npu wherever it is installed, which fails where there is no driver. So stubs stand in for
# it, and where none can be made, it is as if torch_npu were not installed.
if all(map(shutil.which, HOST_PROGRAMS)):
    sys.meta_path.insert(0, LoadedOnDemand(Path(__file__).parents[1] / ".pytest_cache" / "npu-stubs"))
else:
    sys.modules["torch_npu"] = None  # type: ignore[assignment]

settings.register_profile("upwell", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("few", settings.get_profile("upwell"), max_examples=10)  # where everything is slow
settings.load_profile("upwell")


def fail_if_skipped(report):
    """The report of a test or module; where all must run, one of a skip says instead that it failed, and why."""
    required = all(map(os.environ.get, ("UPWELL_REQUIRE_ASCEND", "UPWELL_REQUIRE_NATIVE")))
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped here, but this was: {report.longrepr[2]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_if_skipped((yield))


@pytest.fixture(scope="session")
def default_model():
    """Path of the default model's GGUF."""
    from engine.weights.store import resolve_model

    return resolve_model(DEFAULT_MODEL, cache_dir(None), lambda _: None).path
