"""The table of Ascend error codes, and finding one in what the stack says."""

from __future__ import annotations

import re

import pytest

from kernels.ascend.errors import COMMON, ERRORS, FAMILIES, Tells, explain, family, find, is_out_of_memory

CAPTURE = """EE9999: Inner Error!
EE9999[PID: 753] 2026-04-30-03:48:59.964.776 (EE9999):  rtMemcpy execution failed, reason=the current capture mode does
        TraceBack (most recent call last):
       synchronized memcpy failed, kind = 1, runtime result = 107030[FUNC:ReportCallError][FILE:log_inner.cpp][LINE:148]
       wait event to be complete failed, runtime result = 507011[FUNC:ReportCallError][FILE:log_inner.cpp][LINE:148]"""
STREAMS = """capture_begin:NPUGraph.cpp:230 NPU function error: AclmdlRICaptureBegin, error code is 207008
[ERROR] 2026-06-04-10:17:18 (PID:46706, Device:0, RankID:-1) ERR00100 PTA call acl api failed
[PID: 46706] 2026-06-04-10:17:18.891.861 Insufficient_Stream_Resources(EL0009): too few."""

FULL = """NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity; 57.02 GiB already allocated)
[ERROR] 2026-06-04-10:17:18 (PID:46706, Device:0, RankID:-1) ERR00006 PTA memory error"""

FUSED = """NPU function error: call aclnnFusedInferAttentionScoreV3 failed, error code is 561002
[ERROR] 2026-06-04-10:17:18 (PID:46706, Device:0, RankID:-1) ERR00100 PTA call acl api failed.
E89999[PID: 46706] 2026-06-04-10:17:18.891.861 (E89999): queryD(256), keyD(256) and valueD(256) must be 192/128/64"""


class OutOfMemoryError(RuntimeError):
    """What torch calls its own."""


@pytest.mark.parametrize(
    "code", ["107030", "207001", "207008", "507011", "507014", "507015", "507035", "EI0006", "EZ9999"]
)
def test_codes_that_users_meet_are_there(code):
    assert explain(code).startswith(f"{code}: ")


def test_each_row_is_whole():
    assert len(ERRORS) >= 18
    assert len({error.code for error in ERRORS}) == len(ERRORS)
    for error in ERRORS:
        assert re.fullmatch(r"\d{6}|E[A-Z\d]\d{4}|ERR\d{5}|-\d{4}|NPU out of memory", error.code)
        assert error.cause.endswith(".")
        assert error.remedy.endswith(".")
        assert "->" not in str(error)
        assert "\n" not in str(error)
        assert error.source


def test_what_is_said_once_is_said_by_several():
    for common in COMMON:
        assert sum(common in error.remedy for error in ERRORS) > 2


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (CAPTURE, "107030"),
        (STREAMS, "207008"),
        ("ACL stream synchronize failed, error code:507035", "507035"),
        ("rtKernelLaunchWithHandleV2 failed: 507014", "507014"),
        ("rtMemcpy:ErrCode=107030, desc=[the current capture mode]", "107030"),
        ("OP errno[361001] OpName:[SparseAttn_0] Check failed", "361001"),
        ("npu error ACL_ERROR_RT_AICORE_EXCEPTION", "507015"),
        ("get ei0006 from hccl", "EI0006"),
        ("Communication_Error_Timeout(EI0002): waits", "EI0002"),
        ("dcmi module initialize failed. ret is -8005", "-8005"),
        ("ends with 507015.", "507015"),
        ("EZ9999: Inner Error! only", "EZ9999"),
        ("NPU function error: query, error code is 507011 ... kernel failed: 507015", "507015"),
        ("first 207001 then 507015", "207001"),
        (FULL, "NPU out of memory"),
        ("npu OUT of memory", "NPU out of memory"),
    ],
)
def test_the_code_that_says_most_is_found(message, code):
    assert find(message).code == code


@pytest.mark.parametrize(
    "message",
    [
        "",
        "out of memory",
        "1507015",
        "5070150",
        "0x507015",
        "507015.5",
        "0.507015",
        "AEI0006",
        "EI00061",
        "[PID: 507015] 2026-01-01",
        "(PID:507015, Device:0)",
        "tid:507015 runs",
        "[ERROR] RUNTIME(507015,4):2026",
        "[api_c.cc:1081]507015 rtMemcpy:",
        "EI0099",
    ],
)
def test_what_is_no_code_is_none(message):
    assert explain(message) is None


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("in other words"),
        RuntimeError(FULL),
        RuntimeError("NPU function error: aclrtMallocAlign32, error code is 207001\n[Error]: ..."),
        RuntimeError("rtMalloc failed, runtime result = 207018[FUNC:ReportCallError]"),
        RuntimeError("ErrCode=200000, desc=[bad alloc]"),
        RuntimeError("Memory_Allocation_Failure(EL0004): too little"),
        RuntimeError("npu error ACL_ERROR_RT_MEMORY_ALLOCATION"),
    ],
)
def test_too_little_memory_is_known_by_name_and_by_what_it_says(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "The size of tensor a (200000) must match that of b (207001)\n[ERROR] ERR01001 OPS invalid parameter"
        ),
        RuntimeError("NPU function error: aclrtSynchronizeStream, error code is 507015"),
        RuntimeError("error code is 2070010"),
        RuntimeError("failed [PID: 207001]"),
        RuntimeError("no room in memory"),
        KeyError("NPU out of memory"),
    ],
)
def test_other_errors_are_not_of_memory(error):
    assert not is_out_of_memory(error)


def test_what_fails_after_it_is_of_memory_too():
    """Such as the end of a capture, which fails where its body has."""
    body, end, other = OutOfMemoryError(FULL), RuntimeError("error code is 107030"), ValueError("of its own")
    end.__context__ = body
    assert is_out_of_memory(end)
    other.__cause__ = end
    assert is_out_of_memory(other)
    other.__cause__, other.__context__ = None, end  # as ``from None`` leaves them
    assert not is_out_of_memory(other)
    other.__suppress_context__, end.__context__ = False, other
    assert not is_out_of_memory(other), "a ring of errors ends"


def test_an_explanation_is_cause_and_remedy_in_one_line():
    error = find("507015")
    assert explain("error code is 507015\nRectify the fault") == f"507015: {error.cause} {error.remedy}"


def test_a_refused_fused_attention_names_the_way_out():
    assert find(FUSED).code == "561002"
    assert "--prompt-attention own" in explain(FUSED)


def test_places_and_consequences_are_marked():
    kinds = {error.code: error.tells for error in ERRORS}
    assert kinds["EE9999"] is kinds["ERR00100"] is Tells.PLACE
    assert kinds["507011"] is Tells.CONSEQUENCE
    assert kinds["507015"] is Tells.CAUSE


def test_the_first_digit_tells_a_kind():
    assert family("507999") == FAMILIES["5"]
    for text in ("407999", "50799", "5079999", "EI0006", "", "５07999"):
        assert family(text) is None
