"""A host with two 910B3, as files below a folder and answers to commands: healthy, until a test changes something."""

from __future__ import annotations

import json

from kernels.ascend.machine import Machine, Ran
from kernels.ascend.probe import diagnose
from kernels.ascend.stubs_refused import MARKER

GIB = 1 << 30
CHIPS = [(0, "Ascend910B3", 60 * GIB, 64 * GIB), (1, "Ascend910B3", 61 * GIB, 64 * GIB)]
DRIVER = """Version=25.5.0
ascendhal_version=7.35.23
Innerversion=V100R001C23SPC002B212
compatible_version=[V100R001C19],[V100R001C20]
compatible_version_fw=[7.0.0,8.9.9]
package_version=25.5.0
"""
FIRMWARE = "Version=7.8.0.5.216\nfirmware_version=1.0\npackage_version=25.5.0\n"
VERSION_CFG = """# version: 1.0
runtime_running_version=[8.5.0.2.220:8.5.0]
toolkit_running_version=[8.5.0.2.220:8.5.0]
toolkit_installed_version=[8.3.0.1.200:8.3.RC1][8.5.0.2.220:8.5.0]
"""
NPU_SMI = """
+------------------------------------------------------------------------------------------------+
| npu-smi 25.5.0                   Version: 25.5.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.4        34                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          4096 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 97.8        48                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3072 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 1       0                 | 3389563       | python                   | 8489                    |
+===========================+===============+====================================================+
"""
PACKAGES = {"torch": "2.7.1+cpu", "torch-npu": "2.7.1", "triton-ascend": "3.2.0"}
BF16 = "bf16, 32 heads on 8 of 128: decoding in 31.2 s, prompts in 40.0 s"
INT8 = "a cache of int8: writing in 2.4 s, decoding in 33.0 s, prompts in 41.5 s"
COMPILED = Ran(0, f"[WARNING] of triton\ncompiled {BF16}\n[WARNING] again\ncompiled {INT8}\n")
"""What a process says that has compiled the attention kernel, for either kind of cache."""
TORCH_NPU = Ran(0, "some warning\nchips " + json.dumps(CHIPS) + "\n")


class FakeHost:
    """What a test changes before it asks for the machine.

    Attributes:
        answers: a word of a command -> how that ends.
        asked: the commands that were run.
    """

    def __init__(self, root):
        self.root = root
        self.packages = dict(PACKAGES)
        self.answers = {"torch_npu": TORCH_NPU, "import triton": Ran(0), "npu-smi": Ran(0, NPU_SMI)}
        self.asked = []
        self.fields = {"system": "Linux", "arch": "aarch64", "python": "3.11.9", "libc": ("glibc", "2.34"), "maps": ""}
        self.environment = {"PATH": str(root / "bin"), "HOME": "/root", "ASCEND_HOME_PATH": "/usr/local/Ascend/cann"}
        for node in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
            self.write(f"dev/{node}", "")
        self.write("usr/local/Ascend/driver/version.info", DRIVER)
        self.write("usr/local/Ascend/firmware/version.info", FIRMWARE)
        self.write("usr/local/Ascend/cann/version.cfg", VERSION_CFG)
        for program in ("npu-smi", "bishengir-compile", "hivmc"):
            self.write(f"bin/{program}", "#!/bin/sh\n").chmod(0o755)

    def write(self, path, content):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def remove(self, path):
        (self.root / path).unlink()

    def machine(self):
        return Machine(self.environment, self.root, self.run, self.packages.get, **self.fields)

    def run(self, command, environment, timeout_s):
        self.asked.append((tuple(command), dict(environment), timeout_s))
        text = " ".join((command[0].rpartition("/")[2], *command[1:]))
        return next((ran for word, ran in self.answers.items() if word in text), Ran(None, reason="not faked"))


def findings(host):
    """Name -> finding."""
    return {finding.name: finding for finding in diagnose(host.machine()).findings}


def stops(host):
    """The findings with which nothing is served on an NPU."""
    return [finding.name for finding in diagnose(host.machine()).stops]


def stub(path, marker=MARKER):
    """A file that is a stub library as far as anybody looks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF" + bytes(5000) + marker + bytes(10))
    return path
