"""Where the tokens of an echoed prompt begin in its text, by tokenizers of several families."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

from engine.tokenizer import load_tokenizer
from server.chat_profile import ChatProfile
from server.context import ModelPrompts
from server.echo import echo_of
from tests.engine.test_tokenizer_hf import save, sentencepiece
from tests.support.tiny_bpe import tiny_tokenizer


def echo(tokenizer, prompt):
    prompts = ModelPrompts(tokenizer, None, ChatProfile())
    token_ids = prompts.text(prompt) if isinstance(prompt, str) else prompt
    return echo_of(prompt, token_ids, prompts, tokenizer, with_offsets=True)


def pieces(found):
    """What of the text belongs to each token."""
    return [found.text[at:end] for at, end in itertools.pairwise([*found.offsets, len(found.text)])]


@pytest.fixture(scope="module", params=["llama", "mistral"])
def spaced(request, tmp_path_factory):
    """Puts a space before the text."""
    backend = sentencepiece(legacy=request.param == "llama")
    return load_tokenizer(save(tmp_path_factory.mktemp("spaced"), backend, {"bos_token": "<s>", "eos_token": "</s>"}))


@pytest.mark.parametrize("text", ["the answer is here", " the answer", "a", "é ü", "<s>the answer"])
def test_a_space_that_the_tokenizer_adds_is_not_in_the_text(spaced, text):
    found = echo(spaced, text)
    shown = ["", *(spaced.token_bytes(i).decode(errors="replace") for i in found.token_ids[1:])]
    assert found.text == text == "".join(pieces(found))
    for piece, token in zip(pieces(found), shown, strict=True):
        if "\ufffd" not in token:
            assert piece in (token, token.removeprefix(" "))


def test_tokens_before_and_after_a_text_have_no_place_in_it(tmp_path):
    backend = sentencepiece()
    backend.add_special_tokens([AddedToken("[gMASK]"), AddedToken("<sop>")])
    around = [(name, backend.token_to_id(name)) for name in ("[gMASK]", "<sop>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A </s>", special_tokens=around)
    found = echo(load_tokenizer(save(tmp_path, backend, {})), "the answer")
    assert pieces(found)[:2] == ["", ""]
    assert pieces(found)[-1] == ""
    assert found.offsets[-1] == len(found.text)
    assert "".join(pieces(found)) == "the answer"


def test_composed_characters_are_never_past_the_end():
    found = echo(tiny_tokenizer("qwen2"), "cafe\u0301 cafe\u0301 is good")
    assert found.offsets[-1] < len(found.text)
    assert list(found.offsets) == sorted(found.offsets)


def test_bytes_that_are_no_text_are_counted_as_they_are_shown():
    tokenizer = tiny_tokenizer()
    byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    found = echo(tokenizer, [byte[b"a"], byte[b"\x80"], byte[b"\x80"], byte[b"b"]])
    assert pieces(found) == ["a", "\ufffd", "\ufffd", "b"]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_places_of_any_tokens_are_in_order_and_in_the_text(token_ids):
    found = echo(tiny_tokenizer(), token_ids)
    assert list(found.offsets) == sorted(found.offsets)
    assert found.offsets[0] == 0
    assert found.offsets[-1] <= len(found.text)
