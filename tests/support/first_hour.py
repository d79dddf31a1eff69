"""Steps of the first-hour script in a test's own process: the platform they run on, and what of them failed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.ascend import first_hour


@contextmanager
def emulated_platform() -> Iterator[tuple[Any, Any]]:
    """The platform; and torch_npu, to be broken."""
    torch = importlib.import_module("torch")
    threads = torch.get_num_threads()
    try:
        yield first_hour.emulated(), importlib.import_module("torch_npu")
    finally:
        torch.set_num_threads(threads)


def failures(capsys, *arguments, platform):
    """What failed of steps in this process, and what there is to do about it, if they ended with 1."""
    assert first_hour.main([*arguments, "--emulated"], lambda: platform) == 1
    shown, _, summary = capsys.readouterr().out.partition("\n--- summary\n")
    found = re.findall(r"^  FAIL       (.*)\n             what to do: (.*)$", shown, re.MULTILINE)
    assert len(found) == shown.count("\n  FAIL       ")
    assert "\nfailed: step" in summary
    assert all(text in summary for text, _ in found)
    return found
