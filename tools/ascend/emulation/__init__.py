"""CPU kernels for torch_npu's operations, under torch_npu's own schemas: the NPU backend's calls, held to the rules.

``install`` registers them with torch's dispatcher. After that the NPU backend runs on CPU tensors as it stands: each
``torch_npu.npu_*`` call goes through the real schema, is refused here if the documentation says that the device refuses
it, is computed row by row, and its results are held against the shapes and dtypes of the real meta kernel.

What an emulation shows: that the calls are well formed, and that the engine around them is right. What it cannot show:
that the device takes them, how the device rounds, or how fast it is. Nothing here has seen a device.

One subject a file: ``norm``, ``quant``, ``cache``, ``moe``, ``attention``, ``sampling``. What they share: ``registry``.
"""

from tools.ascend.emulation.registry import CallRecord, EmulationMismatch, install, operators

__all__ = ["CallRecord", "EmulationMismatch", "install", "operators"]
