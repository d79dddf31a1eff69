"""Error codes of the Ascend stack: what each means and what to do; nobody here has met one on a device.

Rows say what public sources say, and ``source`` names the class: CANN's own tables (``ACL`` the ``aclError`` return
codes, ``ACLNN`` those of operators, ``REFERENCE`` the error-code reference of HCCL, driver and runtime), ``TORCH_NPU``
(its table and messages), and threads of issue trackers by number. CANN's remedy for nearly every 5xxxxx is to send the
log to Huawei; where threads know more, that is told first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

ACL = "CANN aclError table"
ACLNN = "CANN aclnn return codes"
REFERENCE = "CANN error-code reference"
TORCH_NPU = "torch_npu error codes"
PLOG = "~/ascend/log/debug/plog"
"""Where CANN writes the log of a process unless it is told otherwise."""
_SUPPORT = f"Keep {PLOG} of that time and send it to Huawei's support."
_FIRST = f"Look for the first error above it and in {PLOG}; this one only follows from it."
_KERNEL = f"Set ASCEND_LAUNCH_BLOCKING=1 to see which operation it was; its core and address are in {PLOG}."
_MEMORY = "Free the NPU of other processes (npu-smi info), or set --kv-cache-memory-bytes, or less of it."
COMMON = (_KERNEL, _FIRST, _MEMORY, _SUPPORT)
"""Remedies of many codes: a table says them once."""


class Tells(IntEnum):
    """How much a code says, most first: of several codes in one text, the first kind names the reason."""

    CAUSE = 0
    CONSEQUENCE = 1
    PLACE = 2


@dataclass(frozen=True)
class AscendError:
    """One code.

    Attributes:
        code: as it stands in messages: six digits, or letters and digits; of torch_npu's allocator, which has none, the
            words that its messages begin with.
        name: CANN's name for it.
        cause: a sentence.
        remedy: one or two sentences.
        source: where that comes from.
        tells: how much the code says.
    """

    code: str
    name: str
    cause: str
    remedy: str
    source: str = ACL
    tells: Tells = Tells.CAUSE

    def __str__(self) -> str:
        """One line: the code, its cause, what to do."""
        return f"{self.code}: {self.cause} {self.remedy}"


def _row(code: str, name: str, text: str, source: str = ACL, tells: Tells = Tells.CAUSE) -> AscendError:
    cause, _, remedy = text.partition(" -> ")
    return AscendError(code, name, cause, remedy, source, tells)


_USAGE = (
    _row("100000", "ACL_ERROR_INVALID_PARAM", f"An argument was refused. -> {_KERNEL}"),
    _row(
        "100039",
        "ACL_ERROR_COMPILING_STUB_MODE",
        "The libraries found first are stubs to compile against. -> Take `stub` folders out of LD_LIBRARY_PATH.",
    ),
    _row(
        "107001",
        "ACL_ERROR_RT_INVALID_DEVICEID",
        "There is no device of that number. -> Check ASCEND_RT_VISIBLE_DEVICES against npu-smi info: it may name "
        "devices of the host that the container was not given.",
        f"{ACL}; gpustack #3352",
    ),
    _row("107002", "ACL_ERROR_RT_CONTEXT_NULL", "A thread calls the NPU before it has set a device. -> " + _FIRST),
    _row(
        "107003",
        "ACL_ERROR_RT_STREAM_CONTEXT",
        f"A stream is used in another context than its own. -> A fault of the program: report it. {_KERNEL}",
    ),
    _row(
        "107019", "ACL_ERROR_RT_WAIT_TIMEOUT", "Waiting for the device took too long. -> Try again; then " + PLOG + "."
    ),
    _row("107020", "ACL_ERROR_RT_TASK_TIMEOUT", f"A task ran longer than it may. -> {_KERNEL}"),
    _row(
        "107022",
        "ACL_ERROR_RT_DEVICE_TASK_ABORT",
        f"Tasks of the device are being thrown away after another error. -> {_FIRST}",
        tells=Tells.CONSEQUENCE,
    ),
    _row(
        "107027",
        "ACL_ERROR_RT_STREAM_CAPTURED",
        "A stream was waited for while a graph was being captured on it. -> A fault of the program: report it with "
        "the lines above.",
        f"{ACL}; vllm-ascend #10309",
    ),
    _row(
        "107030",
        "ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT",
        "An operation that waits, such as a blocking copy, ran while a graph was being captured. -> A fault of the "
        "program: report it with the operation named in the lines above.",
        f"{ACL}; vllm-ascend #9183, #9263",
    ),
    _row("107031", "ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT", "A capture met the default stream. -> Report it."),
    _row(
        "148049",
        "ACL_ERROR_INVALID_OPP_PATH",
        "ASCEND_OPP_PATH is not set, or not to CANN's operators. -> source set_env.sh in CANN's folder, "
        "/usr/local/Ascend/cann or, before CANN 8.5, ascend-toolkit.",
    ),
    _row(
        "161001", "ACLNN_ERR_PARAM_NULLPTR", f"An operator was given no tensor where it needs one. -> {_KERNEL}", ACLNN
    ),
    _row(
        "161002",
        "ACLNN_ERR_PARAM_INVALID",
        "An operator refused a dtype, shape or format. -> Its name and the argument stand in the lines after the "
        "code; check that torch_npu and CANN are of one set.",
        ACLNN,
    ),
)
_RESOURCES = (
    _row("200000", "ACL_ERROR_BAD_ALLOC", f"Memory could not be had. -> {_MEMORY}"),
    _row(
        "207000",
        "ACL_ERROR_RT_FEATURE_NOT_SUPPORT",
        "Driver or chip cannot do this. -> Compare driver and CANN with `upwell doctor`.",
    ),
    _row("207001", "ACL_ERROR_RT_MEMORY_ALLOCATION", f"Memory could not be had, most often HBM. -> {_MEMORY}"),
    _row(
        "207004",
        "ACL_ERROR_RT_NO_DEVICE",
        "No usable device. -> Check npu-smi info, that the container has /dev/davinciN, and ASCEND_RT_VISIBLE_DEVICES.",
        f"{ACL}; gpustack #3352",
    ),
    _row(
        "207005",
        "ACL_ERROR_RT_RESOURCE_ALLOC_FAIL",
        "Streams or the like ran out, often while graphs are captured. -> Lower --max-num-seqs, or take a newer "
        "driver and CANN.",
        f"{ACL}; vllm-ascend #9564",
    ),
    _row(
        "207006",
        "ACL_ERROR_RT_NO_PERMISSION",
        "This user may not use the device. -> Add it to the group of /dev/davinci*, which usually is HwHiAiUser.",
    ),
    _row("207007", "ACL_ERROR_RT_NO_EVENT_RESOURCE", "Events ran out. -> End other processes on the NPU."),
    _row(
        "207008",
        "ACL_ERROR_RT_NO_STREAM_RESOURCE",
        "Streams ran out: captured graphs hold some each. -> Lower --max-num-seqs, end other processes on the NPU, "
        "or take a newer driver and CANN, which have room for more graphs.",
        f"{ACL}; vllm-ascend FAQ 17",
    ),
    _row("207018", "ACL_ERROR_RT_DEVIDE_OOM", f"HBM is used up. -> {_MEMORY}"),
    _row("NPU out of memory", "OutOfMemoryError", f"torch found too little HBM. -> {_MEMORY}", TORCH_NPU),
    _row(
        "207019",
        "ACL_ERROR_RT_FEATURE_NOT_SUPPORT_UPDATE_OP",
        "The driver cannot update this operation in a captured graph. -> Install driver 25.0.RC1 or newer.",
    ),
    _row(
        "361001",
        "ACLNN_ERR_RUNTIME_ERROR",
        f"An operator's call of the runtime failed. -> {_FIRST}",
        ACLNN,
        Tells.CONSEQUENCE,
    ),
)
_DEVICE = (
    _row("500001", "ACL_ERROR_FAILURE", f"An internal error. -> {_FIRST}", tells=Tells.PLACE),
    _row("500002", "ACL_ERROR_GE_FAILURE", f"An error in CANN's graph engine. -> {_FIRST}", tells=Tells.PLACE),
    _row("507000", "ACL_ERROR_RT_INTERNAL_ERROR", f"An error inside the runtime. -> {_FIRST}", tells=Tells.CONSEQUENCE),
    _row(
        "507008", "ACL_ERROR_RT_SOC_VERSION", "The chip's version could not be read. -> Check npu-smi info and driver."
    ),
    _row("507010", "ACL_ERROR_RT_LOST_HEARTBEAT", f"The device's task scheduler is silent. -> {_SUPPORT}"),
    _row(
        "507011",
        "ACL_ERROR_RT_MODEL_EXECUTE",
        f"A captured graph failed as it ran. -> {_FIRST} --max-num-seqs 1 tells whether one request is enough for it.",
        f"{ACL}; vllm-ascend #6018, #8360",
        Tells.CONSEQUENCE,
    ),
    _row("507013", "ACL_ERROR_RT_SYS_DMA", f"The DMA hardware failed. -> {_SUPPORT}"),
    _row(
        "507014",
        "ACL_ERROR_RT_AICORE_TIMEOUT",
        f"A kernel did not end in time: it hangs, or waits for another core. -> {_KERNEL}",
        f"{ACL}; vllm-ascend #4972, #5493",
    ),
    _row(
        "507015",
        "ACL_ERROR_RT_AICORE_EXCEPTION",
        f"A kernel faulted, such as by an address out of range. -> {_KERNEL}",
        f"{ACL}; vllm-ascend #8015",
    ),
    _row("507017", "ACL_ERROR_RT_AICPU_TIMEOUT", f"An operator on the device's CPU did not end in time. -> {_KERNEL}"),
    _row(
        "507018",
        "ACL_ERROR_RT_AICPU_EXCEPTION",
        f"An operator on the device's CPU failed. -> {_KERNEL}",
        tells=Tells.CONSEQUENCE,
    ),
    _row(
        "507033",
        "ACL_ERROR_RT_DEV_SETUP_ERROR",
        "The device could not be opened. -> Compare driver, CANN and device nodes with `upwell doctor`; another "
        "container may have taken the device.",
        f"{ACL}; Ascend/pytorch #67, vllm-ascend #4284",
    ),
    _row("507034", "ACL_ERROR_RT_VECTOR_CORE_TIMEOUT", f"A vector kernel did not end in time. -> {_KERNEL}"),
    _row(
        "507035",
        "ACL_ERROR_RT_VECTOR_CORE_EXCEPTION",
        f"A vector kernel faulted, such as by an address out of range. -> {_KERNEL}",
        f"{ACL}; vllm-ascend #2349, #2763",
    ),
    _row("507046", "ACL_ERROR_RT_STREAM_SYNC_TIMEOUT", f"A stream was not done in time. -> {_KERNEL}"),
    _row("507053", "ACL_ERROR_RT_DEVICE_MEM_ERROR", f"Memory of the device is faulty (UCE). -> {_SUPPORT}"),
    _row("507054", "ACL_ERROR_RT_HBM_MULTI_BIT_ECC_ERROR", f"HBM is faulty (multi-bit ECC). -> {_SUPPORT}"),
    _row("507056", "ACL_ERROR_RT_LINK_ERROR", "The link between two devices broke. -> Try again; then check the link."),
    _row(
        "507899", "ACL_ERROR_RT_DRV_INTERNAL_ERROR", f"An error inside the driver. -> {_FIRST}", tells=Tells.CONSEQUENCE
    ),
    _row("507901", "ACL_ERROR_RT_SOCKET_CLOSE", f"Host and device lost their connection. -> {_FIRST}"),
    _row(
        "507903",
        "ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED",
        f"A capture went wrong. -> {_FIRST}",
        tells=Tells.CONSEQUENCE,
    ),
    _row(
        "561002",
        "ACLNN_ERR_INNER_TILING_ERROR",
        "An operator does not take these shapes, dtypes or values. -> The log names it and what it refuses. If it is "
        "aclnnFusedInferAttentionScore (heads of more than 128 in some CANN), serve with --prompt-attention own.",
        f"{ACLNN}; vllm-ascend #9632, sglang #28635",
    ),
    _row(
        "561003",
        "ACLNN_ERR_INNER_FIND_KERNEL_ERROR",
        "An operator has no kernel for this chip. -> Install CANN's operator package for the 910B, of the toolkit's "
        "version (Ascend-cann-910b-ops; before CANN 8.5 Ascend-cann-kernels-910b).",
        ACLNN,
    ),
    _row("561103", "ACLNN_ERR_INNER_NULLPTR", f"An error inside an operator. -> {_FIRST}", ACLNN, Tells.PLACE),
    _row(
        "561107",
        "ACLNN_ERR_INNER_OPP_PATH_NOT_FOUND",
        "ASCEND_OPP_PATH is not set. -> source CANN's set_env.sh.",
        ACLNN,
    ),
)
_LETTERS = (
    _row(
        "EI0001",
        "Config_Error_Invalid_Environment_Variable",
        "An HCCL_* variable has a wrong value. -> The message names it, and the values it may have.",
        REFERENCE,
    ),
    _row(
        "EI0002",
        "Communication_Error_Timeout",
        "A device waited in vain for another. -> Look for an earlier error on the other ranks; only if there is none "
        "raise HCCL_EXEC_TIMEOUT (1800 s), or check the links.",
        REFERENCE,
    ),
    _row(
        "EI0004",
        "File_Operation_Error_Parse",
        "The rank table is not valid. -> Check the file that the message names.",
        REFERENCE,
    ),
    _row(
        "EI0005",
        "Invalid_Argument",
        "Ranks call one collective with different arguments. -> Give all one model, one version and the same flags.",
        REFERENCE,
    ),
    _row(
        "EI0006",
        "Communication_Error_Get_Socket",
        "A rank could not reach another in time. -> Look for an earlier error on other ranks; check the links and that "
        "TLS is alike everywhere (hccn_tool -i N -tls -g); raise HCCL_CONNECT_TIMEOUT (120 s) if ranks start late.",
        f"{REFERENCE}; vllm-ascend #486",
    ),
    _row("EI0007", "Resource_Error", f"HCCL ran out of memory or notifies. -> {_MEMORY}", REFERENCE),
    _row(
        "EI0008",
        "Package_Error_Incorrect_HCCL_Version",
        "Hosts have different versions of CANN. -> Install the same one on all.",
        REFERENCE,
    ),
    _row("EI0011", "Resource_Error_Insufficient_Device_Memory", f"HCCL found too little HBM. -> {_MEMORY}", REFERENCE),
    _row(
        "EJ0001",
        "HCCP_Process_Initialization_Failure",
        "The last run is not gone from the device yet. -> End it, wait 10 s, and start again.",
        REFERENCE,
    ),
    _row(
        "EE1001",
        "Invalid_Argument",
        f"The runtime refused an argument. -> The reason follows the code. {_FIRST}",
        REFERENCE,
        Tells.CONSEQUENCE,
    ),
    _row("EL0004", "Memory_Allocation_Failure", f"The driver found too little memory. -> {_MEMORY}", REFERENCE),
    _row(
        "EL0009", "Insufficient_Stream_Resources", "Streams ran out. -> As for 207008: lower --max-num-seqs.", REFERENCE
    ),
    _row(
        "E30006",
        "OPP_verification",
        "CANN's operator package was found wrong. -> Install the one for this chip and this toolkit.",
        "vllm-ascend #4284",
    ),
    _row("EE9999", "Inner_Error", f"An error inside the runtime. -> {_FIRST}", REFERENCE, Tells.PLACE),
    _row("EH9999", "Inner_Error", f"An error inside ACL. -> {_FIRST}", REFERENCE, Tells.PLACE),
    _row("EI9999", "Inner_Error", f"An error inside HCCL. -> {_FIRST}", REFERENCE, Tells.PLACE),
    _row("EZ9999", "Inner_Error", f"An error in an operator. -> {_FIRST}", REFERENCE, Tells.PLACE),
    _row("ERR00100", "PTA_call_acl_api_failed", f"torch_npu's call of ACL failed. -> {_FIRST}", TORCH_NPU, Tells.PLACE),
    _row(
        "ERR02200", "DIST_call_hccl_api_failed", f"torch_npu's call of HCCL failed. -> {_FIRST}", TORCH_NPU, Tells.PLACE
    ),
    _row(
        "-8005",
        "dcmi_module_initialize_failed",
        "npu-smi could not open the driver. -> Usually another container holds the device; give this one the device "
        "nodes and the driver's folder.",
        "vllm-ascend #2698",
    ),
)
ERRORS: tuple[AscendError, ...] = (*_USAGE, *_RESOURCES, *_DEVICE, *_LETTERS)
FAMILIES = {
    "1": "use of the interface or set-up of the host",
    "2": "resources used up, or not supported by this hardware",
    "3": "a queue or another service that is full, empty or busy",
    "5": "a failure inside the software or on the device",
}
"""CANN's rule for six-digit codes: the first digit -> what kind it is."""

_BY_WORD = {error.code.upper(): error for error in ERRORS} | {
    error.name.upper(): error for error in ERRORS if "_RT_" in error.name
}
_WORD = re.compile(
    rf"(?<![\w.])(?:{'|'.join(sorted(map(re.escape, _BY_WORD), key=len, reverse=True))})(?![\w]|\.\d)", re.IGNORECASE
)
_IDS = re.compile(r"(?i:\b(?:host)?[pt]id\W{0,2}\d+)|\b[A-Z]{2,}\(\d+,|(?<=\])\d+\b")
"""Numbers of processes and threads in CANN's messages: six digits, as codes are."""
_NO_MEMORY = re.compile(
    r"\bNPU out of memory\b|\bACL_ERROR_(?:BAD_ALLOC|RT_MEMORY_ALLOCATION|RT_DEVIDE_OOM)\b|\b(?:EL0004|EI0011)\b|"
    r"(?:code|result|ret|errno|failed)(?:\s+is)?\W{1,4}(?:200000|207001|207018)\b",
    re.IGNORECASE,
)
"""That memory could not be had; a bare number may as well be a size, so it has to be called a code."""


def find(message: str) -> AscendError | None:
    """The known code in a text that says most, the first of those that say as much; None without one."""
    found = [_BY_WORD[match[0].upper()] for match in _WORD.finditer(_IDS.sub(" ", message))]
    return min(found, key=lambda error: error.tells, default=None)


def explain(message: str) -> str | None:
    """One line about the Ascend error in a message: code, cause, what to do; None if it holds no known code."""
    error = find(message)
    return None if error is None else str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that the device has too little memory, or came up while such an error was dealt with.

    Torch, which may not be there, is not asked: its OutOfMemoryError is known by name, what else its allocator and
    CANN raise, all of it RuntimeErrors, by what it says.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        is_named = type(link).__name__ == "OutOfMemoryError"
        if isinstance(link, RuntimeError) and (is_named or _NO_MEMORY.search(str(link))):
            return True
        seen.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False


def family(code: str) -> str | None:
    """What kind of error a six-digit code is by its first digit; None for anything else."""
    return FAMILIES.get(code[:1]) if re.fullmatch(r"\d{6}", code, re.ASCII) else None
