"""What clients write never becomes a control token, and guarding changes no harmless prompt."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Backend

from engine.errors import InvalidRequest
from engine.special_guard import SpecialGuard
from engine.tokenizer import load_tokenizer
from server.chat_template import ChatTemplate
from tests.support.tiny_bpe import USER_DEFINED, encode_client_text, tiny_tokenizer, with_control_tokens

CHAT = ["<|im_start|>", "<|im_end|>", "</s>", "[INST]", "<|"]
HUMAN = "\n\nHuman:"
FRAGMENTS = [
    special[i:j] for special in [*CHAT, HUMAN] for i in range(len(special)) for j in range(i + 1, len(special) + 1)
]
CLIENT_TEXT = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4), st.sampled_from([" ", "\n", "☃", "\ufdd0", "\ufdd1"])),
    max_size=5,
).map("".join)
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>",
    "trimmed": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}",
    "bare": "</s>{% for m in messages %}{{ m.content }}{% endfor %}[INST]",
    "pieces": "{% for m in messages %}{% for p in m.parts %}{{ p.text | trim }}{% endfor %}<|im_end|>{% endfor %}",
    "json": "{% for m in messages %}[INST]{{ m.parts | tojson }}{{ m.parts | tojson(ensure_ascii=True) }}{% endfor %}",
    "keys": "{% for m in messages %}[INST]{% for k in m.named %}{{ k }}{{ m.named[k] }}{% endfor %}{% endfor %}",
    "half": "{% for m in messages %}<|{{ m.content }}|>{% endfor %}",
}


@pytest.fixture(scope="module")
def tokenizer():
    return with_control_tokens(CHAT)


def as_message(text):
    parts = [{"type": "text", "text": text[i::3]} for i in range(3)]
    return {"role": "user", "content": text, "parts": parts, "named": {text: text, "arguments": text[:3]}}


def assert_no_control_token_from(tokenizer, template, texts):
    """The template's control tokens are there, in its order, and no other; return the prompt's ids."""
    messages, harmless = [as_message(text) for text in texts], [as_message("x" * len(text)) for text in texts]
    ids, expected = (
        tokenizer.encode_rendered(template.render(guarded.value), guarded.mark)
        for guarded in map(tokenizer.guard, (messages, harmless))
    )
    assert list(filter(tokenizer.is_special, ids)) == list(filter(tokenizer.is_special, expected))
    return ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_client_text_becomes_a_control_token(tokenizer, name):
    template = ChatTemplate(TEMPLATES[name], {})

    @settings(max_examples=80)
    @given(st.lists(CLIENT_TEXT, max_size=3))
    @example(["<|im_end|>", "<|im_", "end|>"])
    @example(["im_end"])
    @example([" <|im_end ", "|> "])
    def check(texts):
        ids = assert_no_control_token_from(tokenizer, template, texts)
        assert tokenizer.decode(ids, skip_special=False) == template.render([as_message(text) for text in texts])

    check()


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("special", [HUMAN, "\n\n", "☃"])
def test_control_tokens_of_unusual_form(name, special):
    """With white space, or of one character: they stay out as well; only what a template trims may differ then."""
    tokenizer = with_control_tokens([*CHAT, special])
    template = ChatTemplate(TEMPLATES[name], {})

    @settings(max_examples=50)
    @given(st.lists(CLIENT_TEXT, max_size=3))
    def check(texts):
        assert_no_control_token_from(tokenizer, template, texts)

    check()


@settings(max_examples=150)
@given(text=st.lists(st.one_of(st.sampled_from([*CHAT, "<tool>", " ", "\n"]), st.text(max_size=5)), max_size=12))
def test_both_paths_give_the_same_ids(tokenizer, text):
    rendered = "".join(text)
    assume("\ufdd0" not in rendered)
    assert tokenizer.encode_rendered(rendered, "\ufdd0") == tokenizer.encode_rendered(rendered, None)


@given(text=CLIENT_TEXT)
def test_ordinary_text_is_encoded_without_control_tokens(tokenizer, text):
    ids = encode_client_text(tokenizer, text)
    assert not any(map(tokenizer.is_special, ids))
    assert tokenizer.decode(ids) == text


def test_harmless_messages_pass_untouched(tokenizer):
    messages = [as_message("Is 2 < 3? Yes: a|b, [x], and so on.")]
    guarded = tokenizer.guard(messages)
    assert guarded.value is messages
    assert guarded.mark is None


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_end", "|> b", "im_end", "x <|", "  <|im_end|  ", "<", ">"])
def test_what_may_form_a_control_token_is_marked(tokenizer, text):
    assert tokenizer.guard(text).mark is not None


def test_what_templates_compare_stays_as_it_is(tokenizer):
    value = {"role": "user", "type": "end", "content": "<|im_end|>", "im_end": "x"}
    guarded = tokenizer.guard(value).value
    assert (guarded["role"], guarded["type"], guarded["im_end"]) == ("user", "end", "x")
    assert guarded["content"] != value["content"]
    assert tokenizer.guard({"role": "im_end"}).value != {"role": "im_end"}


def test_plain_data_of_every_kind_survives(tokenizer):
    value = {"a": [1, 2.5, None, True, "<|im_end|>", {"b": ("[INST]",)}], "<|im_end|>": "k"}
    guarded = tokenizer.guard(value)
    unmarked = json.loads(json.dumps(guarded.value, ensure_ascii=False).replace(guarded.mark, ""))
    assert unmarked == {"a": [1, 2.5, None, True, "<|im_end|>", {"b": ["[INST]"]}], "<|im_end|>": "k"}


def test_the_mark_is_in_no_text_not_even_escaped(tokenizer):
    taken = "".join(map(chr, range(0xFDD0, 0xFDEE)))
    guarded = tokenizer.guard(["<|im_end|>", taken, "\\ufdee"])
    assert guarded.mark == "\ufdef"


def test_texts_that_leave_no_mark_are_refused(tokenizer):
    taken = "".join(map(chr, [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)]))
    with pytest.raises(InvalidRequest, match="private use"):
        tokenizer.guard(["<|im_end|>", taken])


def test_a_tokenizer_without_control_tokens():
    assert SpecialGuard([]).protect({"content": "<|im_end|>"}).mark is None


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_a_control_token_that_is_a_word_is_not_reached_by_merges_either(pre):
    tokenizer = with_control_tokens(["STOPWORD", "TOP", "OP"], pre)
    end = tokenizer.encode("STOPWORD", add_special=False)
    assert len(end) == 1
    for text in ("STOPWORD", "x STOPWORD", "TOP OP STOPWORDS"):
        ids = encode_client_text(tokenizer, text)
        assert not any(map(tokenizer.is_special, ids))
        assert tokenizer.decode(ids) == text
    guarded = tokenizer.guard("STOPWORD")
    ids = tokenizer.encode_rendered(f"STOPWORD{guarded.value}STOPWORD", guarded.mark)
    assert [i for i in ids if tokenizer.is_special(i)] == end * 2


def test_a_control_token_of_one_character():
    tokenizer = with_control_tokens(["☃", "<|im_end|>"])
    guarded = tokenizer.guard("a☃b")
    ids = tokenizer.encode_rendered(f"☃{guarded.value}☃", guarded.mark)
    assert [tokenizer.is_special(i) for i in (ids[0], ids[-1])] == [True, True]
    assert not any(map(tokenizer.is_special, ids[1:-1]))
    assert tokenizer.decode(ids, skip_special=False) == "☃a☃b☃"
    assert not any(map(tokenizer.is_special, encode_client_text(tokenizer, "☃")))


@pytest.mark.parametrize(
    "flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}], ids=str
)
def test_flags_of_control_tokens_are_kept(tmp_path, flags):
    backend = Backend.from_str(tiny_tokenizer()._backend.to_str())
    backend.add_special_tokens([AddedToken("<mask>", normalized=False, **flags)])
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    for text in ("<mask>", "a <mask> b", "a<mask>b", " \n<mask>\t <mask>", "x<mask> y"):
        expected = backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode_rendered(text, None) == tokenizer.encode_rendered(text, "\ufdd0") == expected
        assert tokenizer.decode(encode_client_text(tokenizer, text)) == text


def test_a_control_token_that_is_looked_for_in_normalised_text(tmp_path):
    backend = Backend.from_str(tiny_tokenizer()._backend.to_str())
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<mask>", normalized=True)])
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    full_width = "＜mask＞"
    mask = backend.token_to_id("<mask>")
    assert mask in tokenizer.encode(full_width, add_special=False)
    assert mask not in encode_client_text(tokenizer, full_width)
    guarded = tokenizer.guard(full_width)
    assert mask not in tokenizer.encode_rendered(guarded.value, guarded.mark)
    assert tokenizer.encode_rendered("a <mask> b", None) == backend.encode("a <mask> b").ids


def test_many_control_tokens_in_one_text(tokenizer):
    """So many that it takes minutes if each is handled by copying the text."""
    text = "<|im_end|>" * 40_000
    guarded = tokenizer.guard(text)
    ids = tokenizer.encode_rendered(guarded.value, guarded.mark)
    assert not any(map(tokenizer.is_special, ids))
    assert tokenizer.decode(ids) == text


def test_many_threads_encode_alike():
    from concurrent.futures import ThreadPoolExecutor

    tokenizer = with_control_tokens(CHAT)
    texts = [f"{i} <|im_end|> and {i * i} more words" for i in range(40)]
    alone = [encode_client_text(tokenizer, text) for text in texts]
    fresh = with_control_tokens(CHAT)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(partial(encode_client_text, fresh), texts)) == alone


TOOL = "<tool>"
"""An added token of the tiny vocabulary that is no control token."""


def test_tokens_that_the_template_gives_a_meaning_are_no_text_of_clients(tokenizer):
    """And only those: other added tokens are text, which clients may write as anyone."""
    tool_id = tokenizer.encode(TOOL, add_special=False)[0]
    assert not tokenizer.is_special(tool_id)
    meant, other = tokenizer.guarding(f"{{{{ m.content }}}}{TOOL}"), tokenizer.guarding("tool <to")
    assert tool_id not in encode_client_text(meant, f"x {TOOL} y")
    assert meant.decode(encode_client_text(meant, f"x {TOOL} y")) == f"x {TOOL} y"
    assert tool_id in encode_client_text(other, f"x {TOOL} y")
    guarded = meant.guard(f"x {TOOL} y")
    assert meant.encode_rendered(TOOL + guarded.value, guarded.mark).count(tool_id) == 1
    assert meant.encode(TOOL, add_special=False) == [tool_id], "a plain text is whole the client's own"


@settings(max_examples=150)
@given(
    texts=st.lists(st.one_of(st.sampled_from(["<to", "ol>", TOOL, "<|im_end|>", "a"]), st.text(max_size=3)), max_size=6)
)
def test_no_client_text_becomes_a_token_that_has_a_meaning(tokenizer, texts):
    meant = tokenizer.guarding(TOOL)
    template = ChatTemplate("{% for m in messages %}" + TOOL + "{{ m.content }}{% endfor %}", {})
    guarded = meant.guard([{"role": "user", "content": text} for text in texts])
    ids = meant.encode_rendered(template.render(guarded.value), guarded.mark)
    assert ids.count(tokenizer.encode(TOOL, add_special=False)[0]) == len(texts)
    assert meant.decode(ids, skip_special=False) == "".join(TOOL + text for text in texts)


def test_a_token_that_has_a_meaning_is_not_reached_by_merges_either():
    """In this vocabulary a word that is a token is that token, whatever it could be merged from."""
    tokenizer = with_control_tokens(["<|>", "<<"], "llama-bpe", USER_DEFINED)
    (token_id,) = tokenizer.encode("<|>", add_special=False)
    meant = tokenizer.guarding("<|>")
    for text in ("<|>", "x <|> y", "<<|>"):
        ids = encode_client_text(meant, text)
        assert token_id not in ids
        assert meant.decode(ids) == text


def test_runs_of_blanks_and_words_stay_what_they_are(tokenizer):
    """A template is full of them."""
    source = "naïve {{ '   ' }} " + TOOL
    assert encode_client_text(tokenizer.guarding(source), "naïve") == encode_client_text(tokenizer, "naïve")
