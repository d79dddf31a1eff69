"""The vocabulary that is read from a tokenizer.json without the tokenizers library, held against that library."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models

from engine.errors import MalformedModel
from engine.hf_vocabulary import read_vocabulary
from tests.engine.test_tokenizer_hf import byte_level, sentencepiece


def unigram():
    backend = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.5), ("b", -2.0)], 0))
    backend.decoder = decoders.Metaspace("▁")
    backend.add_tokens([AddedToken("b", special=True), AddedToken("<x>", special=True), AddedToken("plain")])
    return backend


@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram])
def test_ids_and_special_tokens_are_the_librarys(make):
    backend = make()
    ours = read_vocabulary(backend.to_str())
    vocabulary = backend.get_vocab(with_added_tokens=True)
    assert {token: i for i, token in enumerate(ours.tokens) if token is not None} == vocabulary
    assert ours.special == {i for i, token in backend.get_added_tokens_decoder().items() if token.special}


@pytest.mark.filterwarnings("ignore")
def test_added_tokens_get_ids_in_their_order_whatever_is_written():
    description = json.loads(unigram().to_str())
    for token, written in zip(description["added_tokens"], (70, 4, 3), strict=True):
        token["id"] = written
    source = json.dumps(description)
    ours = read_vocabulary(source)
    library = tokenizers.Tokenizer.from_str(source).get_vocab(with_added_tokens=True)
    assert {token: i for i, token in enumerate(ours.tokens)} == library
    assert ours.tokens[2] == "b"


def added(*tokens):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": 90 + i, "content": text, "special": special, **flags} for i, (text, special) in enumerate(tokens)]


def bpe(vocabulary):
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    return backend


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("text", ["<x>", "b"])
@pytest.mark.parametrize(
    "make", [unigram, lambda: bpe({"a": 0, "b": 1}), lambda: bpe({"a": 0, "b": 7})], ids=["unigram", "bpe", "gaps"]
)
def test_a_token_that_is_added_twice_is_special_if_one_entry_says_so(make, text, first):
    description = json.loads(make().to_str())
    description["added_tokens"] = added((text, first), ("<y>", False), (text, not first), ("<z>", True), ("<z>", True))
    source = json.dumps(description)
    ours, backend = read_vocabulary(source), tokenizers.Tokenizer.from_str(source)
    assert {token: i for i, token in enumerate(ours.tokens) if token is not None} == backend.get_vocab()
    skipped = {i for i in backend.get_added_tokens_decoder() if not backend.decode([i], skip_special_tokens=True)}
    assert ours.special == skipped == {backend.token_to_id(text), backend.token_to_id("<z>")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("twice", [1, 2])
def test_a_list_with_a_token_twice_has_both_ids(twice):
    description = json.loads(unigram().to_str())
    description["model"]["vocab"].insert(2, description["model"]["vocab"][twice])
    description["added_tokens"] = added(("<x>", False), (description["model"]["vocab"][2][0], False))
    source = json.dumps(description)
    ours, backend = read_vocabulary(source), tokenizers.Tokenizer.from_str(source)
    assert ours.tokens == [backend.id_to_token(i) for i in range(len(ours.tokens))]
    assert ours.tokens[4] == "<x>"


VOCABULARIES = ["3", '{"a": -1}', '{"a": 0, "b": 0}', "{}", "[]", '{"a": 16777216}']


@pytest.mark.parametrize("model", ["{}", *(f'{{"vocab": {vocabulary}}}' for vocabulary in VOCABULARIES)])
def test_a_vocabulary_that_is_none_is_refused(model):
    with pytest.raises(MalformedModel, match=r"tokenizer\.json"):
        read_vocabulary(f'{{"model": {model}, "decoder": {{"type": "ByteLevel"}}}}')
