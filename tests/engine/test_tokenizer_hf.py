"""Tokenizers of Hugging Face folders: byte-level and SentencePiece-style, held against the tokenizers library."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.errors import MalformedModel, ModelNotFound, UnsupportedModel
from engine.tokenizer import load_tokenizer
from tests.support.tiny_bpe import encode_client_text, golden_table, tiny_tokenizer

CORPUS = [row["text"] for row in golden_table("smollm2")["rows"] if row["text"].isprintable()]


def save(folder, backend, config=None, **changes):
    """Write a model folder's tokenizer files; ``changes`` replace parts of tokenizer.json."""
    description = json.loads(backend.to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def byte_level(pre="qwen2"):
    return tiny_tokenizer(pre)._backend


def sentencepiece(*, legacy=False):
    """A tokenizer in the manner of Llama 2 (legacy: a normaliser puts the space in front) or Mistral."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    metaspace = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁")
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False, limit_alphabet=80
    )
    backend.train_from_iterator(CORPUS, trainer)
    description = json.loads(backend.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    else:
        backend.pre_tokenizer = metaspace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken("[INST]", normalized=False), AddedToken("<|im_end|>", normalized=False)])
    return backend


def test_a_folder_gives_the_ids_that_gguf_gives(tmp_path):
    tokenizer = load_tokenizer(save(tmp_path, byte_level()))
    for row in golden_table("tiny_bpe")["tables"]["qwen2"]["rows"]:
        assert encode_client_text(tokenizer, row["text"]) == row["ids"]
    assert [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)] == [
        tiny_tokenizer("qwen2").token_bytes(i) for i in range(tokenizer.vocab_size)
    ]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("text", ["Hello world", "  two  spaces ", "naïve 😀 \n\t x", "", "的的", "a</s>b"])
def test_sentencepiece_style(tmp_path, legacy, text):
    backend = sentencepiece(legacy=legacy)
    tokenizer = load_tokenizer(save(tmp_path, backend))
    ids = tokenizer.encode(text, add_special=False)
    assert ids == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, add_special=True) == backend.encode(text).ids == [1, *ids]
    # The library takes the first space off, since it takes the tokens for a whole text; ours go on from a prompt.
    ours = tokenizer.decode(ids)
    assert (ours[1:] if ours.startswith(" ") else ours) == backend.decode(ids)


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory):
    return load_tokenizer(save(tmp_path_factory.mktemp("model"), sentencepiece()))


@given(ids=st.lists(st.integers(0, 300), max_size=12))
def test_byte_tokens_of_sentencepiece_style(sentencepiece_tokenizer, ids):
    tokenizer = sentencepiece_tokenizer
    data = b"".join(bytes([i - 3]) if 3 <= i < 259 else tokenizer.token_bytes(i) for i in ids if i > 2)
    assert tokenizer.decode(ids) == data.decode(errors="replace")


def test_metaspace_decoder(tmp_path):
    backend = sentencepiece()
    backend.decoder = decoders.Metaspace("▁")
    tokenizer = load_tokenizer(save(tmp_path, backend))
    ids = tokenizer.encode("Hello world", add_special=False)
    assert tokenizer.decode(ids) == " Hello world"
    assert tokenizer.token_bytes(3 + 0x41) == b"<0x41>"  # no byte fallback: the token is what it says


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip("x", 1, 0)]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 0, 1)]),
        decoders.Replace(tokenizers.Regex("▁+"), " "),
        decoders.Fuse(),
        None,
    ],
    ids=repr,
)
def test_unknown_decoders_are_refused(tmp_path, decoder):
    backend = sentencepiece()
    backend.decoder = decoder
    with pytest.raises(UnsupportedModel, match="decoder"):
        load_tokenizer(save(tmp_path, backend))


def test_special_tokens_and_template_from_the_configuration(tmp_path):
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False, "__type": "AddedToken"},
        "pad_token": None,
        "add_bos_token": True,
        "chat_template": "{{ bos_token }}",
    }
    tokenizer = load_tokenizer(save(tmp_path, sentencepiece(), config))
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.eos_ids == (2,)
    assert tokenizer.chat_template == "{{ bos_token }}"


def test_named_templates_and_a_template_file(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    save(tmp_path, byte_level(), {"chat_template": named})
    assert load_tokenizer(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("{# file #}", encoding="utf-8")
    assert load_tokenizer(tmp_path).chat_template == "{# file #}"


def test_truncation_padding_and_dropout_are_switched_off(tmp_path):
    backend = tokenizers.Tokenizer.from_str(byte_level().to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.model.dropout = 0.5
    tokenizer = load_tokenizer(save(tmp_path, backend))
    text = "The quick brown fox jumps over the lazy dog. " * 5
    assert tokenizer.encode(text, add_special=False) == tiny_tokenizer("qwen2").encode(text, add_special=False)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "[]",
        "{}",
        '{"model": 1}',
        '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}, "decoder": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}, "decoder": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0, "b": 1, "ab": 2}, '
        '"merges": ["a b"]}, "decoder": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        "[" * 100_000,
        "\ufeff{}",
    ],
    ids=lambda source: source[:40],
)
def test_malformed_files_are_refused(tmp_path, source):
    (tmp_path / "tokenizer.json").write_text(source, encoding="utf-8")
    with pytest.raises(MalformedModel, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(MalformedModel, match="UTF-8"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("config", [[], {"eos_token": "<nowhere>"}, {"chat_template": 3}], ids=str)
def test_a_contradictory_configuration_is_refused(tmp_path, config):
    save(tmp_path, byte_level(), config)
    with pytest.raises(MalformedModel, match="tokenizer_config"):
        load_tokenizer(tmp_path)


def test_named_templates_without_a_default_are_none(tmp_path):
    save(tmp_path, byte_level(), {"chat_template": [{"name": "rag", "template": "R"}, 3]})
    assert load_tokenizer(tmp_path).chat_template is None


def test_no_tokenizer_at_all(tmp_path):
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_post_processor_that_changes_the_text_is_refused(tmp_path):
    backend = sentencepiece()
    backend.post_processor = processors.TemplateProcessing(single="<s>", special_tokens=[("<s>", 1)])
    with pytest.raises(UnsupportedModel, match="post-processor"):
        load_tokenizer(save(tmp_path, backend))


@pytest.mark.filterwarnings("ignore")
def test_a_token_that_is_added_twice_with_and_without_being_special_is_special(tmp_path):
    entries = json.loads(byte_level().to_str())["added_tokens"]
    assert entries[-1]["special"]
    again = {**entries[-1], "special": False}
    tokenizer = load_tokenizer(save(tmp_path, byte_level(), added_tokens=[*entries, again]))
    assert tokenizer.is_special(entries[-1]["id"])
