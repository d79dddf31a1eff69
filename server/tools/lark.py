"""A grammar in the making, in the lark of the grammar library: terminals and rules, each written down once.

Used by whoever writes the grammar of calls. A marker that is a control token is matched by its number, since the
library keeps those apart from text; whether it is one is known here alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.grammar.forms import json_rule

ANYTHING = "/(?s:.*)/"


class Lark:
    """Rules and terminals under made-up names.

    Args:
        token_ids: the markers that are single control tokens, with their numbers.
    """

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self._token_ids = token_ids
        self._names: dict[str, str] = {}

    def is_token(self, marker: str) -> bool:
        """Whether a marker is a control token."""
        return marker in self._token_ids

    def marker(self, marker: str) -> str:
        """What matches a marker."""
        return f"<[{self._token_ids[marker]}]>" if self.is_token(marker) else quoted(marker)

    def terminal(self, expression: str) -> str:
        """The name of a terminal: what it matches has no other terminal within."""
        return self._names.setdefault(expression, f"T{len(self._names)}")

    def rule(self, expression: str) -> str:
        """The name of a rule."""
        return self._names.setdefault(expression, f"r{len(self._names)}")

    def json(self, schema: dict[str, Any] | bool) -> str:
        """The name of a rule for JSON that is valid against a schema, which ``checked_schema`` has given."""
        return self.rule(json_rule(schema))

    def text(self, start: str) -> str:
        """The grammar, beginning with a rule."""
        lines = [f"start: {start}", *(f"{name}: {expression}" for expression, name in self._names.items())]
        return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """What matches a text."""
    return json.dumps(text, ensure_ascii=False)


def one_of(expressions: list[str]) -> str:
    """What matches one of several."""
    return "(" + " | ".join(dict.fromkeys(expressions)) + ")"


def without(*texts: str) -> str:
    """A terminal's part for any text in which none of some texts is."""
    return f"({ANYTHING} & ~({ANYTHING} {one_of(list(map(quoted, texts)))} {ANYTHING}))"


def up_to(text: str, *others: str) -> str:
    """A terminal for any text up to the first time that ``text`` comes, and with it; before that none of the others."""
    return f"{without(text, *others)} {quoted(text)}"
