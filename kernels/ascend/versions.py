"""Which versions go together: the sets that somebody vouches for, and how the stack writes its versions down."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class VersionSet:
    """Versions that were put together by somebody.

    Attributes:
        name: whose set it is.
        cann: empty if there is none.
        source: where they say so.
    """

    name: str
    torch: str
    torch_npu: str
    triton_ascend: str
    cann: str
    source: str


SETS = (
    VersionSet(
        "triton-ascend's guide", "2.7.1", "2.7.1", "3.2.0", "8.5.0", "triton-ascend: docs/en/installation_guide.md"
    ),
    VersionSet("vllm-ascend's main", "2.10.0", "2.10.0.post4", "3.2.2", "9.1.0", "vllm-ascend: its pins"),
    VersionSet("Upwell's CI, no NPU", "2.13.0", "2.13.0", "3.2.0", "", "schemas, and lowering with ascendnpu-ir 1.2.0"),
)
"""Two sets of others that run on NPUs, and what Upwell's calls are checked with, on machines without one.

They are held against the signatures of the others' torch_npu, too."""

CANN_OF_TRITON = {"3.2.0": "8.5.0", "3.2.1": "9.0.0", "3.2.2": "9.1.0"}
"""triton-ascend -> CANN: its installation guide's table, and vllm-ascend's pins for the last one."""
PYTHON_OF_TRITON = {"3.2.0": ((3, 9), (3, 11)), "3.2.1": ((3, 9), (3, 13))}
"""triton-ascend -> first and last Python, of the same guide."""
MIN_GLIBC = (2, 28)
"""Wheels of torch-npu 2.13.0 are for manylinux_2_28."""
_LATER = ("25.3", "25.5", "25.7", "26.0", "26.1", "26.2")
DRIVERS_OF_CANN = {
    "8.5.0": ("25.0", "25.2", "25.3", "25.5"),
    "8.5": ("25.0", "25.2", *_LATER),
    "9.0": ("25.0", "25.2", *_LATER),
    "9.1": ("25.2", *_LATER),
    "9.2": _LATER,
}
"""CANN -> releases of the driver (Ascend HDK): release notes of CANN 8.5.0 and 9.2.0."""


def release(version: str) -> str:
    """The numbers a version begins with, three at most: ``2.10.0.post4`` and ``2.13.0+cpu`` without their ends."""
    found = re.match(r"\d+(\.\d+){0,2}", version)
    return found[0] if found else ""


def numbers(version: str) -> tuple[int, ...]:
    """All numbers that a version begins with."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def drivers_of(cann: str) -> tuple[str, ...]:
    """Releases of the driver that go with a CANN; none if nothing is known of it."""
    exact = DRIVERS_OF_CANN.get(cann)
    return exact if exact is not None else DRIVERS_OF_CANN.get(".".join(cann.split(".")[:2]), ())


def key_values(text: str) -> dict[str, str]:
    """The ``key=value`` lines of a version file, quotes taken off; other lines are passed over."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip().strip('"') for key, equals, value in pairs if equals and key.strip()}


def driver_version(text: str) -> str | None:
    """The version in the driver's ``version.info``: of its package, which older ones do not tell, else its own."""
    values = key_values(text)
    return _version_like(values.get("package_version")) or _version_like(values.get("Version"))


def firmware_version(text: str) -> str | None:
    """The version in the firmware's ``version.info``, which counts otherwise than its package."""
    return _version_like(key_values(text).get("Version"))


def cann_version(file: str, text: str) -> str | None:
    """The version of CANN in one of its files; None if that is not in it.

    ``version.cfg`` keeps ``[build:version]`` of what is and was installed: the running one counts, else the last one.
    ``*_install.info`` has ``version``. A part's ``version.info`` has ``version_dir``; its ``Version`` may be a build's.
    """
    values = key_values(text)
    if file.endswith(".cfg"):
        for key in ("toolkit_running_version", "runtime_running_version", "toolkit_installed_version"):
            found = re.findall(r"\[[^:\[\]]*:([^\[\]]+)\]", values.get(key, ""))
            if found:
                return _version_like(found[-1])
        return None
    if file.endswith("_install.info"):
        return _version_like(values.get("version"))
    build = values.get("Version", "")
    return _version_like(values.get("version_dir")) or (_version_like(build) if build.count(".") == 2 else None)


def firmware_ranges(text: str) -> list[tuple[str, str]]:
    """The firmware versions that a driver's ``version.info`` says it works with, first and last of each range."""
    return re.findall(r"\[([\d.]+),([\d.]+)\]", key_values(text).get("compatible_version_fw", ""))


def _version_like(text: str | None) -> str | None:
    return text if text and len(text) < 40 and re.fullmatch(r"\d+\.\d+[\w.+-]*", text, re.ASCII) else None
