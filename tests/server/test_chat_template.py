"""Chat templates: rendered as transformers renders them, and ended when they would not end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from engine.errors import InvalidRequest, MalformedModel
from server.chat_template import MAX_MESSAGE_CHARS, ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

TOOLS = """
{%- if tools %}
<|im_start|>system
Tools:
{% for tool in tools %}
{{ tool | tojson }}
{{ tool.function | tojson(indent=2) }}
{% endfor %}
<|im_end|>
{% endif %}
{%- set state = namespace(turn=0, last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if message.role == 'user' and state.last < 0 %}{% set state.last = index %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- set state.turn = state.turn + 1 %}
<|im_start|>{{ message.role }} {{ state.turn }}{{ ' last' if loop.index0 == state.last else '' }}
{{ content | trim }}
    {%- for call in message.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
    {%- endfor %}
<|im_end|>
{% endfor %}
"""

HEADERS = """
{{- bos_token }}
{%- macro header(role) %}<|start_header|>{{ role | upper }}<|end_header|>{% endmacro %}
{%- set first = messages[0].content.strip() if messages and messages[0].role == 'system' else 'none' %}
{{ header('system') }}{{ first }} {{ strftime_now('%Y') | length }} {{ documents is none }} {{ tools is none }}
{%- for message in (messages[1:] if messages and messages[0].role == 'system' else messages) %}
    {%- if message.content is not string %}
        {%- for part in message.content if part.type == 'text' %}{{ header(message.role) ~ part.text }}{% endfor %}
    {%- else %}
        {{- header(message.role) ~ '\\n' ~ message.content ~ eos_token }}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}{{ header('assistant') }}{% endif %}
{{ missing_token }}|{{ dict(a=1, b=[2, none, true]) | tojson(separators=(',', ':'), sort_keys=True) }}
"""

STRICT = """
{{- bos_token }}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate, but number ' ~ loop.index ~ ' is ' ~ message.role) }}
{%- endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{% generation %}{{ ' ' + message['content'].strip() + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}
"""

CONTROL = """
{% for message in messages %}
  {% if loop.index > 3 %}{% break %}{% endif %}
  {% if not message.content %}{% continue %}{% endif %}
    {{ loop.index }}/{{ loop.length }}: {{ message.content | replace('a', 'AA') | indent(2) }}
    {{ '%s-%03d' % ('x', 7) }}
  {{ '{}!{}'.format(message.role, 1) }} {{ [message.role, 'b'] | join(', ') }} {{ 'ab' * 2 }} {{ 2 ** 3 }}
  {% set text %}[{{ message.content[:3] }}{{ message.content[-2:] }}]{% endset %}
  {{ text }} {{ message.content | tojson }} {{ message | tojson(ensure_ascii=True) }} {{ '<' | e }} {{ [1, 2] + [3] }}
  {% for part in message.content.split(' ') recursive %}{{ part | title }};{% endfor %}
  {{ message.items() | map('first') | list }} {{ [3, 1, 2] | sort | batch(2) | list }}
  {{ messages | selectattr('role') | list | length }}
{% endfor %}
"""

TEMPLATES = {"chatml": CHATML, "tools": TOOLS, "headers": HEADERS, "strict": STRICT, "control": CONTROL}

TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(list(" \n\t<>&\"'{}%a|\\"))), max_size=12)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "<é>", "n": [1, 2.5, None]}}}
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT}),
    st.fixed_dictionaries({"role": st.just("user"), "content": TEXT.map(lambda t: [{"type": "text", "text": t}])}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": st.just([CALL])}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT.map(lambda t: f"<think>{t}</think>\n{t}")}),
    st.fixed_dictionaries({"role": TEXT}),
)
TURNS = st.lists(TEXT, max_size=5).map(
    lambda texts: [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
)
CHAT = st.one_of(TURNS, st.lists(MESSAGE, max_size=5))
TOOL = {"type": "function", "function": {"name": "f", "description": "<b> & 'ü'", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_as_transformers_does(name):
    template = ChatTemplate(TEMPLATES[name], SPECIAL)

    @settings(max_examples=150)
    @given(CHAT, st.booleans(), st.sampled_from([None, [TOOL]]))
    def check(messages, add_generation_prompt, tools):
        try:
            (expected,), _ = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=TEMPLATES[name],
                add_generation_prompt=add_generation_prompt,
                **SPECIAL,
            )
        except Exception:
            with pytest.raises(InvalidRequest):
                template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        else:
            got = template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
            assert got == expected

    check()


def test_an_ordinary_conversation_reads_as_expected():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert ChatTemplate(CHATML, {}).render(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_variable_reaches_the_template():
    template = ChatTemplate("{{ 'think' if enable_thinking else 'no' }}{{ bos_token }}", SPECIAL)
    assert template.render([], enable_thinking=True) == "think<s>"
    assert template.render([]) == "no<s>"


def test_the_templates_own_refusal_reaches_the_client():
    with pytest.raises(InvalidRequest, match="Roles must alternate, but number 1 is assistant") as caught:
        ChatTemplate(STRICT, SPECIAL).render([{"role": "assistant", "content": "x"}])
    assert caught.value.param == "messages"


def test_a_refusal_is_short_and_on_one_line():
    template = ChatTemplate("{{ raise_exception(('long\n\n' * 9999) ~ messages) }}", {})
    with pytest.raises(InvalidRequest) as caught:
        template.render([])
    assert len(str(caught.value)) < MAX_MESSAGE_CHARS + 100
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, 3, 2.5, True, {}, [], [None], ["x"], {"type": "text"}], ids=repr)
@pytest.mark.parametrize("name", TEMPLATES)
def test_content_of_the_wrong_kind_is_the_callers_error_at_most(name, content):
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    with suppress(InvalidRequest):
        assert isinstance(template.render([{"role": "user", "content": content}]), str)


def test_an_error_in_a_template_says_nothing_of_the_prompt():
    template = ChatTemplate("{{ messages[0].content | int(default=none) + 1 }}{{ {}[messages[0].content].x }}", {})
    with pytest.raises(InvalidRequest, match=r"TypeError|UndefinedError") as caught:
        template.render([{"role": "user", "content": "SECRET"}])
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ 'a' ",
        "{% endfor %}",
        "{{ x | no_such_filter }}",
        "{% generation %}",
        "{% no_such_tag %}",
        "{{ " + "(" * 5000 + " }}",
        "{% if a %}" * 300 + "{% endif %}" * 300,
        "x" * ((1 << 20) + 1),
    ],
    ids=lambda source: source[:20],
)
def test_a_source_that_is_no_template_is_refused_at_load(source):
    with pytest.raises(MalformedModel, match="chat template") as caught:
        ChatTemplate(source, {})
    assert len(str(caught.value)) < MAX_MESSAGE_CHARS + 100


def test_threads_share_a_template():
    template = ChatTemplate(CHATML, SPECIAL)
    chats = [[{"role": "user", "content": str(i)}] * (i + 1) for i in range(30)]
    alone = [template.render(messages) for messages in chats]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(template.render, chats)) == alone


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": "x"}]
    template = ChatTemplate("{% set _ = messages[0].update({'role': 'y'}) %}", {})
    with pytest.raises(InvalidRequest):
        template.render(messages)
    assert messages == [{"role": "user", "content": "x"}]
