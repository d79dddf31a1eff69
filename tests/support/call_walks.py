"""Answers made of tokens chosen at random among those that a grammar of calls allows, and what their parser reads."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.grammar import Grammars
from server.grammar.places import Path
from server.grammar.schema import checked_schema
from server.tools.families import FAMILIES, parser
from server.tools.grammar import AllowedTool, CallRules
from server.tools.named_calls import CALL_END, CALLS_END
from server.tools.parts import Tool
from tests.support.json_judges import CHECKER, Judge, as_judges_know_it, decimal, exact
from tests.support.tool_texts import added_up

EOS = 256
MARKERS = tuple(dict.fromkeys(marker for family in FAMILIES.values() for marker in family.markers))
TOKEN_IDS = {marker: EOS + 1 + i for i, marker in enumerate(MARKERS)}
TOKENS = [bytes([byte]) for byte in range(256)] + [b"<eos>"] + [marker.encode() for marker in MARKERS]
FORMS = (
    "hermes", "qwen3_coder", "llama3_json", "mistral", "mistral:id", "mistral:args", "deepseek_v3", "deepseek_v3_1",
    "glm_4_5", "seed_oss",
)  # fmt: skip
IN_TAGS = {
    "qwen3_coder": ("\n</parameter>", "</function>", "\n</tool_call>"),
    "seed_oss": ("</parameter>", "</function>", "\n</seed:tool_call>"),
    "glm_4_5": ("</arg_value>", "</tool_call>"),
}
IN_JSON = ('"', "}", "]", ",", "</tool_call>", CALL_END, CALLS_END, "\n")
"""What ends something, in the order in which it is tried."""
FILLERS = ("0", "1", "2", "4", "-", "a", "b", "true", "null", ":", "{", "[", *MARKERS)
FREE_TOKENS, MAX_TOKENS = 40, 1500


class MarkedBytes:
    """A vocabulary of all bytes, and of all families' markers as control tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        return TOKENS[token_id]

    def is_special(self, token_id: int) -> bool:
        return token_id >= EOS


def new_grammars() -> Grammars:
    return Grammars(MarkedBytes(), len(TOKENS), [EOS])


def ids_of(text: str, token_ids: Mapping[str, int]) -> list[int]:
    """A text by its markers, where they are tokens, and its bytes."""
    if not token_ids:
        return list(text.encode())
    pieces = re.split("(" + "|".join(map(re.escape, token_ids)) + ")", text)
    return [token_id for piece in pieces for token_id in ([token_ids[piece]] if piece in token_ids else piece.encode())]


def walked(
    grammars: Grammars,
    form: str,
    text: str,
    rng: random.Random,
    token_ids: Mapping[str, int],
    hints: Sequence[str] = (),
    begin: str | None = None,
    at_once: bool = False,
) -> str | None:
    """An answer; None if it does not come to an end.

    Args:
        hints: texts that are tried now and then, and are allowed or not.
        begin: comes after a few tokens, if it is allowed.
        at_once: it comes first.
    """
    grammar = grammars.open(text).result()
    out = b""
    num_before = 0 if at_once else rng.randrange(12)
    for step in range(MAX_TOKENS):
        allowed = grammar.allowed(len(TOKENS))
        assert allowed is not None, (grammar.failure, out)
        ids = [token_id for token_id in range(len(TOKENS)) if token_id in allowed]
        assert ids, out
        is_begin = begin is not None and step == num_before
        if EOS in ids and not (begin is not None and step <= num_before) and (ids == [EOS] or rng.random() < 0.5):
            return out.decode()
        choices = [token_id for token_id in ids if token_id != EOS] or [EOS]
        if choices == [EOS]:
            return out.decode()
        others = list(hints) if step < FREE_TOKENS else list(FILLERS)
        rng.shuffle(others)
        tried = [begin] if is_begin else others if step < FREE_TOKENS else [*IN_TAGS.get(form, ()), *IN_JSON, *others]
        chosen = None
        if is_begin or step >= FREE_TOKENS or rng.random() < 0.4:
            for hint in tried:
                candidate = ids_of(hint, token_ids)
                if grammar._matcher.validate_tokens(candidate) == len(candidate):
                    chosen = candidate
                    break
        for token_id in chosen or [rng.choice(choices)]:
            grammar.accept(token_id)
            assert grammar.failure is None, (grammar.failure, out)
            out += TOKENS[token_id]
        if grammar.is_complete:
            return out.decode()
    return None


def tool(name: str, schema: Any, *, is_held: bool = True, place: int = 0) -> AllowedTool:
    path = Path(None, f"tools[{place}].function.parameters")
    whole = {"type": "object", **schema}
    return AllowedTool(name, checked_schema(whole, str(path)) if is_held else None, schema, path)


def read(
    form: str, text: str, tools: Sequence[AllowedTool], *, only_first: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls, as the family's parser has them."""
    known = [Tool(each.name, each.parameters) for each in tools]
    reader = parser(form.partition(":")[0], known, only_first=only_first)
    return added_up([reader.feed(text), reader.finish()])


def problem(form: str, text: str, tools: Sequence[AllowedTool], rules: CallRules, *, only_first: bool = False) -> str:
    """What is wrong with an answer; empty if nothing is."""
    content, calls = read(form, text, tools, only_first=only_first)
    if not calls:
        return f"no call: {content!r}" if rules.is_required else ""
    if rules.is_required and content:
        return f"content: {content!r}"
    if rules.is_single and len(calls) > 1:
        return f"several calls: {calls}"
    by_name = {each.name: each for each in rules.tools}
    for name, arguments in calls:
        if name not in by_name:
            return f"called {name}"
        try:
            value = json.loads(arguments)
        except ValueError:
            return f"no JSON: {arguments!r}"
        if not isinstance(value, dict):
            return f"no object: {arguments!r}"
        if by_name[name].schema is not None:
            schema = exact(as_judges_know_it({"type": "object", **by_name[name].parameters}))
            exact_value = json.loads(arguments, parse_float=decimal)
            if error := next(Judge(schema, format_checker=CHECKER).iter_errors(exact_value), None):
                return f"{error.message}: {arguments!r}"
    return ""
