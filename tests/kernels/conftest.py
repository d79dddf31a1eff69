"""What modules of kernels' tests share: the emulated torch_npu, and a host that is made of files."""

from __future__ import annotations

import pytest

from tests.support.ascend_machine import FakeHost


@pytest.fixture(scope="session")
def npu():
    """torch_npu with emulations in place of its operations."""
    from tools.ascend.emulation import install

    install()
    import torch_npu

    return torch_npu


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)
