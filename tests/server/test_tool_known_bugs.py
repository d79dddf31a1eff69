"""What went wrong with tool calls in other servers, as their users reported it. Each for pieces of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.tools.families import FAMILIES, parser
from server.tools.named_calls import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, TOOL_SEP
from tests.support.tool_texts import STYLES, TOOLS, added_up, deltas, every, parsed, written

SIZES = pytest.mark.parametrize("size", [1, 2, 5, 17, 10_000])
EACH = pytest.mark.parametrize("family", FAMILIES)
IN_TAGS = pytest.mark.parametrize("family", ["qwen3_coder", "glm_4_5", "seed_oss"])


def arguments_of(family, text, size):
    """Of the only call of an answer that has nothing else."""
    content, ((name, arguments),) = parsed(family, text, every(text, size))
    assert (content, name) == ("", "f")
    return json.loads(arguments)


@EACH
@SIZES
def test_names_and_arguments_are_not_doubled_with_several_calls(family, size):
    """Rapid-MLX#181: "readread"."""
    calls = [("f", {"text": "one"}), ("f", {"text": "one"}), ("get_weather", {"text": "two"})]
    text = written(family, calls)
    assert [(name, json.loads(got)) for name, got in parsed(family, text, every(text, size))[1]] == calls


@EACH
@SIZES
def test_the_last_delta_is_not_lost(family, size):
    """vLLM #10781, #50461. A call that the token limit cuts is not closed by guess either."""
    text = written(family, [("f", {"text": "some text"})])
    cut = text[: text.index(" text") + 3]
    ((_, arguments),) = parsed(family, cut, every(cut, size))[1]
    assert arguments.endswith('"some te')


@pytest.mark.parametrize("separator", [";", "; ", "\n", " ", "", ", ", ",\n", ";\n\n"])
@SIZES
def test_llamas_calls_are_separated_in_any_way(separator, size):
    """vLLM #49923 and #51577, where pieces of more than one token broke 202 calls of 252."""
    text = separator.join(written("llama3_json", [call]) for call in [("f", {"text": "; {"}), ("get_weather", {})])
    expected = ("", [("f", '{"text": "; {"}'), ("get_weather", "{}")])
    assert parsed("llama3_json", text, every(text, size)) == expected


@EACH
@SIZES
def test_prose_beside_calls_drops_neither(family, size):
    """dynamo#9536, vLLM #49923."""
    call = written(family, [("f", {"text": "x"})])
    text = f"I will look.\n\n{call}\nand once more: {call} That is all."
    content, calls = parsed(family, text, every(text, size))
    assert content.split() == ["I", "will", "look.", "and", "once", "more:", "That", "is", "all."]
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("f", {"text": "x"})] * 2


@EACH
def test_calls_without_arguments_are_streamed_with_an_empty_object(family):
    """vLLM #44326, #41654, SGLang #37921, TensorRT-LLM #17575: dropped, or "" or null for the arguments."""
    for style in range(STYLES[family]):
        text = written(family, [("f", {})], style=style)
        for size in (1, 3, len(text)):
            assert arguments_of(family, text, size) == {}


@pytest.mark.parametrize("value", ["null", '""', "{}", '" "', '"{}"'])
@SIZES
def test_what_stands_for_no_arguments_is_an_empty_object(value, size):
    assert arguments_of("hermes", f'<tool_call>{{"name": "f", "arguments": {value}}}</tool_call>', size) == {}
    assert arguments_of("hermes", f'<tool_call>{{"arguments": {value}, "name": "f"}}</tool_call>', size) == {}


@SIZES
def test_the_argument_marker_is_not_part_of_the_arguments(size):
    """Rapid-MLX#579."""
    for between in ("[ARGS]", "[CALL_ID]a1B2c3D4e[ARGS]", " [ARGS] ", ""):
        assert arguments_of("mistral", f'[TOOL_CALLS]f{between}{{"text": "x"}}', size) == {"text": "x"}


@SIZES
@pytest.mark.parametrize("value", ["12", "-1.5e3", "true", '"\\u00e9\\n\\""', "[1, [2, {}]]", "null"])
def test_mistrals_values_of_any_type_come_in_pieces(value, size):
    """vLLM #20028, #30651, #13622: an exception at each token, whole numbers lost."""
    expected = {"a": json.loads(value)}
    assert arguments_of("mistral", f'[TOOL_CALLS] [{{"name": "f", "arguments": {{"a": {value}}}}}]', size) == expected
    assert arguments_of("mistral", f'[TOOL_CALLS]f[ARGS]{{"a": {value}}}', size) == expected


@SIZES
def test_parallel_calls_of_mistral_are_all_there(size):
    """mlx-lm#1448: dropped by a greedy pattern."""
    for text in (
        '[TOOL_CALLS]f[ARGS]{"a": "}"}[TOOL_CALLS]get_weather[ARGS]{"b": "[TOOL_CALLS]"}[TOOL_CALLS]f[ARGS]{}',
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": "}"}}, '
        '{"name": "get_weather", "arguments": {"b": "[TOOL_CALLS]"}}, {"name": "f", "arguments": {}}]',
    ):
        expected = [("f", '{"a": "}"}'), ("get_weather", '{"b": "[TOOL_CALLS]"}'), ("f", "{}")]
        assert parsed("mistral", text, every(text, size)) == ("", expected)


@IN_TAGS
@SIZES
def test_types_are_the_schemas_in_a_stream_too(family, size):
    """vLLM #23324; llama.cpp #26833, where an object under anyOf came as a string."""
    call = {"count": 3, "ratio": 0.5, "flag": False, "deep": {"a": [1]}, "list": ["x"], "either": {"b": None}}
    assert arguments_of(family, written(family, [("f", call | {"text": "3", "maybe": "x"})]), size) == {
        **call,
        "text": "3",
        "maybe": "x",
    }
    assert arguments_of(family, written(family, [("f", {"either": None, "maybe": None})]), size) == {
        "either": None,
        "maybe": None,
    }


@IN_TAGS
@SIZES
def test_a_value_of_the_wrong_type_is_a_string_and_the_call_is_kept(family, size):
    """mlx-lm#1330: an exception, and the call was gone."""
    for value in ("three", "3 or 4", "0x10", "NaN", "1_000", "9" * 5000, "[" * 5000, ""):
        text = written(family, [("f", {"count": value, "text": "y"})])
        assert arguments_of(family, text, size) == {"count": value, "text": "y"}


@IN_TAGS
def test_no_value_is_ever_evaluated(family, tmp_path: Path):
    """CVE-2025-9141."""
    target = tmp_path / "touched"
    for name in ("count", "deep", "list", "flag", "maybe", "either", "text"):
        value = f"__import__('pathlib').Path({str(target)!r}).touch()"
        assert arguments_of(family, written(family, [("f", {name: value})]), 3) == {name: value}
    assert not target.exists()


@IN_TAGS
def test_a_long_string_is_not_kept_until_its_end_tag(family):
    """SGLang #27005. Also one that may be null."""
    for name in ("text", "maybe"):
        text = written(family, [("f", {name: "a word" * 100})])
        ((_, arguments),) = added_up(deltas(family, text[: text.rindex("a word")]))[1]
        assert arguments.count("a word") == 99


@EACH
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_borders_that_a_held_back_stop_string_shifts_change_nothing(family, size):
    """vLLM #34101: pieces that begin and end where tokens do not."""
    text = "a " + written(family, [("f", {"text": "é😀 b", "count": 1}), ("f", {})]) + " c"
    whole = parsed(family, text)
    for first in range(1, size + 1):
        assert parsed(family, text, [first, *range(first + size, len(text), size)]) == whole


@SIZES
def test_seed_oss_calls_come_in_a_stream(size):
    """vLLM #26573: none did."""
    text = "<seed:tool_call>\n<function=f>\n<parameter=text>x\ny</parameter>\n</function>\n</seed:tool_call>"
    assert arguments_of("seed_oss", text, size) == {"text": "x\ny"}


@SIZES
def test_newlines_around_a_value_are_the_formats_where_it_writes_them(size):
    for family, written_value, value in (
        ("qwen3_coder", "\nx\n", "x"),
        ("qwen3_coder", "\n\nx\n\n", "\nx\n"),
        ("qwen3_coder", "x\n", "x"),
        ("qwen3_coder", "\n", ""),
        ("qwen3_coder", "\n\n", ""),
        ("seed_oss", "x\n", "x\n"),
        ("seed_oss", "\nx\n", "x"),
        ("seed_oss", "\nx", "x"),
    ):
        text = f"<function=f><parameter=text>{written_value}</parameter></function>"
        assert arguments_of(family, text, size) == {"text": value}
    text = "<tool_call>f<arg_key>text</arg_key><arg_value>\nx\n</arg_value></tool_call>"
    assert arguments_of("glm_4_5", text, size) == {"text": "\nx\n"}


@EACH
@SIZES
def test_markup_in_a_string_is_text(family, size):
    """Calls about calls: only what ends a value in tags cannot be in it."""
    markup = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", CALLS_BEGIN, CALL_END, "<|python_tag|>", '{"name": "f"}']
    call = ("f", {"text": " ".join(markup), "count": 1})
    assert arguments_of(family, written(family, [call]), size) == call[1]


@SIZES
def test_deepseek_calls_need_neither_fence_nor_outer_markers(size):
    for text in (
        f'{CALL_BEGIN}f{TOOL_SEP}{{"text": "x"}}{CALL_END}',
        f'{CALLS_BEGIN}\n{CALL_BEGIN}function{TOOL_SEP}f\n{{"text": "x"}}\n{CALL_END}\n{CALLS_END}\n',
        f'{CALLS_BEGIN}{CALL_BEGIN}f{TOOL_SEP}```json\n{{"text": "x"}}\n```{CALL_END}',
        f'{CALLS_BEGIN}{CALL_BEGIN}f{TOOL_SEP}\n```\n{{"text": "x"}}```',
    ):
        assert arguments_of("deepseek_v3", text, size) == {"text": "x"}
    assert arguments_of("deepseek_v3_1", f"{CALL_BEGIN}f{TOOL_SEP}{CALL_END}", size) == {}


@SIZES
def test_qwen3_coder_may_forget_tags(size):
    """It often writes no ``<tool_call>``; where ends are missing, the next tag tells."""
    value = "<parameter=text>\nx\n</parameter>"
    for text in (
        f"<function=f>\n{value}\n</function>\n</tool_call>",
        f"<tool_call><function=f>{value}</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=text>\nx\n</function>\n</tool_call>",
        f"<tool_call>\n<function=f>{value}</function>",
    ):
        assert arguments_of("qwen3_coder", text, size) == {"text": "x"}
    two = "<function=f>\n<parameter=text>\nx\n<parameter=count>\n2\n</parameter>\n</function>"
    assert arguments_of("qwen3_coder", two, size) == {"text": "x", "count": 2}
    text = f"<tool_call><function=f>{value}<tool_call><function=get_weather></function></tool_call>"
    assert parsed("qwen3_coder", text, every(text, size)) == ("", [("f", '{"text": "x"}'), ("get_weather", "{}")])


@SIZES
def test_strings_written_by_hand_are_made_json(size):
    """Newlines, and backslashes that escape nothing, as in code and patterns."""
    text = '<tool_call>{"name": "f", "arguments": {"text": "a\nb\t\\d+ \\\n \\u00e9\\\\"}}</tool_call>'
    assert arguments_of("hermes", text, size) == {"text": "a\nb\t\\d+ \\\n é\\"}


@SIZES
def test_arguments_written_as_a_string_come_as_the_object(size):
    text = json.dumps({"name": "f", "arguments": json.dumps({"text": "é\n😀"})})
    assert arguments_of("hermes", f"<tool_call>{text}</tool_call>", size) == {"text": "é\n😀"}
    for other in ('"x"', '"\\ud800{"', '"{\\"a\\": 1} and"', "[1]", "12", "true", '"{"'):
        text = f'<tool_call>{{"name": "f", "arguments": {other}}}</tool_call>'
        assert parsed("hermes", text, every(text, size)) == ("", [("f", other)])


@EACH
def test_tool_parsers_take_a_million_characters_of_markup(family):
    """vLLM #55473: 520 KB of it held the server for 11.6 s. Here: that nothing of it waits."""
    opener = parser(family, TOOLS)._syntax.openers[0]
    text = opener * (1_000_000 // len(opener))
    assert parsed(family, text, every(text, 1000)) == (text, [])
