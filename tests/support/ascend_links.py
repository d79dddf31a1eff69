"""The links of the chain that stands in for an Ascend machine, and which of them this machine can try."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.ascend.toolchain import missing

REPOSITORY = Path(__file__).parents[2]
BUILT = REPOSITORY / "build" / "ascend"
"""Compiled kernels are kept here from one run to the next, by what they were made of."""


def link(number: int) -> pytest.MarkDecorator | list[pytest.MarkDecorator]:
    """Marks for a test module of one link: left out, with the reason, where its tools are not installed.

    Nothing is left out where UPWELL_REQUIRE_ASCEND is set.
    """
    lacking = missing()
    if not lacking or os.environ.get("UPWELL_REQUIRE_ASCEND"):
        return []
    return pytest.mark.skip(reason=f"link {number} of the Ascend chain needs {'; '.join(lacking)}")
