"""How far the native backend's next-token distributions lie from the float32 reference's, on real text.

    .venv/bin/python -m tools.accuracy [--only file,long,...] [--model PATH] [--positions 16384]
    .venv/bin/python -m tools.accuracy --write-docs

The text is the language reference that comes with CPython (``pydoc_data.topics``), in windows. Each backend, cache
format and quantisation computes the logits of every position; compared are the mean Kullback-Leibler divergence from
the reference with the same weights, how often the likeliest token is the same, and perplexity. What was measured is
kept in bench-results, each section with its model, date and backend; ``--write-docs`` measures nothing, and rewrites
the table in docs/accuracy.md from that. A table is of one model and one backend with its settings, or there is none.
llama.cpp's row is measured with its own tool; the page says how.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.config import CacheConfig
from engine.model_runner import ModelRunner
from engine.models.registry import model_class
from engine.tokenizer import load_tokenizer
from engine.weights.open import open_checkpoint
from engine.weights.quantised import quantised
from kernels.formats import WeightFormat
from kernels.ops import AttentionBatch, BackendOptions, StepInputs, StepLimits
from kernels.resolve import resolve
from tools.checkout import commit
from tools.weight_formats import Requantised

WINDOW = 512
"""Tokens of a window unless a section says otherwise, and of one step."""
BLOCK_SIZE = 16
DOCS = Path(__file__).parents[1] / "docs" / "accuracy.md"
RESULTS = Path("bench-results/accuracy.json")
MAX_DIVERGENCE, MIN_AGREEMENT, MAX_CHANGE = 2e-3, 0.98, 0.005
"""What is aimed at: mean KL divergence, share of positions with the same likeliest token, change of perplexity."""
PEER_SECTION, PEER_MODEL = "halves", "SmolLM2-135M-Instruct.Q4_1.gguf"
PEER_DIVERGENCE, PEER_AGREEMENT, PEER_CHANGE = 3.03e-3, 0.9673, 0.00157
"""What llama.cpp (release 11434) showed for this file in those windows, by its own tool: docs/accuracy.md says how."""
VARIANTS = (
    ("cpu", "f32", "none"),
    ("cpu", "f16", "none"),
    ("cpu", "i16", "none"),
    ("cpu", "i8", "none"),
    ("cpu", "i16", "w8a8"),
)
"""(backend, KV cache, ``--quantization``)."""
Variants = tuple[tuple[str, str, str], ...]
DEFAULT: Variants = (("cpu", "i16", "none"),)


@dataclass(frozen=True)
class Section:
    """Rows of the table: variants over the same weights and windows.

    Attributes:
        weights: the format that matrices are put into; None leaves them as the file has them.
        share: of the positions that were asked for.
        begin: the first position of a window that counts; a multiple of ``WINDOW`` or less than that.
    """

    variants: Variants
    window: int = WINDOW
    weights: WeightFormat | None = None
    share: float = 1.0
    begin: int = 0


SECTIONS = {
    "file": Section(VARIANTS),
    "halves": Section(DEFAULT, begin=WINDOW // 2, share=2.0),
    "long": Section(VARIANTS[1:4], window=2048),
    "q8_0": Section(DEFAULT, weights=WeightFormat.Q8_0, share=0.5),
    "q4_0": Section(DEFAULT, weights=WeightFormat.Q4_0, share=0.5),
    "bf16": Section(DEFAULT, weights=WeightFormat.BF16, share=0.5),
    "f16": Section(DEFAULT, weights=WeightFormat.F16, share=0.5),
    "f32": Section(DEFAULT, weights=WeightFormat.F32, share=0.5),
}
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """What one backend showed: means over all positions.

    Attributes:
        name: of the backend, its cache and quantisation.
    """

    name: str
    divergence: float
    divergence_p99: float
    agreement: float
    perplexity: float


def real_text() -> str:
    """Prose: the language reference, topics in order of name."""
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def windows(model: Path, positions: int, window: int = WINDOW) -> npt.NDArray[np.int32]:
    """The text as i32[n, window] tokens, at least ``positions`` of them."""
    count = -(-positions // window)
    ids = load_tokenizer(model).encode(real_text()[: count * window * 8], add_special=False)
    return np.array(ids[: count * window], dtype=np.int32).reshape(count, window)


class Scorer:
    """One backend with the model on it."""

    def __init__(
        self, model: Path, variant: tuple[str, str, str], window: int, weights: WeightFormat | None = None
    ) -> None:
        device, cache_dtype, quantization = variant
        ops = resolve(device, BackendOptions(kv_cache_dtype=cache_dtype)).ops
        stored = open_checkpoint(model)
        checkpoint = quantised(stored if weights is None else Requantised(stored, weights), quantization)
        config = checkpoint.config
        decoder = model_class(config.architecture)(config, checkpoint, ops, window, lambda _: None)
        cache = CacheConfig(num_blocks=window // BLOCK_SIZE, block_size=BLOCK_SIZE)
        self._runner = ModelRunner(decoder, ops, cache, StepLimits(WINDOW, WINDOW, window))

    def logits(self, ids: npt.NDArray[np.int32], start: int) -> F32:
        """f32[WINDOW, V], the scores after each of the tokens from ``start`` on; those before it have been computed."""
        rows = np.arange(WINDOW, dtype=np.int32)
        positions = rows + np.int32(start)
        end = np.array([start + WINDOW], dtype=np.int32)
        table = np.arange(len(ids) // BLOCK_SIZE, dtype=np.int32)[None, :]
        attention = AttentionBatch(np.array([0, WINDOW], dtype=np.int32), end, table)
        tokens = np.ascontiguousarray(ids[start : start + WINDOW])
        return self._runner.forward(StepInputs(tokens, positions, positions, attention, rows)).rows(range(WINDOW))


def log_softmax(logits: F32) -> F64:
    """In float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


class Sums:
    """What one backend showed so far, position by position."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._divergences: list[F64] = []
        self._agreements: list[npt.NDArray[np.bool_]] = []
        self._losses: list[F64] = []

    def add(self, wanted: F64, got: F64, next_ids: npt.NDArray[np.int32]) -> None:
        """Add log probabilities [n,V] and the tokens that came next, of which the last may be missing."""
        self._divergences.append((np.exp(wanted) * (wanted - got)).sum(axis=-1))
        self._agreements.append(got.argmax(axis=-1) == wanted.argmax(axis=-1))
        self._losses.append(-got[np.arange(len(next_ids)), next_ids])

    def figures(self) -> Figures:
        """Of all that was added."""
        divergences = np.concatenate(self._divergences)
        return Figures(
            self._name,
            float(divergences.mean()),
            float(np.quantile(divergences, 0.99)),
            float(np.concatenate(self._agreements).mean()),
            float(np.exp(np.concatenate(self._losses).mean())),
        )


def compare(model: Path, section: Section, text: npt.NDArray[np.int32]) -> list[Figures]:
    """The reference's figures, then those of each variant, all with the same weights."""
    window, begin = section.window, section.begin
    reference = Scorer(model, ("reference", "auto", "none"), window, section.weights)
    scorers = [Scorer(model, variant, window, section.weights) for variant in section.variants]
    sums = [Sums(name) for name in ("reference, float32", *(_name(*variant) for variant in section.variants))]
    for ids in text:
        for start in range(0, window, WINDOW):
            wanted = log_softmax(reference.logits(ids, start))
            next_ids = ids[start + 1 : start + 1 + WINDOW]
            skipped = max(0, begin - start)
            for each, scorer in zip(sums, [None, *scorers], strict=True):
                got = wanted if scorer is None else log_softmax(scorer.logits(ids, start))
                each.add(wanted[skipped:], got[skipped:], next_ids[skipped:])
    return [each.figures() for each in sums]


def _name(device: str, cache: str, quantization: str) -> str:
    return f"{device}, {cache} cache" + ("" if quantization == "none" else f", {quantization}")


def missed(figures: Figures, reference: Figures, most: float = MAX_DIVERGENCE) -> str:
    """What a variant does not reach of what is aimed at; ``most`` is the greatest mean KL divergence."""
    change = abs(figures.perplexity / reference.perplexity - 1)
    aims = (
        ("KL", figures.divergence <= most),
        ("likeliest token", figures.agreement >= MIN_AGREEMENT),
        ("perplexity", change <= MAX_CHANGE),
    )
    return ", ".join(name for name, reached in aims if not reached) or "-"


class Refused(Exception):
    """What was asked for cannot be done; the message says why, and the way out."""


def settings_of(model: Path) -> dict[str, str]:
    """What all sections of a table share."""
    backends = (resolve(device, BackendOptions()).ops.info for device in ("cpu", "reference"))
    backend = "; ".join(f"{info.name}: {info.description}" for info in backends)
    return {"model": model.name, "backend": backend, "text": hashlib.sha256(real_text().encode()).hexdigest()[:12]}


def shared_settings(measured: Mapping[str, Any]) -> tuple[str, str, str]:
    """Model, backend and the text's SHA-256 of all sections. Python's versions come with different texts.

    Raises:
        Refused: they are not the same everywhere, or not known.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, each in measured.items():
        found.setdefault((each.get("model", ""), each.get("backend", ""), each.get("text", "")), []).append(name)
    if len(found) == 1 and all(settings := next(iter(found))):
        return settings
    lines = [
        f"  {', '.join(names)}: model {model or 'unknown'}, backend {backend or 'unknown'}, text {text or 'unknown'}"
        for (model, backend, text), names in found.items()
    ]
    raise Refused(
        f"one table cannot show sections of different or unknown models, backends and texts, but {RESULTS} would have\n"
        + "\n".join(lines)
        + "\nMeasure those that differ again with the model and settings of the others (--only NAMES --model PATH), or "
        "all of them (without --only)."
    )


def table(measured: Mapping[str, Any]) -> str:
    """As Markdown; ``measured`` is section -> model, date, backend, positions and figures.

    Raises:
        Refused: sections differ in model or backend.
    """
    measured = {name: measured[name] for name in SECTIONS if name in measured}
    model, backend, text = shared_settings(measured)
    head = ("weights", "window", "what computes", "mean KL", "99th percentile", "same likeliest token", "perplexity")
    lines = [f"| {' | '.join((*head, 'against reference', 'misses'))} |", "|---" * (len(head) + 2) + "|"]
    for name, kept in measured.items():
        section = SECTIONS[name]
        reference, *others = [Figures(**figures) for figures in kept["figures"]]
        weights = "the file's" if section.weights is None else section.weights.name
        beside_peer = (name, model) == (PEER_SECTION, PEER_MODEL)
        most = min(MAX_DIVERGENCE, PEER_DIVERGENCE) if beside_peer else MAX_DIVERGENCE
        of_window = f"{section.window:,}" + (f", from {section.begin}" if section.begin else "")
        where = f"| {weights} | {of_window} "
        lines.append(where + f"| {reference.name} | 0 | 0 | 100% | {reference.perplexity:.4f} | | |")
        lines += [
            where + f"| {f.name} | {f.divergence:.2e} | {f.divergence_p99:.2e} | {f.agreement:.2%} "
            f"| {f.perplexity:.4f} | {f.perplexity / reference.perplexity - 1:+.3%} | {missed(f, reference, most)} |"
            for f in others
        ]
        if beside_peer:
            lines.append(
                where + f"| llama.cpp | {PEER_DIVERGENCE:.2e} | | {PEER_AGREEMENT:.2%} | | {PEER_CHANGE:+.3%} | |"
            )
    counts = sorted({each["positions"] for each in measured.values()}, reverse=True)
    positions = " or ".join(f"{count:,}" for count in counts)
    dates = ", ".join(sorted({each["date"] for each in measured.values()}))
    commits = ", ".join(sorted({each.get("commit", "") or "unknown" for each in measured.values()}))
    told = f"`{model}`; {backend}; measured on {dates} at {commits}; {positions} positions a row, of text {text}"
    return told + "\n\n" + "\n".join(lines)


def measure(model: Path, section: Section, positions: int) -> dict[str, Any]:
    """The figures of a section, of how many positions, and what they were measured with, and when."""
    text = windows(model, round(positions * section.share), section.window)
    figures = compare(model, section, text)
    told = settings_of(model) | {
        "date": time.strftime("%Y-%m-%d"),
        "positions": len(text) * (section.window - section.begin),
    }
    return told | {"figures": [asdict(each) for each in figures]}


def write_docs(text: str) -> None:
    """Put the table between the page's marks."""
    page = DOCS.read_text()
    marked = re.compile(r"(<!-- table -->\n).*?(\n<!-- end -->)", re.DOTALL)
    DOCS.write_text(marked.sub(lambda found: found[1] + text + found[2], page))


def kept_results() -> dict[str, Any]:
    """What was measured so far, by section."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return kept


def rewrite() -> None:
    """The page's table, from what was measured.

    Raises:
        Refused: a section was not, or they differ in model or backend.
    """
    measured = kept_results()
    if missing := SECTIONS.keys() - measured.keys():
        raise Refused(f"not measured yet: {', '.join(sorted(missing))}; run it without --write-docs first")
    write_docs(table(measured))


def measured_table(model: Path, names: Sequence[str], positions: int) -> str:
    """Measure these sections anew; the table of them and of those that were measured before.

    Raises:
        Refused: there is no such section, or those measured before differ in model or backend; nothing was measured.
    """
    if unknown := set(names) - SECTIONS.keys():
        raise Refused(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    measured = kept_results()
    stays = {name: each for name, each in measured.items() if name in SECTIONS.keys() - set(names)}
    shared_settings(stays | dict.fromkeys(names, settings_of(model)))
    RESULTS.parent.mkdir(exist_ok=True)
    ran = {"commit": commit()}  # before measuring, which takes minutes
    for name in names:
        measured[name] = measure(model, SECTIONS[name], positions) | ran
        RESULTS.write_text(json.dumps(measured, indent=1))
    return table(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the native backend against the float32 reference.")
    default = sorted((Path.home() / ".cache/upwell/smollm2-135m").glob("*.gguf"))
    parser.add_argument("--model", type=Path, default=default[0] if default else None)
    parser.add_argument("--positions", type=int, default=16384)
    parser.add_argument("--only", default=",".join(SECTIONS), help="some of %(default)s; the others stay as measured")
    parser.add_argument("--write-docs", action="store_true", help="only write docs/accuracy.md from what was measured")
    options = parser.parse_args()
    try:
        if options.write_docs:
            rewrite()
        elif options.model is None:
            parser.error("no model: run `upwell pull smollm2-135m` first, or give --model")
        else:
            print(measured_table(options.model, options.only.split(","), options.positions))
    except Refused as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
