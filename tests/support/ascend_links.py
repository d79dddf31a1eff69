"""The links of the chain that stands in for an Ascend machine, and which of them this machine can try."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tools.ascend.toolchain import missing

REPOSITORY = Path(__file__).parents[2]
BUILT = REPOSITORY / "build" / "ascend"
"""Compiled kernels are kept here from one run to the next, by what they were made of."""
COMPILERS = ("c++", "g++", "clang++")
"""Those that the Makefile looks for: where there is none, the reference backend is tested, and no link is."""


def link(number: int, *, attention: bool = True) -> pytest.MarkDecorator:
    """A mark for tests of one link: left out, with the reason, where what that link needs is not installed.

    Nothing is left out where UPWELL_REQUIRE_ASCEND is set.

    Args:
        number: of the link.
        attention: whether tests of link 5 compute attention or write to a cache of int8: only these need LLVM.
    """
    lacking = missing(number, attention=attention)
    if not any(map(shutil.which, COMPILERS)):
        lacking.insert(
            0, "a C++ compiler: the reference backend alone is tested without (the Debian package build-essential)"
        )
    if not lacking or os.environ.get("UPWELL_REQUIRE_ASCEND"):
        return pytest.mark.skipif(False, reason="all of it is here or has to be")
    return pytest.mark.skip(reason=f"link {number} of the Ascend chain needs {'; '.join(lacking)}")
