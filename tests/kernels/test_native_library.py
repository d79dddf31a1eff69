"""The native library is found where an installation has it, and its absence is told."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from kernels.cpu import abi, backend, library
from kernels.ops import BackendOptions, BackendUnavailable
from kernels.resolve import resolve
from tests.support.backends import DEVICES


@pytest.fixture
def places(tmp_path, monkeypatch):
    places = (tmp_path / "wheel", tmp_path / "tree")
    for place in places:
        place.mkdir()
    monkeypatch.setattr(library, "_PLACES", places)
    return places


def test_a_wheels_library_lies_beside_the_package_and_a_trees_where_it_was_built(places):
    assert library.find_library() is None
    (places[1] / "libupwell.so").touch()
    assert library.find_library() == places[1] / "libupwell.so"
    (places[0] / "libupwell.so").touch()
    assert library.find_library() == places[0] / "libupwell.so"


def test_without_a_library_auto_takes_the_reference_and_says_why(places):
    resolved = resolve("auto", BackendOptions())
    assert resolved.ops.info.name == "reference"
    assert resolved.notes == (f"cpu: {library.WHY_NOT}",)
    with pytest.raises(BackendUnavailable, match="without its native library"):
        resolve("cpu", BackendOptions())


def test_a_file_that_is_no_library_is_told(places):
    (places[0] / "libupwell.so").write_text("not one")
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        backend.load_library()


class WiderCache(ctypes.Structure):
    _fields_ = (*abi.Cache._fields_, ("more", ctypes.c_int64))


WiderCache.__name__ = "Cache"


@pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")
@pytest.mark.parametrize(
    ("name", "other", "told"),
    [
        *((name, abi.constants()[name] + 1, name) for name in abi.constants() if name.isidentifier()),
        ("Cache", WiderCache, "bytes of Cache"),
        ("INSTRUCTION", np.dtype([("op", np.int32), ("a", np.int64, 15)]), "bytes of INSTRUCTION"),
        ("constants", lambda: {"MAX_NEW": 1}, "MAX_NEW is None in it, 1 in Python"),
    ],
)
def test_a_library_with_other_sizes_or_limits_than_python_is_told(monkeypatch, name, other, told):
    monkeypatch.setattr(abi, name, other)
    with pytest.raises(BackendUnavailable, match=f"cannot be loaded.*{told}"):
        backend.load_library()
