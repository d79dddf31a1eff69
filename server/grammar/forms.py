r"""Grammars written down as the engine takes them: llguidance's JSON form, with the options that Upwell needs.

Called by whoever makes a ``GenerateRequest``. Every text sets ``no_forcing``, without which the engine could not
compile it (``engine/grammar.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

NO_FORCING = '%llguidance {"no_forcing": true}\n'

WHITESPACE = r"[ \t]{1,32}|\n[ \t]{0,32}"
r"""Between two tokens of JSON: blanks, or one line break and an indent.

Models write JSON on one line, or indented by two to four for each level; both fit, to a depth of eight levels of four.
Without a bound a small model that has begun an indent goes on with blanks until its answer has no room left. A second
line break, or a carriage return, is only ever the beginning of that.
"""
ANSWER = "@answer"
"""The grammar of an answer within that of calls or an answer."""
ESCAPES = 'nrbtf"\\'
r"""What may follow a backslash. Not ``u``: with it, the library takes ``"\u0061"`` for a name other than ``"a"``, and
lets an object have both. Only control characters need it."""


def of_schema(schema: dict[str, Any] | bool) -> str:
    """A grammar for JSON that is valid against a schema, which ``schema.checked_schema`` has given."""
    return _lark(f"start: {json_rule(schema)}\n")


def json_rule(schema: dict[str, Any] | bool) -> str:
    """The same as what a rule of lark stands for."""
    options = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES}
    return f"%json {json.dumps({'x-guidance': options, **(schema if isinstance(schema, dict) else {})})}"


def of_regex(regex: str) -> str:
    """A grammar for a text that matches a regular expression, whole."""
    return _lark(f"start: REGEX\nREGEX: /{between_slashes(regex)}/\n")


def of_choice(texts: Sequence[str]) -> str:
    """A grammar for one of some texts."""
    return _lark("start: TEXT\nTEXT: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts) + "\n")


def of_lark(grammar: str) -> str:
    """A client's own grammar."""
    return _lark(grammar)


def of_calls(grammar: str, answer: str) -> str:
    """A grammar for tool calls, which refers to another one by ``ANSWER`` if there is one."""
    others = [{"name": ANSWER[1:], **json.loads(answer)["grammars"][0]}] if answer else []
    return json.dumps({"grammars": [{"lark_grammar": NO_FORCING + grammar}, *others]})


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": NO_FORCING + text}]})


def between_slashes(regex: str) -> str:
    """A regular expression as lark takes it: slashes that are not escaped would end it, and line breaks too."""
    return re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", regex, flags=re.DOTALL).replace("\n", r"\n")
