"""What becomes of calls that break: content up to the name's end; then the arguments stay, and the rest is content."""

from __future__ import annotations

import pytest

from server.tools.families import parser
from server.tools.named_calls import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, TOOL_SEP
from tests.support.tool_texts import STYLES, TOOLS, every, parsed, written

BEFORE_THE_NAME = {
    "hermes": [
        "<tool_call>",
        "<tool_call>\n",
        "<tool_call></tool_call>",
        "a <tool_call> b </tool_call> c",
        "<tool_call>{}</tool_call>",
        '<tool_call>\n{"nome": "f", "arguments": {}}\n</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": null}</tool_call>',
        '<tool_call>{"name": "f\n"}</tool_call>',
        '<tool_call>{"name": "\\u0066"}</tool_call>',
        '<tool_call>{"name": "' + "f" * 257 + '"}</tool_call>',
        "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
        '<tool_call>{"arguments": {"a": 1}, "nome": "f"}</tool_call>',
        '<tool_call>{"arguments": {"a": 1',
        '<tool_call>{"arguments": {}, "arguments": {}, "name": "f"}</tool_call>',
        '<tool_call>{"function": {"name": "f"}}</tool_call>',
        '<tool_call>[{"nome": "f"}]</tool_call>',
        '<tool_call>[["name"]]</tool_call>',
        '<tool_call>{"type": func<tion, "name": "f"}</tool_call>',
        '{"name": "f", "arguments": {}}',
        "</tool_call> ",
    ],
    "llama3_json": [
        '{"name": "invented", "parameters": {}}',
        '{"name": "f',
        '{"name": "f\\n", "parameters": {}}',
        '{"nome": "f", "parameters": {}}',
        '{"kind": "x", "name": "f", "parameters": {}}',
        '[{"name": "invented"}, {"name": "other"}]',
        "<|python_tag|>print({'a': [1]})",
        '<|python_tag|>f.call(text="x")',
        "f(x) = {x | x > 0} and [1, 2]; {",
    ],
    "mistral": [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] and then",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]f[ARGS]",
        "[TOOL_CALLS]f[ARGS]text",
        '[TOOL_CALLS]f {"a": 1}',
        '[TOOL_CALLS]f[CALL_ID]{"a": 1}',
        '[TOOL_CALLS]f[CALL_ID]a b[ARGS]{"a": 1}',
        '[TOOL_CALLS][ARGS]{"a": 1}',
        '[TOOL_CALLS]a b[ARGS]{"a": 1}',
        '[TOOL_CALLS][1, {"name": "f"}]',
        "[TOOL_CALLS][]",
        '[{"name": "f", "arguments": {}}]',
    ],
    "deepseek_v3": [
        CALLS_BEGIN,
        CALLS_BEGIN + CALLS_END,
        f"{CALLS_BEGIN}f{TOOL_SEP}{{}}",
        f"{CALL_BEGIN}{TOOL_SEP}{{}}{CALL_END}",
        f"{CALL_BEGIN}function{TOOL_SEP}f\n```json\n[]\n```{CALL_END}",
        f"{CALL_BEGIN}other{TOOL_SEP}f\n```json\n{{}}\n```{CALL_END}",
        f"{CALL_BEGIN}function{TOOL_SEP}f\n```python\n{{}}\n```{CALL_END}",
        f"{CALL_BEGIN}function{TOOL_SEP}f g\n{{}}{CALL_END}",
        f"{CALL_BEGIN}f{CALL_END}",
        f"{CALL_END}\n{CALLS_END}",
    ],
    "qwen3_coder": [
        "<tool_call>\n",
        "<tool_call>\n<function=",
        "<tool_call>\n<function=f",
        "<tool_call>\n<function=\n>\n</function>\n</tool_call>",
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<tool_call>\n<function= >\n</function>\n</tool_call>",
        "<function=f</function>",
        "<function=" + "f" * 257 + "></function>",
        '<tool_call>{"name": "f"}</tool_call>',
        "<parameter=text>x</parameter></function></tool_call>",
    ],
    "glm_4_5": [
        "<tool_call>",
        "<tool_call>f",
        "<tool_call>f\n",
        "<tool_call>f g\n<arg_key>text</arg_key><arg_value>x</arg_value></tool_call>",
        "<tool_call></tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        "<tool_call><arg_key>text</arg_key><arg_value>x</arg_value></tool_call>",
        "<arg_key>text</arg_key>\n</tool_call>",
    ],
    "seed_oss": ["<tool_call><function f></function></tool_call>", "<seed:tool_call>f</seed:tool_call>"],
}

AFTER_THE_NAME = {
    "hermes": [
        # What is missing, by the tag that closes the block all the same.
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', "", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1</tool_call> b', "b", '{"a": 1'),
        ('<tool_call>{"name": "f"</tool_call>', "", ""),
        ('<tool_call>{"name": "f", "arguments": {"a": "b</tool_call>', "", '{"a": "b</tool_call>'),
        # What is too much.
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>', "}", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}} so</tool_call>.', "so.", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1]}</tool_call>', "]}", '{"a": 1'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1 2}}</tool_call>', "2}}", '{"a": 1 '),
        ('<tool_call>{"name": "f", "arguments": {"a" 1}}</tool_call>', "1}}", '{"a" '),
        ('<tool_call>{"name": "f", "arguments": }</tool_call>', ', "arguments": }', ""),
        ('<tool_call>{"name": "f", "name": "g"}</tool_call>', ', "name": "g"}', ""),
        ('<tool_call>{"name": "f", "arguments": {}, "parameters": {}}</tool_call>', ', "parameters": {}}', "{}"),
        ('<tool_call>{"name": "f", "arguments": {}; "id": 1}</tool_call>', '; "id": 1}', "{}"),
        ('<tool_call>{"name": "f", "arguments": {}, "id": <b>}</tool_call>', ', "id": <b>}', "{}"),
        ('<tool_call>{"name": "f", "arguments": {}, "id": "x', ', "id": "x', "{}"),
        # What can be understood.
        ('<tool_call>{"name": "f", "arguments": {"a": None,}, }</tool_call>', "", '{"a": None,}'),
        ('<tool_call>{"name": "f", "arguments": {a: [.5,]},"id": 1}</tool_call>', "", "{a: [.5,]}"),
        ('<tool_call>[{"name": "f", "arguments": {}}, 5]</tool_call>', ", 5]", "{}"),
        ('<tool_call>{"name": "f"}, {"nome": "g"}</tool_call>.', ', {"nome": "g"}.', "{}"),
        ('<tool_call><tool_call>{"name": "f"}</tool_call></tool_call>', "<tool_call></tool_call>", "{}"),
    ],
    "llama3_json": [
        ('{"name": "f", "parameters": {"text": "x"}', "", '{"text": "x"}'),
        ('{"name": "f", "parameters": {"text": "x"} and', "and", '{"text": "x"}'),
        ('{"name": "f", "note": [1], "parameters": {}}', "", "{}"),
        ('Call {"name": "f"}; {"name": "g"}; bye', 'Call ; {"name": "g"}; bye', "{}"),
        ('{"a": [{"name": "f"}]}', '{"a": }', "{}"),
    ],
    "mistral": [
        ('[TOOL_CALLS]f[ARGS]{"a": 1', "", '{"a": 1'),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}}, bye', "}, bye", '{"a": 1}'),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}} bye]', "bye]", "{}"),
    ],
    "deepseek_v3": [
        (f'{CALL_BEGIN}f{TOOL_SEP}{{"a": 1}} so{CALL_END}{CALLS_END} b', "so b", '{"a": 1}'),
        (f'{CALL_BEGIN}f{TOOL_SEP}{{"a": 1{CALL_END}{CALLS_END}', "", '{"a": 1'),
        (f"{CALL_BEGIN}f{TOOL_SEP}{{}}```{CALL_END}", "```", "{}"),
        (f"{CALL_BEGIN}f{TOOL_SEP}{{}}{CALL_END}{CALLS_END}{CALLS_END}", CALLS_END, "{}"),
    ],
    "qwen3_coder": [
        ("<function=f>so<parameter=text>x</parameter> be it</function>", "so be it", '{"text": "x"}'),
        ("<function=f><parameter=text>x</parameter><parameter=>y</function>", "<parameter=>y", '{"text": "x"}'),
        ("<function=f><parameter=text>x", "", '{"text": "x'),
        ("<function=f><parameter=text>x\n</para", "", '{"text": "x\\n</para'),
        ("<function=f><parameter=count>1", "", '{"count": 1'),
        ("<function=f><parameter=maybe>nul", "", '{"maybe": "nul'),
        ("<function=f><parameter=maybe>nullify", "", '{"maybe": "nullify'),
        ("<function=f><parameter=text>x</parameter>\n", "", '{"text": "x"'),
        ("<function=f>\n<parameter=te", "<parameter=te", ""),
        ("<function=f>", "", ""),
        ("<function=f></function></function>", "</function>", "{}"),
    ],
    "glm_4_5": [
        ("<tool_call>f<arg_key>k</arg_key>so<arg_value></tool_call>", "<arg_key>k</arg_key>so<arg_value>", "{}"),
        ("<tool_call>f<arg_key>text</arg_key><arg_value>x", "", '{"text": "x'),
        ("<tool_call>f<arg_key>text</arg_key><arg_value>x</arg_value><arg_key>", "<arg_key>", '{"text": "x"'),
    ],
}
SIZES = (1, 2, 3, 7, 10_000)


@pytest.mark.parametrize(
    ("family", "text"), [(family, text) for family, texts in BEFORE_THE_NAME.items() for text in texts]
)
def test_a_call_without_a_certain_name_is_content_as_it_stands(family, text):
    for size in SIZES:
        assert parsed(family, text, every(text, size)) == (text, [])


@pytest.mark.parametrize(
    ("family", "text", "content", "arguments"),
    [(family, *case) for family, cases in AFTER_THE_NAME.items() for case in cases],
)
def test_a_call_that_breaks_keeps_its_arguments(family, text, content, arguments):
    for size in SIZES:
        assert parsed(family, text, every(text, size)) == (content, [("f", arguments)])


@pytest.mark.parametrize("size", SIZES)
def test_reading_goes_on_where_a_call_broke(size):
    good = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    for bad in ("<tool_call>", '<tool_call>{"name":', "<tool_call>{", "<tool_call>[", "<tool_c", "<tool_call>\n{'a'}"):
        text = bad + good
        assert parsed("hermes", text, every(text, size)) == (bad, [("f", '{"a": 1}')])


@pytest.mark.parametrize("size", SIZES)
def test_whitespace_stays_between_texts_and_goes_at_the_ends(size):
    call = '<tool_call>{"name": "f"}</tool_call>'
    for text, content in (
        (f" \n{call}\n ", ""),
        (f"a \n{call}\n ", "a"),
        (f" \n{call}\n b ", "b "),
        (f" a\n{call} {call}\n\nb\n", " a\n\n\nb\n"),
        (f"a{call}b", "ab"),
        (f" {call} \u00a0{call}", "\u00a0"),
        ("\n a \n", "\n a \n"),
        ("\n<tool_call>\n", "\n<tool_call>\n"),
    ):
        assert parsed("hermes", text, every(text, size))[0] == content


@pytest.mark.parametrize(("family", "style"), [(name, style) for name in STYLES for style in range(STYLES[name])])
def test_what_is_cut_amid_calls_leaves_no_markup(family: str, style: int) -> None:
    """Once a call has begun, nothing of it or of the next is content, wherever the answer is cut."""
    text = written(family, [("f", {"text": "x"}), ("get_weather", {"count": 2})], style=style)
    for end in range(1, len(text) + 1):
        reading = parser(family, TOOLS)
        begun, rest = reading.feed(text[:end]), reading.finish(is_cut=True)
        if begun.calls:
            assert begun.content + rest.content == "", text[:end]
