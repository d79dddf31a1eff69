"""How far the native backend's next-token distributions lie from the float32 reference's, on real text.

    .venv/bin/python -m tools.accuracy [--model PATH] [--positions 2048] [--write-docs]

The text is the language reference that comes with CPython (``pydoc_data.topics``), in windows of 512 tokens. Each
backend, cache format and quantisation computes the logits of every position; compared are the mean Kullback-Leibler
divergence from the reference, how often the likeliest token is the same, and perplexity. ``--write-docs`` rewrites the
table in docs/accuracy.md. llama.cpp's row is measured with its own tool; the page says how.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import numpy as np
import numpy.typing as npt

from engine.config import CacheConfig
from engine.model_runner import ModelRunner
from engine.models.registry import model_class
from engine.tokenizer import load_tokenizer
from engine.weights.open import open_checkpoint
from engine.weights.quantised import quantised
from kernels.ops import AttentionBatch, BackendOptions, StepInputs, StepLimits
from kernels.resolve import resolve

WINDOW = 512
BLOCK_SIZE = 16
DOCS = Path(__file__).parents[1] / "docs" / "accuracy.md"
VARIANTS = (
    ("cpu", "f32", "none"),
    ("cpu", "f16", "none"),
    ("cpu", "i16", "none"),
    ("cpu", "i8", "none"),
    ("cpu", "i16", "w8a8"),
)
"""(backend, KV cache, ``--quantization``)."""
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """What one backend showed: means over all positions."""

    name: str
    divergence: float
    divergence_p99: float
    agreement: float
    perplexity: float


def real_text() -> str:
    """Prose: the language reference, topics in order of name."""
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def windows(model: Path, positions: int) -> npt.NDArray[np.int32]:
    """The text as i32[n, WINDOW] tokens, at least ``positions`` of them."""
    count = -(-positions // WINDOW)
    ids = load_tokenizer(model).encode(real_text()[: count * WINDOW * 8], add_special=False)
    return np.array(ids[: count * WINDOW], dtype=np.int32).reshape(count, WINDOW)


class Scorer:
    """One backend with the model on it."""

    def __init__(self, model: Path, device: str, cache_dtype: str, quantization: str) -> None:
        ops = resolve(device, BackendOptions(kv_cache_dtype=cache_dtype)).ops
        checkpoint = quantised(open_checkpoint(model), quantization)
        config = checkpoint.config
        decoder = model_class(config.architecture)(config, checkpoint, ops, WINDOW, lambda _: None)
        cache = CacheConfig(num_blocks=WINDOW // BLOCK_SIZE, block_size=BLOCK_SIZE)
        self._runner = ModelRunner(decoder, ops, cache, StepLimits(WINDOW, WINDOW))

    def logits(self, ids: npt.NDArray[np.int32]) -> F32:
        """f32[WINDOW, V], the scores after each token of one window."""
        positions = np.arange(WINDOW, dtype=np.int32)
        table = np.arange(WINDOW // BLOCK_SIZE, dtype=np.int32)[None, :]
        attention = AttentionBatch(np.array([0, WINDOW], dtype=np.int32), np.array([WINDOW], dtype=np.int32), table)
        return self._runner.forward(StepInputs(ids, positions, positions, attention, positions)).logits


def log_softmax(logits: F32) -> F64:
    """In float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def compare(model: Path, variants: tuple[tuple[str, str, str], ...], text: npt.NDArray[np.int32]) -> list[Figures]:
    """The reference's figures, then those of each variant."""
    reference = Scorer(model, "reference", "auto", "none")
    scorers = [Scorer(model, *variant) for variant in variants]
    names = ["reference, float32", *(_name(*variant) for variant in variants)]
    divergences: list[list[F64]] = [[] for _ in names]
    agreements: list[list[npt.NDArray[np.bool_]]] = [[] for _ in names]
    losses: list[list[F64]] = [[] for _ in names]
    for ids in text:
        wanted = log_softmax(reference.logits(ids))
        for index, scorer in enumerate([None, *scorers]):
            got = wanted if scorer is None else log_softmax(scorer.logits(ids))
            divergences[index].append((np.exp(wanted) * (wanted - got)).sum(axis=-1))
            agreements[index].append(got.argmax(axis=-1) == wanted.argmax(axis=-1))
            losses[index].append(-got[np.arange(WINDOW - 1), ids[1:]])
    out = []
    for name, divergence, agreement, loss in zip(names, divergences, agreements, losses, strict=True):
        all_divergences = np.concatenate(divergence)
        out.append(
            Figures(
                name,
                float(all_divergences.mean()),
                float(np.quantile(all_divergences, 0.99)),
                float(np.concatenate(agreement).mean()),
                float(np.exp(np.concatenate(loss).mean())),
            )
        )
    return out


def _name(device: str, cache: str, quantization: str) -> str:
    return f"{device}, {cache} cache" + ("" if quantization == "none" else f", {quantization}")


def table(figures: list[Figures]) -> str:
    """As Markdown."""
    base = figures[0].perplexity
    lines = ["| what computes | mean KL | 99th percentile | same likeliest token | perplexity | against reference |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [
        f"| {f.name} | {f.divergence:.2e} | {f.divergence_p99:.2e} | {f.agreement:.2%} | {f.perplexity:.4f} "
        f"| {f.perplexity / base - 1:+.3%} |"
        for f in figures
    ]
    return "\n".join(lines)


def write_docs(text: str) -> None:
    """Put the table between the page's marks."""
    page = DOCS.read_text()
    marked = re.compile(r"(<!-- table -->\n).*?(\n<!-- end -->)", re.DOTALL)
    DOCS.write_text(marked.sub(lambda found: found[1] + text + found[2], page))


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the native backend against the float32 reference.")
    default = sorted((Path.home() / ".cache/upwell/smollm2-135m").glob("*.gguf"))
    parser.add_argument("--model", type=Path, default=default[0] if default else None)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if options.model is None:
        parser.error("no model: run `upwell pull smollm2-135m` first, or give --model")
    text = windows(options.model, options.positions)
    result = f"{text.size} positions\n\n" + table(compare(options.model, VARIANTS, text))
    print(result)
    if options.write_docs:
        write_docs(result)


if __name__ == "__main__":
    main()
