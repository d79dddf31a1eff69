"""What of the Ascend stack is on this machine, and whether it is what Upwell needs.

``diagnose`` looks at files, device nodes and package metadata, and asks torch_npu and npu-smi in processes of their
own: nothing of it imports torch here. A thing that is missing or cannot be read is a finding with its reason, never an
exception. ``upwell doctor`` shows the findings.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kernels.ascend import versions
from kernels.ascend.chips import Chip, chips_of_npu_smi, chips_of_torch_npu, npu_smi_version, why_it_ended
from kernels.ascend.errors import explain
from kernels.ascend.machine import Machine, Ran
from kernels.ascend.stubs_refused import refusal, stub_library_on_path

COMPILERS = ("bishengir-compile", "hivmc")
HELPER_NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")
"""Beside /dev/davinciN a process needs these; containers are given each by name."""
DOWNLOADS = "https://www.hiascend.com/cann/download"
_CANN_PLACES = ("/usr/local/Ascend/cann", "/usr/local/Ascend/ascend-toolkit/latest")
COMPILE_PROGRAM = """
from kernels.ascend.launch import compile_check
compile_check(lambda line: print("compiled " + line, flush=True))
"""
"""Run on its own, as a compiler may take the process with it."""
COMPILE_S = 600.0
_IMPORT_TRITON_S = 60.0
_NPU_SMI_S = 20.0


class Verdict(StrEnum):
    """What a finding comes to; unknown is neither good nor bad."""

    OK = "ok"
    WRONG = "wrong"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: what it is.
        found: what was found, in short; empty if nothing was.
        wanted: what it would need to be.
        detail: why it is missing, wrong or unknown, or where it was found; a line.
        remedy: what mends it: a command, or a sentence.
        required: whether serving on the NPU needs it.
        everywhere: whether serving on any device needs it.
    """

    name: str
    verdict: Verdict
    found: str = ""
    wanted: str = ""
    detail: str = ""
    remedy: str = ""
    required: bool = True
    everywhere: bool = False

    @property
    def stops_npu(self) -> bool:
        """Whether this would stop a server on the NPU."""
        return self.required and self.verdict in {Verdict.WRONG, Verdict.MISSING}


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    Attributes:
        nodes: device nodes of NPUs, such as ``davinci0``.
        chips_note: why there are no chips, or where those come from.
    """

    nodes: tuple[str, ...]
    findings: tuple[Finding, ...]
    chips: tuple[Chip, ...]
    chips_note: str

    @property
    def stops(self) -> tuple[Finding, ...]:
        """What would stop a server: on the NPU, or where there is none, on any device."""
        return tuple(entry for entry in self.findings if entry.stops_npu and (self.nodes or entry.everywhere))


def diagnose(machine: Machine) -> Diagnosis:
    """Look at everything. Takes seconds where there is an NPU, since torch_npu is imported for it."""
    nodes = npu_nodes(machine)
    smi = _npu_smi(machine) if nodes else ""
    cann = cann_finding(machine)
    stub = stub_finding(machine)
    triton = machine.version("triton-ascend")
    chips, note = _chips(machine, nodes, smi, stub)
    findings = (
        *host_findings(machine, triton),
        nodes_finding(machine, nodes),
        driver_finding(machine, cann.found, smi),
        firmware_finding(machine),
        cann,
        *package_findings(machine, cann.found),
        *(compiler_finding(machine, name) for name in COMPILERS),
        *((stub,) if stub else ()),
        chips_finding(nodes, chips, note),
        kernel_compiles(machine),
    )
    return Diagnosis(nodes, findings, chips, note)


def npu_nodes(machine: Machine) -> tuple[str, ...]:
    """The device nodes of NPUs, by number."""
    try:
        names = [entry.name for entry in machine.at("/dev").iterdir() if re.fullmatch(r"davinci\d+", entry.name)]
    except OSError:
        return ()
    return tuple(sorted(names, key=lambda name: int(name.removeprefix("davinci"))))


def host_findings(machine: Machine, triton: str | None) -> tuple[Finding, ...]:
    """System, processor and C library, and Python."""
    good = machine.system == "Linux" and machine.arch in {"aarch64", "x86_64"}
    name, libc = machine.libc
    old = name == "glibc" and versions.numbers(libc) < versions.MIN_GLIBC
    least = ".".join(map(str, versions.MIN_GLIBC))
    host = Finding(
        "host",
        Verdict.WRONG if not good or old else Verdict.UNKNOWN if name != "glibc" else Verdict.OK,
        f"{machine.system} {machine.arch}, {name or 'no glibc'} {libc}".strip(),
        f"Linux aarch64 or x86_64, glibc {least}+",
        remedy="" if good and not old else "Serve on another host, or in a container whose system is newer.",
    )
    first, last = versions.PYTHON_OF_TRITON.get(triton or "3.2.0", ((3, 11), (3, 13)))
    span = f"3.11 to {last[0]}.{last[1]}" if last > (3, 11) else "3.11"
    fits = max(first, (3, 11)) <= versions.numbers(machine.python)[:2] <= last
    verdict = Verdict.OK if fits else Verdict.WRONG
    why = "" if fits else f"triton-ascend {triton or '3.2.0'} has no wheel for it"
    remedy = "" if fits else f"Make a virtual environment with Python {span}, and install upwell[ascend] into it."
    return host, Finding("Python", verdict, machine.python, span, why, remedy)


def nodes_finding(machine: Machine, nodes: tuple[str, ...]) -> Finding:
    """The device nodes, those beside them, and whether this user may open them."""
    wanted = "davinciN, " + ", ".join(HELPER_NODES)
    if not nodes:
        remedy = f"Install the driver on the host; give a container --device /dev/davinci0 and the others ({wanted})."
        return Finding("device nodes", Verdict.MISSING, "", wanted, "there is no /dev/davinci0 or other number", remedy)
    found = ", ".join(nodes) if len(nodes) < 3 else f"{nodes[0]} to {nodes[-1]} ({len(nodes)})"
    absent = [name for name in HELPER_NODES if not machine.at(f"/dev/{name}").exists()]
    if absent:
        remedy = "Give the container " + " ".join(f"--device /dev/{name}" for name in absent) + "."
        return Finding("device nodes", Verdict.WRONG, found, wanted, f"without {', '.join(absent)}", remedy)
    closed = [name for name in nodes if not os.access(machine.at(f"/dev/{name}"), os.R_OK | os.W_OK)]
    if closed:
        remedy = "usermod -aG HwHiAiUser USER (the group of the nodes), and log in again."
        return Finding("device nodes", Verdict.WRONG, found, wanted, f"{closed[0]} may not be opened", remedy)
    return Finding("device nodes", Verdict.OK, found, wanted)


def driver_finding(machine: Machine, cann: str, smi: str) -> Finding:
    """The driver's release, held against what CANN's release notes pair it with."""
    text, why = machine.read("/usr/local/Ascend/driver/version.info")
    version = versions.driver_version(text) or npu_smi_version(smi)
    releases = versions.drivers_of(cann)
    wanted = f"{', '.join(releases)} (CANN {cann})" if releases else "25.5 for CANN 8.5.0, 26.0 for 9.1.0"
    remedy = f"Install driver and firmware {releases[-1] if releases else '25.5'} on the host: {DOWNLOADS}"
    if version is None:
        why = why or "version.info of the driver holds no version"
        return Finding("driver", Verdict.MISSING, "", wanted, why, remedy)
    major_minor = ".".join(map(str, versions.numbers(version)[:2]))
    if not releases:
        return Finding("driver", Verdict.UNKNOWN, version, wanted, "what it must be depends on CANN")
    if major_minor in releases:
        return Finding("driver", Verdict.OK, version, wanted)
    if versions.numbers(version)[:2] < versions.numbers(releases[0]):
        return Finding("driver", Verdict.WRONG, version, wanted, f"older than CANN {cann} works with", remedy)
    return Finding("driver", Verdict.UNKNOWN, version, wanted, f"not in the release notes of CANN {cann}")


def firmware_finding(machine: Machine) -> Finding:
    """The firmware's version, held against the ranges that the driver names."""
    text, why = machine.read("/usr/local/Ascend/firmware/version.info")
    driver, _ = machine.read("/usr/local/Ascend/driver/version.info")
    ranges = versions.firmware_ranges(driver)
    wanted = " or ".join(f"{low} to {high}" for low, high in ranges) or "that of the driver's release"
    version = versions.firmware_version(text)
    if version is None:
        why = why or "version.info of the firmware holds no version"
        remedy = "In a container the host tells: npu-smi info -t board -i 0"
        return Finding("firmware", Verdict.MISSING, "", wanted, why, remedy, required=False)
    if not ranges:
        return Finding("firmware", Verdict.UNKNOWN, version, wanted, "the driver does not say", required=False)
    own = versions.numbers(version)[:3]
    if any(versions.numbers(low) <= own <= versions.numbers(high) for low, high in ranges):
        return Finding("firmware", Verdict.OK, version, wanted, required=False)
    remedy = f"Install the firmware of the driver's release on the host: {DOWNLOADS}"
    return Finding(
        "firmware", Verdict.WRONG, version, wanted, "the driver does not work with it", remedy, required=False
    )


def cann_finding(machine: Machine) -> Finding:
    """CANN's version and folder, and whether its environment is set."""
    triton = (machine.version("triton-ascend") or "").partition("+")[0]
    pair = versions.CANN_OF_TRITON.get(triton)
    wanted = f"{pair} (triton-ascend {triton})" if pair else "8.5.0, or 9.1.0"
    home, named = _cann_home(machine)
    get = f"Install CANN's toolkit and its 910b operators, {pair or '8.5.0'}: {DOWNLOADS}"
    if home is None:
        where = "ASCEND_HOME_PATH is not set, and /usr/local/Ascend has none"
        why = f"ASCEND_HOME_PATH names {named}, which is not there" if named else where
        return Finding("CANN", Verdict.MISSING, "", wanted, why, get)
    version, why = _cann_version(machine, home)
    if version is None:
        return Finding("CANN", Verdict.UNKNOWN, "", wanted, why)
    if named is None:
        remedy = f"source {_set_env(home)}"
        return Finding("CANN", Verdict.WRONG, version, wanted, f"in {home}, but ASCEND_HOME_PATH is not set", remedy)
    if pair is None or versions.release(version) == pair:
        return Finding("CANN", Verdict.OK if pair else Verdict.UNKNOWN, version, wanted, f"in {home}")
    if versions.numbers(version) < versions.numbers(pair):
        return Finding(
            "CANN", Verdict.WRONG, version, wanted, f"in {home}, older than triton-ascend's kernels need", get
        )
    return Finding("CANN", Verdict.UNKNOWN, version, wanted, f"in {home}, newer than the one triton-ascend names")


def package_findings(machine: Machine, cann: str) -> tuple[Finding, ...]:
    """torch, torch-npu and triton-ascend."""
    torch, npu, triton = (machine.version(name) for name in ("torch", "torch-npu", "triton-ascend"))
    of_cann = [entry for entry in versions.SETS if entry.cann in {"", versions.release(cann)}]
    sets = of_cann if len(of_cann) > 1 else versions.SETS
    wanted = _either(entry.torch for entry in sets)
    wanted_npu = f"{versions.release(torch)}, as torch" if torch else _either(entry.torch_npu for entry in sets)
    one = sets[0]
    install = f"pip install torch=={one.torch} torch-npu=={one.torch_npu}"
    found = [
        _package("torch", torch, wanted, install),
        _package("torch-npu", npu, wanted_npu, install),
    ]
    if torch and npu and versions.release(torch) != versions.release(npu):
        mend = f"pip install torch=={versions.release(npu)}, or the torch-npu of torch {versions.release(torch)}"
        found[1] = Finding(
            "torch-npu", Verdict.WRONG, npu, wanted_npu, f"it is built for torch {versions.release(npu)}", mend
        )
    pairs = [name for name, pair in versions.CANN_OF_TRITON.items() if not cann or pair == cann]
    wanted_triton = _either(pairs) if pairs else "the one that its guide names for this CANN"
    mend = f"pip install triton-ascend=={pairs[0] if pairs else '3.2.0'}"
    found.append(_package("triton-ascend", triton, wanted_triton, mend))
    return tuple(found)


def _either(texts: Iterable[str]) -> str:
    *most, last = dict.fromkeys(texts)
    return f"{', '.join(most)} or {last}" if most else last


def _package(name: str, version: str | None, wanted: str, install: str) -> Finding:
    if version is None:
        return Finding(name, Verdict.MISSING, "", wanted, "not installed", install)
    known = {versions.release(text) for text in re.findall(r"\d[\w.]*", wanted)}
    if not known or versions.release(version) in known:
        return Finding(name, Verdict.OK, version, wanted)
    return Finding(name, Verdict.UNKNOWN, version, wanted, "of no set that is known to go together")


def compiler_finding(machine: Machine, name: str) -> Finding:
    """A compiler of CANN that triton-ascend calls; on PATH once CANN's environment is set."""
    path = machine.which(name)
    if path is None:
        home, _ = _cann_home(machine)
        remedy = f"source {_set_env(home)}" if home else "It comes with CANN: install that, and source its set_env.sh."
        return Finding(name, Verdict.MISSING, "", "on PATH, from CANN", "not on PATH", remedy)
    return Finding(name, Verdict.OK, path, "on PATH, from CANN")


def stub_finding(machine: Machine) -> Finding | None:
    """Stub driver libraries, with which nothing is served; None where there are none."""
    path = stub_library_on_path(machine.environment, machine.maps)
    if path is None:
        return None
    text = "stubs for tests"
    return Finding("driver libraries", Verdict.WRONG, str(path), "CANN's own", text, refusal(path), everywhere=True)


def chips_finding(nodes: tuple[str, ...], chips: tuple[Chip, ...], note: str) -> Finding:
    """Whether the chips are such as the kernel is compiled for."""
    if not chips:
        remedy = "Mend what is wrong above, then try: npu-smi info" if nodes else ""
        return Finding("chips", Verdict.MISSING, "", "910B", note if nodes else "", remedy)
    names = ", ".join(dict.fromkeys(chip.name for chip in chips))
    bad = [chip for chip in chips if chip.health not in {"", "OK"}]
    if bad:
        why = f"npu-smi calls number {bad[0].index} {bad[0].health}"
        return Finding("chips", Verdict.WRONG, names, "910B", why, f"npu-smi info -t health -i {bad[0].index}")
    if note:
        return Finding("chips", Verdict.WRONG, names, "910B", f"seen by npu-smi alone; {note}", "Mend torch_npu first.")
    known = all("910B" in chip.name.upper() for chip in chips)
    why = "" if known else "the kernel is compiled and checked for the 910B alone"
    return Finding("chips", Verdict.OK if known else Verdict.UNKNOWN, names, "910B", why)


def kernel_compiles(machine: Machine) -> Finding:
    """Whether the attention kernel compiles here, with this machine's compiler: tried, in a process of its own.

    Not where something that it needs is missing; and a process that does not end in time tells nothing of the kernel.
    """
    wanted = "compiles for this chip"
    reasons = (
        ("triton-ascend is not installed", machine.version("triton-ascend") is None),
        *((f"no {name} on PATH", machine.which(name) is None) for name in COMPILERS),
        ("there is no NPU here", not npu_nodes(machine)),
        ("torch-npu is not installed", machine.version("torch-npu") is None),
        ("stub libraries are in the way", stub_finding(machine) is not None),
    )
    for reason, holds in reasons:
        if holds:
            return Finding("kernel", Verdict.UNKNOWN, "not tried", wanted, f"not tried: {reason}")
    ran = machine.run((sys.executable, "-P", "-c", "import triton"), machine.environment, _IMPORT_TRITON_S)
    if ran.code != 0:
        remedy = "pip install --force-reinstall --no-deps triton-ascend (another triton may have overwritten it)"
        return Finding("kernel", Verdict.WRONG, "", wanted, f"import triton: {why_it_ended(ran)}", remedy)
    environment = {**machine.environment, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "TRITON_ALWAYS_COMPILE": "1"}
    ran = machine.run((sys.executable, "-P", "-c", COMPILE_PROGRAM), environment, COMPILE_S)
    said = "; ".join(re.findall("^compiled (.*)$", ran.stdout, re.MULTILINE))
    if ran.code == 0 and said:
        return Finding("kernel", Verdict.OK, said, wanted)
    if ran.code is None:
        return Finding("kernel", Verdict.UNKNOWN, said or "not known", wanted, f"not known: {ran.reason}")
    remedy = "Compare triton-ascend with CANN above; deploy/ascend/first_hour.py --step 4 shows all that is said."
    remedy += " What was found is enough to serve: leave --kv-cache-dtype out." if said else ""
    return Finding("kernel", Verdict.WRONG, said, wanted, _compiler_said(ran), remedy, required=not said)


def _compiler_said(ran: Ran) -> str:
    """One line: a known Ascend error explained, else what follows the first ``error:``, else the last thing said."""
    said = re.split("(?m)^compiled .*$", ran.stdout)[-1] + "\n" + ran.stderr
    found = re.search(r"error:\s*(\S[^\n]*)", said)
    return explain(said) or (found[1].strip()[:200] if found else why_it_ended(Ran(ran.code, said)))


def _chips(machine: Machine, nodes: tuple[str, ...], smi: str, stub: Finding | None) -> tuple[tuple[Chip, ...], str]:
    """The chips, and why torch_npu did not tell them."""
    if not nodes:
        return (), "there is no NPU here"
    if stub:
        note = "torch_npu was not asked, since stub libraries are in its way"
    elif machine.version("torch-npu") is None:
        note = "torch-npu is not installed"
    else:
        chips, note = chips_of_torch_npu(machine.run, sys.executable, machine.environment)
        if chips:
            return chips, ""
    return chips_of_npu_smi(smi), note


def _npu_smi(machine: Machine) -> str:
    """What ``npu-smi info`` prints; empty if it fails."""
    program = machine.which("npu-smi") or "/usr/local/bin/npu-smi"
    ran = machine.run((program, "info"), machine.environment, _NPU_SMI_S)
    return ran.stdout if ran.code == 0 else ""


def _cann_home(machine: Machine) -> tuple[str | None, str | None]:
    """CANN's folder, if it is there, and the folder that the environment names."""
    named = machine.environment.get("ASCEND_HOME_PATH") or machine.environment.get("ASCEND_TOOLKIT_HOME") or None
    home = machine.environment.get("HOME", "/root")
    own = tuple(place.replace("/usr/local", home) for place in _CANN_PLACES)
    for place in (named,) if named else (*_CANN_PLACES, *own):
        if machine.at(place).is_dir():
            return place, named
    return None, named


def _cann_version(machine: Machine, home: str) -> tuple[str | None, str]:
    """CANN's version by the first of its files that tells one, else why none does."""
    arch = f"{machine.arch}-linux"
    files = ("version.cfg", f"{arch}/ascend_toolkit_install.info", "ascend_toolkit_install.info")
    reasons = []
    for file in (*files, "compiler/version.info", "runtime/version.info", "opp/version.info"):
        text, why = machine.read(f"{home}/{file}")
        version = versions.cann_version(file, text)
        if version:
            return version, ""
        reasons.append(why or f"{file} holds no version")
    told = [reason for reason in reasons if not reason.endswith("is not there")]
    return None, f"{told[0]} (in {home})" if told else f"{home} has no file that tells a version"


def _set_env(home: str) -> str:
    """The script that sets CANN's environment: beside the version's folder before 8.5, inside it since."""
    return f"{home.rstrip('/').removesuffix('/latest')}/set_env.sh"
