"""Ascend without an Ascend: what can be proven about the NPU backend on a machine that has no NPU."""
