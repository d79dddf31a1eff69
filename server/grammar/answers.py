"""From the form that a client wants of its answer to the grammar that the engine holds it to."""

from __future__ import annotations

from server.generation import off_loop_if_long
from server.grammar.blame import blame, blame_text
from server.grammar.client_lark import checked_lark
from server.grammar.forms import of_choice, of_lark, of_regex, of_schema
from server.grammar.schema import checked_schema
from server.grammar.trial import GrammarTrial
from server.schemas import ResponseFormat

SCHEMA = "response_format.json_schema.schema"


async def grammar_of(answer_format: ResponseFormat | None, trial: GrammarTrial, num_chars: int) -> str:
    """The grammar of an answer, tried out; empty where it may say anything.

    Args:
        answer_format: what the client wants.
        trial: where it is tried out.
        num_chars: about how long it is, or more; what is long is worked on off the event loop.

    Raises:
        InvalidRequest: it cannot be kept to, with the field or keyword that is to blame.
    """
    if answer_format is None or answer_format.type == "text":
        return ""
    param, grammar = await off_loop_if_long(num_chars, lambda: _written(answer_format))
    said, schema = await trial.verdict(grammar, param), answer_format.json_schema
    if said and schema is not None:
        raise await off_loop_if_long(num_chars, lambda: blame(said, schema.schema, param))
    if said:
        raise blame_text(said, param)
    return grammar


def _written(answer_format: ResponseFormat) -> tuple[str, str]:
    if answer_format.json_schema is not None:
        return SCHEMA, of_schema(checked_schema(answer_format.json_schema.schema, SCHEMA))
    if answer_format.regex is not None:
        return "response_format.regex", of_regex(answer_format.regex)
    if answer_format.choice is not None:
        return "response_format.choice", of_choice(answer_format.choice)
    if answer_format.lark is not None:
        return "response_format.lark", of_lark(checked_lark(answer_format.lark, "response_format.lark"))
    return "response_format", of_schema({"type": "object"})
