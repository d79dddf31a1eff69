"""What holding an answer to a schema costs: compiling it, computing the mask of each token, and applying it.

The schemas are those of the tests (``tests/support/json_schemas.py``) and a few large ones. Each is walked by tokens
chosen at random among those allowed, in two vocabularies: the default model's, and one of 152,000 made-up tokens with
as many kinds of text as real ones have. Masks are computed while the model runs, so their cost shows only where it is
more than a step takes; compiling delays the first token of the first answer to a schema. The goals: over all masks a
median under 50 us, and p99 under 1 ms.

    .venv/bin/python -m tools.bench_grammar [MODEL]       MODEL lends its vocabulary; smollm2-135m by default
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.detokenizer import Vocabulary
from engine.grammar import Grammars
from engine.tokenizer import load_tokenizer
from engine.weights.store import resolve_model
from kernels.ops import F32
from server.grammar.forms import of_schema
from server.grammar.schema import checked_schema
from server.settings import DEFAULT_MODEL, cache_dir
from tests.support.json_schema_words import PATTERNS, thing
from tests.support.json_schemas import kept

MADE_TOKENS = 151_936
MAX_TOKENS, NUM_WALKS = 100, 3
GOALS_US = {"p50": 50, "p99": 1000}
NUM_SHOWN = 10

LARGE: dict[str, Any] = {
    "large: maxLength 10,000": {"type": "string", "maxLength": 10_000},
    "large: maxLength 200": {"type": "string", "maxLength": 200},
    "large: 200 optional unions": thing(
        {f"p{i}": {"anyOf": [{"type": "string", "maxLength": 50}, {"type": "null"}]} for i in range(200)}, []
    ),
    "large: 1,000 properties": thing({f"property_{i}": {"type": "boolean"} for i in range(1000)}),
    "large: enum of 5,000": {"enum": [f"value {i}" for i in range(5000)]},
    "large: dots": {"type": "string", "pattern": "^.{1,300}$"},
    "large: no spaces": {"type": "string", "pattern": r"^\S{1,300}$"},
    "large: one line of many": {"type": "array", "items": {"type": "string", "pattern": PATTERNS["dot"]}},
}


class MadeVocabulary:
    """Bytes, syllables put together with and without a blank, numbers, punctuation, blanks and ideographs."""

    def __init__(self, num_tokens: int) -> None:
        rng = random.Random(1)  # noqa: S311
        syllables = ["".join(pair) for pair in itertools.product("bcdfghklmnprstvz", "aeiou")]
        tokens = dict.fromkeys(bytes([byte]) for byte in range(256))
        while len(tokens) < num_tokens - 1:
            tokens[_made_token(rng, syllables).encode()] = None
        self._tokens = [*tokens, b"<eos>"]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token."""
        return self._tokens[token_id]

    def is_special(self, token_id: int) -> bool:
        """The last one is."""
        return token_id == len(self._tokens) - 1


def _made_token(rng: random.Random, syllables: list[str]) -> str:
    kind = rng.random()
    if kind < 0.05:
        return " " * rng.randint(1, 40)
    if kind < 0.1:
        return str(rng.randint(0, 999))
    if kind < 0.25:
        return "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(rng.randint(1, 3)))
    if kind < 0.35:
        return "".join(rng.choice("{}[]\":,.;()_-=\n\t '") for _ in range(rng.randint(1, 4)))
    word = "".join(rng.choice(syllables) for _ in range(rng.randint(1, 5)))
    return rng.choice(["", " "]) + rng.choice([word, word.title()]) + rng.choice(["", "", "s", "ing"])


@dataclass
class Figures:
    """Of one schema, or of all."""

    compile_ms: float = 0.0
    mask_us: list[float] = field(default_factory=list)
    apply_us: list[float] = field(default_factory=list)
    accept_us: list[float] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Those of another schema."""
        self.mask_us += other.mask_us
        self.apply_us += other.apply_us
        self.accept_us += other.accept_us


def measure(grammars: Grammars, vocab_size: int, eos_id: int, text: str) -> Figures:
    """Walk one grammar."""
    figures = Figures()
    logits = np.zeros(vocab_size, dtype=np.float32)
    figures.compile_ms = _timed(lambda: grammars.open(text).result())[1] / 1e3
    for seed in range(NUM_WALKS):
        rng = random.Random(seed)  # noqa: S311
        grammar = grammars.open(text).result()
        for _ in range(MAX_TOKENS):
            allowed, mask_us = _timed(lambda grammar=grammar: grammar.allowed(vocab_size))
            if allowed is None:
                raise SystemExit(f"{grammar.failure}: {text[:200]}")
            logits[:] = 0
            figures.mask_us.append(mask_us)
            figures.apply_us.append(_timed(lambda allowed=allowed: allowed.restrict(logits))[1])
            token_id = _drawn(logits, rng)
            if token_id == eos_id:
                break
            figures.accept_us.append(_timed(lambda grammar=grammar, token_id=token_id: grammar.accept(token_id))[1])
            if grammar.is_complete:
                break
    return figures


def _timed(call: Any) -> tuple[Any, float]:
    """What a call returns, and the microseconds that it took."""
    start_s = time.perf_counter()
    result = call()
    return result, 1e6 * (time.perf_counter() - start_s)


def _drawn(logits: F32, rng: random.Random) -> int:
    ids = np.flatnonzero(logits == 0)
    return int(ids[rng.randrange(len(ids))])


def report(name: str, vocabulary: Vocabulary, vocab_size: int, eos_id: int) -> bool:
    """Measure all schemas in one vocabulary, and print the table. Whether the goals are met."""
    grammars = Grammars(vocabulary, vocab_size, [eos_id])
    _, build_us = _timed(lambda: grammars.open(of_schema(True)).result())
    print(f"\n{name}: {vocab_size:,} tokens, read in {build_us / 1e6:.2f} s")
    schemas = {case.name: case.schema for case in kept()} | LARGE
    rows = {
        title: measure(grammars, vocab_size, eos_id, of_schema(checked_schema(schema, "schema")))
        for title, schema in schemas.items()
    }
    grammars.close()
    total = Figures()
    for figures in rows.values():
        total.add(figures)
    compile_ms = [figures.compile_ms for figures in rows.values()]
    print(
        f"{'':<44}{'compile ms':>11}{'mask p50':>10}{'p99':>8}{'max us':>8}{'apply p50':>11}{'accept':>8}{'masks':>8}"
    )
    slowest = sorted(rows, key=lambda title: -float(np.percentile(rows[title].mask_us, 99)))[:NUM_SHOWN]
    for title in [*slowest, *(each for each in LARGE if each not in slowest)]:
        _print_row(title, rows[title], rows[title].compile_ms)
    _print_row(f"all {len(rows)} schemas (compile: p99)", total, float(np.percentile(compile_ms, 99)))
    within = {goal: _percentile(total.mask_us, float(goal[1:])) < limit for goal, limit in GOALS_US.items()}
    print(
        "goals:",
        ", ".join(f"{goal} < {GOALS_US[goal]} us {'met' if is_met else 'MISSED'}" for goal, is_met in within.items()),
    )
    return all(within.values())


def _print_row(title: str, figures: Figures, compile_ms: float) -> None:
    masks = "".join(f"{_percentile(figures.mask_us, q):>{width}.0f}" for q, width in ((50, 10), (99, 8), (100, 8)))
    rest = f"{_percentile(figures.apply_us, 50):>11.0f}{_percentile(figures.accept_us, 50):>8.1f}"
    print(f"{title:<44}{compile_ms:>11.1f}{masks}{rest}{len(figures.mask_us):>8}")


def _percentile(values: list[float], q: float) -> float:
    return float(np.percentile(values, q)) if values else 0.0


def main() -> int:
    """Measure both vocabularies."""
    model = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL
    tokenizer = load_tokenizer(resolve_model(model, cache_dir(None), print).path)
    eos_id = min(tokenizer.eos_ids)
    real = report(model, tokenizer, tokenizer.vocab_size, eos_id)
    made = report("made up", MadeVocabulary(MADE_TOKENS), MADE_TOKENS, MADE_TOKENS - 1)
    return 0 if real and made else 1


if __name__ == "__main__":
    sys.exit(main())
