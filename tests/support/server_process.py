"""``upwell serve`` as a real process, for end-to-end tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UPWELL = str(Path(sys.executable).parent / "upwell")


class ServerProcess:
    """A running server; its standard error is kept, and shown when something goes wrong."""

    def __init__(self, *args, env=None, command=None, ready_within_s=120):
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open as long as the server runs; see close)
        self.process = subprocess.Popen(
            command or [UPWELL, "serve", *args, "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        self.url = self._wait_until_ready(ready_within_s)

    def output(self):
        self._stderr.flush()
        self._stderr.seek(0)
        return self._stderr.read()

    def engine_pid(self):
        """The one child of the server that runs the engine."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (pid,) = [int(c) for c in children if "engine.process" in Path(f"/proc/{c}/cmdline").read_text()]
        return pid

    def stop(self, number=signal.SIGINT, within_s=60):
        """Signal the server and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within_s)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self._stderr.close()

    def _wait_until_ready(self, within_s):
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            ready = re.search(r"Ready on (http\S+)", self.output())
            if ready:
                return ready[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the server did not become ready:\n{self.output()}")


@contextlib.contextmanager
def running_server(*args, **options):
    server = ServerProcess(*args, **options)
    try:
        yield server
    finally:
        server.close()
