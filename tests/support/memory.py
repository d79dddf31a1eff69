"""Measures the memory that refusing a hostile file takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import resource, sys
from importlib import import_module
from pathlib import Path
from engine.errors import ModelError

module, function, path = sys.argv[1:]
target = import_module(module)
for part in function.split("."):
    target = getattr(target, part)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + Path(path).stat().st_size + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    target(Path(path))
except ModelError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
else:
    sys.exit("the file was accepted")
"""


def peak_of_failing_open(module: str, function: str, path: Path) -> int:
    """Bytes by which resident memory grows while ``module.function(path)`` raises a ModelError.

    The process may take no more than 300 MB of address space beside the map of the file itself.
    """
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, module, function, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    return int(done.stdout)
