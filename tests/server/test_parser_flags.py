"""``--tool-call-parser`` and ``--reasoning-parser``: what is known of a model, in place of what its template tells."""

from __future__ import annotations

import argparse

import pytest

from engine.errors import ConfigError
from server.chat_profile import profile_of
from server.reasoning import THOUGHTS
from server.settings import add_serve_flags, serve_settings
from server.tools.families import FAMILIES

TEMPLATE = "{{ tools }}<tool_call>arguments</tool_call>{{ content.split('</think>') }}"


def settings(*flags):
    parser = argparse.ArgumentParser()
    add_serve_flags(parser)
    return serve_settings(parser.parse_args(["m", *flags]))


@pytest.mark.parametrize(
    ("flag", "names"), [("--tool-call-parser", FAMILIES), ("--reasoning-parser", THOUGHTS)], ids=["tools", "thoughts"]
)
def test_a_name_is_known_or_refused_with_those_that_are(flag, names):
    for name in ("auto", "none", *names):
        wanted = settings(flag, name)
        assert name in (wanted.tool_call_parser, wanted.reasoning_parser)
    with pytest.raises(ConfigError) as error:
        settings(flag, "hermes2")
    assert str(error.value) == f"{flag} must be one of auto, none, {', '.join(names)}, but is hermes2."


def test_without_a_flag_the_template_tells():
    wanted = settings()
    assert (wanted.tool_call_parser, wanted.reasoning_parser) == ("auto", "auto")
    told = profile_of(TEMPLATE, family="auto", thoughts="auto")
    assert told == profile_of(TEMPLATE)
    assert (told.family_name, told.call_form, told.thoughts) == ("hermes", "hermes", THOUGHTS["think"])


def test_a_name_stands_in_for_what_the_template_tells():
    named = profile_of(TEMPLATE, family="glm_4_5", thoughts="seed")
    assert (named.family_name, named.call_form, named.thoughts) == ("glm_4_5", "glm_4_5", THOUGHTS["seed"])


def test_none_looks_for_nothing():
    for template in (TEMPLATE, "{{ messages }}"):
        nothing = profile_of(template, family="none", thoughts="none")
        assert (nothing.family_name, nothing.call_form, nothing.thoughts, nothing.markers) == (None, "", None, ())


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ tools }}[TOOL_CALLS] [", "mistral"),
        ("{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]", "mistral:args"),
        ("{{ tools }}[TOOL_CALLS]{{ name }}[CALL_ID]{{ id }}[ARGS]", "mistral:id"),
    ],
)
def test_a_template_tells_which_of_its_family_s_forms_the_model_writes(template, form):
    assert profile_of(template).call_form == form
    assert profile_of("{{ tools }}", family="mistral").call_form == "mistral"
