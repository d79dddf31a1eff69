"""Which family a template is of, and what belongs to a family. The templates are short ones in each family's syntax."""

from __future__ import annotations

import json

import pytest

from server.chat_template import ChatTemplate
from server.tools.families import FAMILIES, family_of_template
from server.tools.parts import Tool
from tests.support.tool_texts import parsed

LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}{% for c in m.tool_calls or [] %}"
END = "{% endfor %}{{ eos_token }}{% endfor %}"
PARAMETERS = "{% for k, v in c.function.arguments.items() %}"

TEMPLATES = {
    "hermes": LOOP
    + """<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>"""
    + END,
    "qwen3_coder": LOOP
    + "<tool_call>\n<function={{ c.function.name }}>\n"
    + PARAMETERS
    + "<parameter={{ k }}>\n{{ v | string }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
    + END,
    "llama3_json": "<|start_header_id|>{% if tools %}Environment: ipython{% endif %}<|end_header_id|>"
    + LOOP
    + """{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}"""
    + END,
    "mistral": LOOP + "[TOOL_CALLS][{{ c.function | tojson }}]" + END,
    "deepseek_v3": "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c['type'] + '<｜tool▁sep｜>'"
    " + c['function']['name'] + '\n```json\n' + c['function']['arguments']"
    " + '\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}" + END,
    "deepseek_v3_1": "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c['function']['name'] + '<｜tool▁sep｜>'"
    " + c['function']['arguments'] + '<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}" + END,
    "glm_4_5": LOOP
    + "<tool_call>{{ c.function.name }}\n"
    + PARAMETERS
    + "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n"
    + "{% endfor %}</tool_call>"
    + END,
    "seed_oss": "{% set begin = '<seed:tool_call>' %}"
    + LOOP
    + "{{ begin }}\n<function={{ c.function.name }}>\n"
    + PARAMETERS
    + "<parameter={{ k }}>{{ v | string }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>"
    + END,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_of_a_template(family):
    assert family_of_template(TEMPLATES[family]) == family


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_template_writes_the_parser_reads(family):
    """A call in a conversation's history comes back: template, form of the arguments and parser fit each other."""
    arguments = {"text": "a\nb", "count": 3}
    as_text = FAMILIES[family].arguments_as_text(TEMPLATES[family])
    function = {"name": "f", "arguments": json.dumps(arguments) if as_text else arguments}
    message = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    text = ChatTemplate(TEMPLATES[family], {}).render([message])
    content, ((name, got),) = parsed(family, text)
    assert (name, json.loads(got)) == ("f", arguments)
    assert "f" not in content


@pytest.mark.parametrize(
    ("family", "template"),
    [
        (None, "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"),
        (None, ""),
        (None, "<|start_header_id|>{{ messages[0].content }}<|end_header_id|>"),
        (None, "<tool_calls><tool_call>{{ name }}\n```json\n{{ arguments }}```</tool_call></tool_calls>"),
        (None, "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ arguments }}<|tool_call_end|>"),
        (None, "<minimax:tool_call><invoke name=f><parameter name=k>{{ v }}</parameter></invoke></minimax:tool_call>"),
        ("hermes", '<|start_header_id|><tool_call>{"name": "f", "arguments": {}}</tool_call> ipython "parameters"'),
        ("mistral", "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments }}"),
        ("mistral", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments }}"),
        (
            "glm_4_5",
            "<tool_call>{{ c.name }}<arg_key>{{ k }}</arg_key><arg_value>{{ arguments }}</arg_value></tool_call>",
        ),
        ("llama3_json", '{"name": function name, "parameters": dictionary} <|start_header_id|>'),
    ],
)
def test_templates_of_neighbouring_kinds(family, template):
    assert family_of_template(template) == family


def test_which_templates_take_arguments_as_text():
    assert [name for name in FAMILIES if FAMILIES[name].arguments_as_text(TEMPLATES[name])] == [
        "deepseek_v3",
        "deepseek_v3_1",
    ]
    for filtered in ("c['function']['arguments']|tojson", "c.function.arguments | tojson", 'c["arguments"] |tojson'):
        template = TEMPLATES["deepseek_v3"].replace("c['function']['arguments']", filtered)
        assert not FAMILIES["deepseek_v3"].arguments_as_text(template)


def test_ids_of_calls():
    for name, family in FAMILIES.items():
        ids = {family.new_call_id() for _ in range(100)}
        assert len(ids) == 100
        for call_id in ids:
            if name == "mistral":
                assert len(call_id) == 9
                assert call_id.isascii()
                assert call_id.isalnum()
            else:
                assert call_id.startswith("call_")


def test_markers_are_what_the_vocabulary_may_have_as_control_tokens():
    assert {name: set(family.markers) for name, family in FAMILIES.items()} == {
        "hermes": {"<tool_call>", "</tool_call>"},
        "qwen3_coder": {"<tool_call>", "</tool_call>", "</function>", "</parameter>"},
        "llama3_json": {"<|python_tag|>"},
        "mistral": {"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"},
        "deepseek_v3": {
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
        },
        "deepseek_v3_1": set(FAMILIES["deepseek_v3"].markers),
        "glm_4_5": {"<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"},
        "seed_oss": {"<seed:tool_call>", "</seed:tool_call>", "</function>", "</parameter>"},
    }


def test_without_tools_llama_has_no_calls_but_marked_ones():
    text = '{"name": "f", "parameters": {}}'
    assert parsed("llama3_json", text, tools=[]) == (text, [])
    assert parsed("llama3_json", text, tools=[Tool("f")]) == ("", [("f", "{}")])
    assert parsed("llama3_json", "<|python_tag|>" + text, tools=[]) == ("", [("f", "{}")])
