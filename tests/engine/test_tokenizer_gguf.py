"""Tokenizers rebuilt from GGUF vocabularies, held against llama.cpp's own ids and against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidRequest, MalformedModel, UnsupportedModel
from engine.gguf_tokenizer import PRE_TOKENIZERS
from engine.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_bpe import encode_client_text, golden_table, metadata, tiny_tokenizer


def assert_rows(tokenizer, rows):
    for row in rows:
        text = row["text"]
        assert encode_client_text(tokenizer, text) == row["ids"], repr(text)
        assert tokenizer.encode(text, add_special=False) == row.get("trusted_ids", row["ids"]), repr(text)


def test_the_default_models_ids_are_llama_cpps(default_model):
    # Known to differ, and so not in the table: where a byte has no token of its own (six control characters, and planes
    # 4 to 11), llama.cpp lets its gap keep the neighbours apart, while the tokenizers library, which trained the model,
    # merges across it.
    rows = golden_table("smollm2")["rows"]
    assert len(rows) >= 120
    assert_rows(load_tokenizer(default_model), rows)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_splitting_rule_gives_llama_cpps_ids(pre):
    table = golden_table("tiny_bpe")["tables"][pre]
    assert_rows(tiny_tokenizer(pre), table["rows"])
    assert tiny_tokenizer(pre).encode("", add_special=True) == table["ends"]


def test_the_splitting_rules_can_be_told_apart():
    """The table judges: each family's ids differ from every other's somewhere."""
    tables = golden_table("tiny_bpe")["tables"]
    families = {"gpt-2", "smollm", "llama-bpe", "qwen2"}
    ids = {pre: [row["ids"] for row in tables[pre]["rows"]] for pre in families}
    assert all(ids[a] != ids[b] for a in families for b in families if a < b)


MIXED = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(list("  \t\n\r0123abzABZ'sStTlLrReEvVmM<|>._e\u0301")))
)


@pytest.mark.parametrize(
    ("pre", "judge"), [("qwen2", transformers.Qwen2Tokenizer), ("gpt-2", transformers.GPT2Tokenizer)]
)
def test_ids_are_those_of_the_familys_own_tokenizer(pre, judge):
    table = golden_table("tiny_bpe")
    vocabulary = {token: i for i, token in enumerate(table["tokens"])}
    names = [token for token, kind in zip(table["tokens"], table["token_types"], strict=True) if kind != 1]
    theirs = judge(
        vocab=vocabulary,
        merges=[tuple(merge.split(" ")) for merge in table["merges"]],
        **dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|end|>"),
    )
    theirs.add_tokens([transformers.AddedToken(name, normalized=False) for name in names])
    ours = tiny_tokenizer(pre)

    @settings(max_examples=300)
    @given(MIXED)
    def check(text):
        assert ours.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False)

    check()


@given(MIXED)
def test_decoding_gives_the_text_back(text):
    tokenizer = tiny_tokenizer("llama-bpe")
    assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text
    assert tokenizer.decode(encode_client_text(tokenizer, text)) == text


def test_control_tokens_only_where_the_text_is_trusted():
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_ids[0]
    assert tokenizer.encode("a<|end|>", add_special=False)[-1] == end
    assert end not in encode_client_text(tokenizer, "a<|end|>")
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], skip_special=False) == "<|end|>"
    assert tokenizer.token_text(end) == "<|end|>"
    assert tokenizer.is_special(end)


def test_user_defined_tokens_are_whole_and_shown():
    tokenizer = tiny_tokenizer()
    for text in ("<tool>", "<|pad pad|>", "naïve"):
        (token_id,) = encode_client_text(tokenizer, text)
        assert not tokenizer.is_special(token_id)
        assert tokenizer.token_bytes(token_id) == text.encode()


def test_padding_of_the_vocabulary_shows_nothing():
    table = golden_table("tiny_bpe")
    kinds = np.array([*table["token_types"], 5], dtype=np.int32).data
    tokenizer = Tokenizer.from_gguf(metadata(tokens=[*table["tokens"], "[PAD0]"], token_type=kinds))
    assert tokenizer.decode([len(kinds) - 1]) == ""
    assert tokenizer.vocab_size == len(kinds)


@pytest.mark.parametrize("token_id", [-1, 10**9])
def test_ids_outside_the_vocabulary_show_nothing(token_id):
    tokenizer = tiny_tokenizer()
    assert tokenizer.token_bytes(token_id) == b""
    assert tokenizer.token_text(token_id) == ""
    assert not tokenizer.is_special(token_id)


def test_what_the_file_says_about_special_tokens():
    data = metadata(eot_token_id=5, eom_token_id=5, padding_token_id=7, add_bos_token=True, add_eos_token=True)
    data["tokenizer.chat_template"] = "{{ messages }}"
    tokenizer = Tokenizer.from_gguf(data)
    bos, eos = (data[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos"))
    assert tokenizer.eos_ids == (eos, 5)
    assert tokenizer.special_tokens == {
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": data["tokenizer.ggml.tokens"][7],
    }
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|bos|>", "<|end|>")
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.encode("a", add_special=True) == [bos, *tokenizer.encode("a", add_special=False), eos]


def test_a_file_may_switch_the_familys_bos_off():
    tokenizer = Tokenizer.from_gguf(metadata("llama-bpe", add_bos_token=False))
    assert tokenizer.encode("", add_special=True) == []


def test_without_token_types_nothing_is_special():
    tokenizer = Tokenizer.from_gguf(metadata(token_type=None))
    assert tokenizer.encode("<|end|>", add_special=False) == encode_client_text(tokenizer, "<|end|>")


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "<|end|>\udc00"])
def test_half_a_surrogate_pair_is_the_callers_error(text):
    tokenizer = tiny_tokenizer()
    for encode in (
        lambda: tokenizer.encode(text, add_special=False),
        lambda: encode_client_text(tokenizer, text),
        lambda: tokenizer.encode_rendered(text, None),
        lambda: tokenizer.encode_rendered(text, "\ufdd0"),
    ):
        with pytest.raises(InvalidRequest, match="surrogate"):
            encode()


TOKENS = golden_table("tiny_bpe")["tokens"]
TYPES = golden_table("tiny_bpe")["token_types"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": 3},
        {"tokens": None},
        {"tokens": []},
        {"tokens": ["a", 1]},
        {"tokens": np.zeros(4, dtype=np.int32)},
        {"tokens": [*TOKENS[:-1], TOKENS[0]]},
        {"merges": None},
        {"merges": ["ab"]},
        {"merges": ["a b c"]},
        {"merges": ["a "]},
        {"merges": [" b"]},
        {"merges": ["a qqq"]},
        {"merges": ["\u0100 \u0101"]},
        {"token_type": np.array(TYPES[:-1], dtype=np.int32)},
        {"token_type": np.zeros(len(TOKENS), dtype=np.int32)},
        {"token_type": np.full(len(TOKENS), 7, dtype=np.int32)},
        {"token_type": np.ones(len(TOKENS), dtype=np.float32)},
        {"token_type": ["1"] * len(TOKENS)},
        {"bos_token_id": len(TOKENS)},
        {"eos_token_id": -1},
        {"eot_token_id": 1.0},
        {"unknown_token_id": True},
        {"add_bos_token": 1},
    ],
    ids=lambda changes: "-".join(f"{key}={str(value)[:20]}" for key, value in changes.items()),
)
def test_contradictions_are_refused(changes):
    changes = {key: value.data if isinstance(value, np.ndarray) else value for key, value in changes.items()}
    with pytest.raises(MalformedModel, match="GGUF"):
        Tokenizer.from_gguf(metadata(**changes))


def test_a_chat_template_that_is_no_text_is_refused():
    with pytest.raises(MalformedModel, match="chat_template"):
        Tokenizer.from_gguf(metadata() | {"tokenizer.chat_template": 1})


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": "llama"}, '"llama".*tokenizer.json'), ({"pre": "tekken"}, '"tekken"'), ({"pre": None}, '"default"')],
)
def test_what_cannot_be_rebuilt_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedModel, match=named):
        Tokenizer.from_gguf(metadata(**changes))
