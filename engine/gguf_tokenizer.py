"""Builds a tokenizer from a GGUF file's metadata.

Called by ``Tokenizer.from_gguf``. The vocabulary (``gguf_vocabulary``) becomes byte-level BPE with the splitting rule
that ``tokenizer.ggml.pre`` names; an unknown name is refused, since a wrong rule gives wrong ids without any error.
Source: the GGUF specification ("Tokenizer"), and for the rules the ``tokenizer.json`` of each family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine.errors import MalformedModel, UnsupportedModel
from engine.gguf_vocabulary import optional_text, read_vocabulary, strings
from engine.tokenizer_parts import TokenizerParts

_SPECIAL_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}
"""Name in a chat template -> name in GGUF keys ("seperator" is how the format spells it)."""
_END_NAMES = ("eos", "eot", "eom")


def _split_pattern(digits: str) -> str:
    """The splitting rule that Llama 3 and Qwen 2 share up to how many digits stay together.

    Contractions; letters with one leading non-letter; digits; symbols with a leading space and trailing line breaks;
    line breaks with the white space before them; white space up to the last before a word.
    """
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class PreTokenizer:
    """A splitting rule and what goes with it.

    Attributes:
        pattern: regular expression of the pieces; None for GPT-2's own.
        single_digits: every digit is a piece of its own, before anything else.
        nfc: texts are normalised to NFC first, as the family's ``tokenizer.json`` does.
        ignore_merges: a piece that is a token is taken whole, whatever the merges say.
        add_bos: a text begins with the begin-of-sequence token, unless the file says otherwise.
    """

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_LLAMA3 = PreTokenizer(_split_pattern(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": PreTokenizer(_split_pattern(r"\p{N}"), nfc=True),
    "deepseek-r1-qwen": PreTokenizer(_split_pattern(r"\p{N}")),
}
"""By ``tokenizer.ggml.pre``; the aliases are llama.cpp's."""


def build_gguf_tokenizer(metadata: Mapping[str, object]) -> TokenizerParts:
    """The tokenizer that a GGUF file describes.

    Args:
        metadata: key -> str, number, list[str] or memoryview of numbers.

    Raises:
        UnsupportedModel: not byte-level BPE, or a splitting rule this build does not know.
        MalformedModel: arrays that contradict each other.
    """
    vocabulary = read_vocabulary(metadata)
    rule = _pre_tokenizer(metadata)
    tokens, special = vocabulary.tokens, vocabulary.special
    backend = Tokenizer(_bpe(tokens, strings(metadata, "merges"), rule))
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _splitter(rule)
    backend.decoder = decoders.ByteLevel()
    added = sorted(vocabulary.added)
    backend.add_tokens([AddedToken(tokens[i], special=i in special, normalized=False) for i in added])
    special_ids = {name: _token_id(metadata, key, len(tokens)) for name, key in _SPECIAL_NAMES.items()}
    ends = (_token_id(metadata, name, len(tokens)) for name in _END_NAMES)
    return TokenizerParts(
        backend=backend,
        table=vocabulary.table(),
        prefix_ids=_end_ids(metadata, "bos", special_ids["bos"], default=rule.add_bos),
        suffix_ids=_end_ids(metadata, "eos", special_ids["eos"], default=False),
        special_tokens={f"{name}_token": tokens[i] for name, i in special_ids.items() if i is not None},
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        chat_template=optional_text(metadata, "tokenizer.chat_template"),
    )


def _pre_tokenizer(metadata: Mapping[str, object]) -> PreTokenizer:
    name = optional_text(metadata, "tokenizer.ggml.pre") or "default"
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModel(
            f'The GGUF file\'s pre-tokenizer "{name[:40]}" is not supported, only {", ".join(PRE_TOKENIZERS)} are; '
            "serve the model's Hugging Face folder with its tokenizer.json instead."
        )
    return PRE_TOKENIZERS[name]


def _splitter(rule: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rule.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    return pre_tokenizers.Sequence(steps)


def _bpe(tokens: list[str], merges: list[str], rule: PreTokenizer) -> models.BPE:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise MalformedModel("The GGUF file's tokenizer.ggml.tokens holds the same token twice.")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise MalformedModel(f"Entry {len(pairs)} of the GGUF file's tokenizer.ggml.merges is not two tokens.")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise MalformedModel(
                f"Entry {len(pairs)} of the GGUF file's tokenizer.ggml.merges names a token outside the vocabulary."
            )
        pairs.append((left, right))
    return models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule.ignore_merges)


def _end_ids(metadata: Mapping[str, object], name: str, token_id: int | None, *, default: bool) -> list[int]:
    """The token that a text begins (bos) or ends (eos) with, if the file asks for it."""
    wanted = _flag(metadata, f"tokenizer.ggml.add_{name}_token", default)
    return [token_id] if wanted and token_id is not None else []


def _token_id(metadata: Mapping[str, object], name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedModel(f"The GGUF file's {key} is not an integer.")
    if not 0 <= value < count:
        raise MalformedModel(f"The GGUF file's {key} is {value}, but its vocabulary has {count} tokens.")
    return value


def _flag(metadata: Mapping[str, object], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise MalformedModel(f"The GGUF file's {key} is not true or false.")
    return value
