"""Makes the golden token tables in tests/golden: texts with the ids that llama.cpp's tokenizer gives them.

    python tools/make_token_table.py smollm2 SmolLM2-135M-Instruct.Q4_1.gguf > tests/golden/tokens_smollm2.json
    python tools/make_token_table.py tiny > tests/golden/tokens_tiny_bpe.json

It runs in an environment of its own, with ``cyllama==0.2.18`` (llama.cpp b9190), ``gguf`` and ``tokenizers``. The first
table uses a model's own vocabulary. The second trains a small vocabulary without any splitting of the text, so that its
merges reach over every border a splitting rule may draw, and asks llama.cpp under each rule's name.

Of 20,000 random texts a rule, three kinds come out otherwise than with the tokenizers library, and are left out here:
characters whose category differs between the versions of Unicode that the two were built with (such as U+13921),
combining marks that this Python's NFC does not order yet, and bytes that have no token in the middle of a word, which
keep their neighbours apart in llama.cpp alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
import unicodedata
from pathlib import Path

import gguf
import numpy as np
from cyllama.llama import llama_cpp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

PRE_NAMES = ("gpt-2", "smollm", "llama-bpe", "llama-v3", "llama3", "qwen2", "deepseek-r1-qwen")
NFC_NAMES = {"qwen2"}
"""Families whose own tokenizer.json normalises to NFC; llama.cpp leaves that out, so it is given normalised text."""

CONTROL_TOKENS = ["<|bos|>", "<|end|>"]
USER_DEFINED_TOKENS = ["<tool>", "<|pad pad|>", "naïve"]
WHOLE_TOKENS = ["ĠUpwell", "zyzzyva", "12345"]
"""In the vocabulary, but not to be reached by merges: taken whole only under rules that ignore merges."""

TEXTS = [
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    "\r\n\r\n",
    " \n",
    "\n ",
    "\n  x",
    "x  \n  y",
    "\t\n\t",
    "a\tb\t\tc",
    "trailing   ",
    "   leading",
    "mid    dle",
    "a \n\n b",
    "tab\tand  two spaces\nand a line",
    "Hello world",
    "Hello, world!",
    "hello",
    " hello",
    "HELLO WORLD",
    "The quick brown fox jumps over the lazy dog.",
    "0",
    "7",
    "42",
    "123",
    "1234",
    "12345",
    "1234567890",
    "3.14159",
    "1,000,000",
    "2024-01-31T23:59:59Z",
    "v1.2.3-rc4",
    "x1y22z333",
    " 99 bottles",
    "0x1F4A9",
    "1e-5",
    "١٢٣٤٥",
    "१२३४५",
    "１２３",
    "²³¹",
    "½ ¾ ⅓",
    "Ⅷ Ⅻ ⅷ",
    "①②③",
    "〇一二三",
    "𝟘𝟙𝟚",
    "it's",
    "IT'S",
    "I'm, you're, he'll, we've, they'd, don't",
    "I'M YOU'RE HE'LL WE'VE THEY'D DON'T",
    "'s 't 're",
    "' s",
    "''s",
    "o'clock 'twas rock'n'roll",
    "it’s",
    "'S'T'RE'VE'M'LL'D",
    "'Re'vE'lL",
    "'sa'tb'rec",
    "你好，世界",
    "我是一个人工智能助手。",
    "日本語のテキスト",
    "カタカナとひらがな",
    "안녕하세요 세계",
    "한국어",
    "Привет, мир!",
    "Γειά σου Κόσμε",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "வணக்கம் உலகம்",
    "გამარჯობა",
    "Բարեւ",
    "ሰላም",
    "Xin chào thế giới",
    "Žluťoučký kůň",
    "naïve café",
    "naïve naivë",
    "cafe\u0301",
    "e\u0301e\u0300\u0323",
    "a\u0308\u0304bc",
    "\u0301",
    " \u0301x",
    "नि",
    "각각",
    "\u1112\u1161\u11ab",
    "ﬁ ﬂ ﬀ",
    "ſtraße Straße STRASSE",
    "İstanbul ıI",
    "Å\u212b\u2126\u212a",
    "😀",
    "😀😃😄",
    "👍🏽",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪🇫🇷",
    "❤️",
    "☎️ 1️⃣ ©️",
    "a😀b 😀 c",
    "∑∫√∞≠≤≥",
    "x² + y² = z²",
    "→ ⇒ ↦",
    "“quoted” ‘text’ — dash – en … dots",
    "«guillemets» ‹x›",
    "€100 £200 ¥300 ₿1",
    "!!!",
    "???!!!...",
    "a.b.c",
    "foo/bar\\baz",
    "--- ### *** ___",
    "user@example.org",
    "https://example.org/a?b=c&d=%20#e",
    "def f(x):\n    return x ** 2\n",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += 1;\n}\n",
    '{"key": [1, 2.5, null, true], "s": "\\n"}',
    "SELECT * FROM t WHERE id=1;--",
    "<html><body class='x'>&nbsp;</body></html>",
    "if x:\n\n\n        pass",
    "#include <stdio.h>\r\nint main() {}\r\n",
    "a=b==c===d",
    "    \n    \n",
    "$x_1 = {};",
    "| a | b |\n|---|---|\n",
    "- item\n  - sub\n\t- tab",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE",
    "_private __init__",
    "\\frac{1}{2}",
    "a" * 500,
    "ab" * 300,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 4,
    " " * 200,
    " " * 200 + "x",
    "\n" * 50,
    "1" * 100,
    "的" * 100,
    "😀" * 30,
    "-" * 120,
    "\x00",
    "a\x00b",
    "\x00\x00 \x00",
    "\x01\x02\x03\x04\x05\x06\x07\x08",
    "\x0b\x0c\x0e\x0f",
    "a\x0bb\x0cc",
    "\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b",
    "\x1b[31mred\x1b[0m",
    "\x1c\x1d\x1e\x1f",
    "a\x1cb\x1fc",
    "\x7f",
    "\x80\x81\x85\x9f",
    "a\x85b",
    "\u00a0",
    "a\u00a0b \u00a0 c",
    "\u00ad soft",
    "\u1680ogham",
    "\u180emvs",
    "\u2000\u2003\u2009thin",
    "zero\u200bwidth\u200c\u200d\u2060",
    "\u2028line\u2029para",
    "\u202fnarrow\u205fmath",
    "\u3000全角",
    "\ufeffbom",
    "\u202eright\u202c",
    "\ufffd",
    "bad\ufffd\ufffdtext",
    "\ufffe\uffff",
    "\ufdd0\ufdef",
    "\ue000\uf8ff",
    "\U000f0000\U0010ffff",
    "\U00040000\U000e0001",
    "\U0001f9ff\U0001fae8",
    "𐍈𐌰 𓀀 𝒳",
    "𠀀𠮷",
    "㍻㌔",
    "ᵃᵇ ₁₂ ⁿ",
    "ʰʲ ˈstress",
    "<|im_end|>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|endoftext|>b",
    "<|im_end",
    "|im_end|>",
    "< |im_end| >",
    "<<|im_end|>>",
    "<|bos|>text<|end|>",
    "<|end|><|end|> <|end|>",
    "<tool>x</tool> <tool>",
    "<|pad pad|><|pad|>",
    " Upwell Upwells Upwell",
    "zyzzyva zyzzyvas 12345 123456",
    "</s> <s> [INST] <unk>",
    "The answer is 1234567, isn't it?\n\nYes — it's 100% right; see §4.2 (p. 12).",
    "Mixed 中文 and English 混合 text 2024年12月31日 ok",
    "Ünïcödé ÀÉÎÕÜ àéîõü ÿ",
    "a\u200bb",
]


class Judge:
    """llama.cpp's tokenizer of one GGUF file."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.LlamaModelParams()
        params.n_gpu_layers = 0
        self._model = llama_cpp.LlamaModel(str(path), params, verbose=False)
        self._vocab = self._model.get_vocab()

    def row(self, text: str) -> dict[str, object]:
        """A row of the table: the ids with control tokens as ordinary text, and with them parsed where that differs."""
        ordinary = self._vocab.tokenize(text, False, False)
        trusted = self._vocab.tokenize(text, False, True)
        return {"text": text, "ids": ordinary} | ({"trusted_ids": trusted} if trusted != ordinary else {})

    def ends(self) -> list[int]:
        """What is put around a plain text."""
        return list(self._vocab.tokenize("", True, False))


def tiny_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level vocabulary whose merges know no borders."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 700, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    names = ["<|", *USER_DEFINED_TOKENS]  # what looks like a control token to llama.cpp must not be a normal one
    names += [token.lstrip("Ġ") for token in WHOLE_TOKENS]
    corpus = [text for text in TEXTS if len(text) < 100 and not any(name in text for name in names)] * 2
    backend.train_from_iterator(corpus, trainer)
    description = json.loads(backend.to_str())["model"]
    tokens = sorted(description["vocab"], key=description["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in description["merges"]]
    return [*tokens, *WHOLE_TOKENS, *USER_DEFINED_TOKENS, *CONTROL_TOKENS], merges


def token_types(tokens: list[str]) -> list[int]:
    """GGUF's kind of each token: 1 normal, 3 control, 4 user-defined."""
    return [3 if token in CONTROL_TOKENS else 4 if token in USER_DEFINED_TOKENS else 1 for token in tokens]


def write_tiny_model(path: Path, pre: str, tokens: list[str], merges: list[str]) -> None:
    """The smallest model that llama.cpp loads, with the vocabulary under test."""
    width = 32
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(token_types(tokens))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|end|>"))
    square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {f"blk.0.{name}.weight": (width, width) for name in square}
    norms = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"]
    shapes |= dict.fromkeys(norms, (width,))
    shapes["token_embd.weight"] = (len(tokens), width)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def smollm2_table(path: Path) -> dict[str, object]:
    judge = Judge(path)
    return {"judge": "llama.cpp b9190", "model": path.name, "rows": [judge.row(text) for text in TEXTS]}


def tiny_table() -> dict[str, object]:
    tokens, merges = tiny_vocabulary()
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE_NAMES:
            path = Path(folder) / f"{pre}.gguf"
            write_tiny_model(path, pre, tokens, merges)
            judge = Judge(path)
            texts = [unicodedata.normalize("NFC", text) if pre in NFC_NAMES else text for text in TEXTS]
            rows = [judge.row(text) | {"text": original} for text, original in zip(texts, TEXTS, strict=True)]
            tables[pre] = {"ends": judge.ends(), "rows": rows}
    vocabulary = {"tokens": tokens, "token_types": token_types(tokens), "merges": merges}
    return {"judge": "llama.cpp b9190", **vocabulary, "tables": tables}


def main() -> None:
    llama_cpp.disable_logging()
    table = tiny_table() if sys.argv[1] == "tiny" else smollm2_table(Path(sys.argv[2]))
    rows = json.dumps(table, ensure_ascii=True, separators=(",", ":"))
    print(rows.replace('{"text"', '\n{"text"'))


if __name__ == "__main__":
    main()
