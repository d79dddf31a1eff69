"""A process that tries grammars out: ``python -P -m server.grammar.child BYTES SECONDS``.

Grammars come on standard input and verdicts go to standard output, each as a length of four bytes and a text; an empty
verdict is a good one. It may hold so many bytes more than at its start, and an alarm ends it if a grammar takes more
seconds of CPU time, whatever its parent does. It ends with its input.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

from engine.grammar_limits import limits

LENGTH = struct.Struct(">I")
EOS_ID = 256
STEPS = 32
"""Bytes of an answer that are tried."""
STRIDE = 31
"""From one choice among the bytes that may come to the next."""
NICE = 10
"""By how much the engine goes first."""


class Bytes:
    """A vocabulary of single bytes: what a grammar costs to compile hardly depends on it."""

    is_tokenizer_wrapper = True
    eos_token_id = EOS_ID
    bos_token_id = None

    def __init__(self) -> None:
        self.tokens = [bytes([byte]) for byte in range(EOS_ID)] + [b"<eos>"]
        self.special_token_ids = [EOS_ID]

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text."""
        return list(text.encode() if isinstance(text, str) else text)


def verdict(tokenizer: Any, text: str) -> str:
    """What is wrong with a grammar; empty if it compiles, and an answer can be begun.

    Some are found out only then: that nothing may come, or that too much may.
    """
    from llguidance import LLMatcher  # noqa: PLC0415

    matcher = LLMatcher(tokenizer, text, log_level=0, limits=limits())
    for step in range(STEPS):
        if matcher.is_error():
            return matcher.get_error().strip() or "it allows nothing"
        allowed = matcher.compute_bitmask()
        may_come = [byte for byte in range(EOS_ID) if allowed[byte >> 3] >> (byte & 7) & 1]
        if matcher.is_error() or matcher.is_stopped() or not may_come:
            continue
        matcher.consume_token(may_come[STRIDE * step % len(may_come)])
    return ""


def read_text(stream: BinaryIO) -> str | None:
    """The next grammar; None at the end of the input."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return stream.read(LENGTH.unpack(head)[0]).decode()


def main() -> int:
    """Answer until the input ends."""
    from llguidance import LLTokenizer  # noqa: PLC0415

    num_bytes, seconds = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    vocabulary: Any = Bytes()
    tokenizer = LLTokenizer(vocabulary)
    os.nice(NICE)
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + num_bytes, held + num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (text := read_text(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        said = verdict(tokenizer, text).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(LENGTH.pack(len(said)) + said)
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
