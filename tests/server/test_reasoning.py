"""Thoughts split from an answer, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.reasoning import Markers, ThoughtSplitter

THINK = Markers("<think>", "</think>")


def split(pieces, *, is_open=False, markers=THINK):
    splitter = ThoughtSplitter(markers, is_open=is_open)
    parts = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes"),
        ("\n <think>hm</think>yes", False, "hm", "yes"),
        ("hm</think>\nyes </think>", True, "hm", "yes </think>"),
        ("<think></think>yes", False, "", "yes"),
        ("</think>yes", True, "", "yes"),
        ("yes", False, "", "yes"),
        ("  yes", False, "", "  yes"),
        ("<thin", False, "", "<thin"),
        ("a <think>b</think>", False, "", "a <think>b</think>"),
        ("<think>a </thin b", False, "a </thin b", ""),
        ("never ends \n", True, "never ends", ""),
        ("<think>a\n\n b</think>", False, "a\n\n b", ""),
        ("<think>a<think>b</think>c<think>d</think>", False, "a<think>b", "c<think>d</think>"),
        ("", False, "", ""),
        (" ", False, "", " "),
        ("a</</think>b", True, "a</", "b"),
    ],
)
def test_each_way_to_think(text, is_open, reasoning, content):
    assert split([text], is_open=is_open) == (reasoning, content)
    assert split(text, is_open=is_open) == (reasoning, content), "character by character"


texts = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "th", "ink>", " ", "\n", "a", "é", "</think", "<thi"])
).map("".join)


@given(text=texts, is_open=st.booleans(), data=st.data())
def test_the_cuts_do_not_matter_and_nothing_is_lost(text, is_open, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reasoning, content = split(pieces, is_open=is_open)
    assert (reasoning, content) == split([text], is_open=is_open) == split(text, is_open=is_open)
    if is_open or text.lstrip().startswith("<think>"):
        thoughts, _, answer = (text if is_open else text.lstrip().removeprefix("<think>")).partition("</think>")
        assert (reasoning, content) == (thoughts.strip(), answer.lstrip())
    else:
        assert (reasoning, content) == ("", text)


def test_nothing_is_shown_late_and_nothing_early():
    splitter = ThoughtSplitter(THINK, is_open=False)
    assert splitter.feed("<thi") == ("", "")
    assert not splitter.is_thinking
    assert splitter.feed("nk>a") == ("a", "")
    assert splitter.is_thinking
    assert splitter.feed(" </") == ("", "")
    assert splitter.feed("b") == (" </b", "")
    assert splitter.feed("</think") == ("", "")
    assert splitter.feed(">\n") == ("", "")
    assert not splitter.is_thinking
    assert splitter.feed("\ny ") == ("", "y ")


@pytest.mark.parametrize("text", ["<" * 200_000, " " * 200_000, "</think" * 30_000, "a " * 100_000])
def test_time_grows_with_the_text(text):
    """Character by character: what is held back is looked at again, so it must stay short or be joined once."""
    assert "".join(split(text, is_open=True)[0].split()) == "".join(text.split())
