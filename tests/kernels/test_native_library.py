"""The native library is found where an installation has it, and its absence is told."""

from __future__ import annotations

import ctypes
import re
import shutil

import numpy as np
import pytest

from kernels.cpu import abi, library
from kernels.ops import BackendOptions, BackendUnavailable
from kernels.resolve import resolve
from tests.support.backends import DEVICES, tables


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


NATIVE = pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")


def damaged(path, how):
    """Write a library that is damaged so."""
    if how == "text":
        path.write_text("not one\n" * 100)
    elif how == "another library's":
        shutil.copy(np.random.mtrand.__file__, path)
    elif how == "empty":
        path.touch()
    else:
        path.write_bytes(how(library.find_library().read_bytes()))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("text", "invalid ELF header"),
        ("empty", "file too short"),
        ("another library's", "undefined symbol: upwell_abi"),
        pytest.param(lambda whole: whole[: len(whole) // 2], "cut short: it has .* bytes of", marks=NATIVE, id="half"),
        pytest.param(lambda whole: whole[:-1], "cut short: it has .* bytes of", marks=NATIVE, id="all but a byte"),
    ],
)
def test_a_damaged_library_is_passed_over_and_told(tmp_path, monkeypatch, how, told):
    damaged(tmp_path / "libupwell.so", how)
    monkeypatch.setattr(library, "_PLACES", (tmp_path,))
    resolved = resolve("auto", BackendOptions())
    assert resolved.ops.info.name == "reference"
    (note,) = resolved.notes
    assert re.fullmatch(rf"cpu: the native library cannot be loaded: .*{told}.*\. Install Upwell again\.", note)
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        resolve("cpu", BackendOptions())


def test_tests_are_left_out_without_a_library_but_not_because_it_is_damaged(places):
    assert set(tables()) == {"reference-f32"}
    damaged(places[0] / "libupwell.so", "text")
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        tables()


class WiderCache(ctypes.Structure):
    _fields_ = (*abi.Cache._fields_, ("more", ctypes.c_int64))


WiderCache.__name__ = "Cache"


@NATIVE
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
        library.load_library()
