"""The grammar library's own limits, the same where grammars are tried out and where answers are held to them.

They bound what the library has in mind at once, and end a grammar that would have more; neither time nor all memory.
"""

from __future__ import annotations

from typing import Any

ROW_ITEMS = 50_000
"""Ways in which an answer may go on: as many as an object of some 12,000 optional properties has. By itself the library
has 2,000, which are 500 properties."""
LEXER_STATES = 100_000
"""Of one answer, of some 1 to 2 kB each."""


def limits() -> Any:
    """As ``LLMatcher`` takes them."""
    from llguidance import LLParserLimits  # noqa: PLC0415

    return LLParserLimits(verbose_errors=False, max_items_in_row=ROW_ITEMS, max_lexer_states=LEXER_STATES)
