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


@pytest.mark.parametrize("model", ["{}", '{"vocab": 3}', '{"vocab": {"a": -1}}', '{"vocab": {"a": 0, "b": 0}}'])
def test_a_vocabulary_that_is_none_is_refused(model):
    with pytest.raises(MalformedModel, match=r"tokenizer\.json"):
        read_vocabulary(f'{{"model": {model}, "decoder": {{"type": "ByteLevel"}}}}')
