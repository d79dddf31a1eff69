"""Grammars of clients in lark: what they may hold.

Called by ``answers``. The library's lark can do more than describe a text: ask for control tokens, set options, refer
to other grammars, and hold schemas of which the library leaves out what it does not know. Schemas in it become what
``checked_schema`` makes of them; all else of that kind is refused by name. What is left describes a text, and is for
the library to judge.
"""

from __future__ import annotations

import re
from json.decoder import JSONDecoder

from engine.errors import InvalidRequest
from server.grammar.forms import json_rule
from server.grammar.schema import checked_schema
from server.strict_json import parse_json

_TOKENS = re.compile(
    r"""
    (?P<plain> //[^\n]* | \#[^\n]* | "(?:\\.|[^"\\\n])*" | /(?:\\.|[^/\\])+/ | [\s(|)?*+:]+ )
  | (?P<directive> %(?:import|ignore|declare|override|regex)\b )
  | (?P<schema> %json\b\s* )
  | (?P<option> %\w* )
  | (?P<token> <[^>\n]*>? )
  | (?P<grammar> @[\w.]* )
  | (?P<attribute> \b(?:temperature|capture)\s*= )
  | .
    """,
    re.VERBOSE | re.DOTALL,
)
"""Comments, texts and patterns, in which the rest means nothing; and what is looked for outside of them."""
_PROBLEMS = {
    "option": "has the directive {}, which clients cannot use.",
    "token": "refers to the control token {}; a grammar here is of texts.",
    "grammar": "refers to another grammar, {}; there is none.",
    "attribute": "has the attribute {}, which is not kept.",
}


def checked_lark(grammar: str, param: str) -> str:
    """A client's grammar as the library is to be handed it.

    Args:
        grammar: in lark.
        param: where it was in the request.

    Raises:
        InvalidRequest: it holds what clients cannot use, or a schema that cannot be kept.
    """
    parts: list[str] = []
    at = 0
    while match := _TOKENS.match(grammar, at):
        at = match.end()
        kind = match.lastgroup
        if kind == "schema":
            schema, at = _schema(grammar, at, param)
            parts.append(schema)
        elif kind in _PROBLEMS:
            raise InvalidRequest(
                f"{param} {_PROBLEMS[kind].format(match[0][:64].rstrip(' ='))}", param=param, code="invalid_grammar"
            )
        else:
            parts.append(match[0])
    return "".join(parts)


def _schema(grammar: str, start: int, param: str) -> tuple[str, int]:
    """The schema that begins there, as a rule; and where it ends."""
    try:
        _, end = _DECODER.raw_decode(grammar, start)
        schema = parse_json(grammar[start:end].encode())
    except (ValueError, RecursionError, InvalidRequest):
        raise InvalidRequest(
            f"{param} has a %json without valid JSON after it.", param=param, code="invalid_grammar"
        ) from None
    return json_rule(checked_schema(schema, f"{param}.%json")), end


_DECODER = JSONDecoder()
