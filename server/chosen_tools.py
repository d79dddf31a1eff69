"""From the tools of a request, and the choice among them, to the grammar that the engine holds the answer to.

Called by the route. A grammar is needed where calls are not the model's to make as it likes: ``tool_choice`` asks for
one or names some, ``parallel_tool_calls`` is false, a tool is ``strict``, or an answer without a call has a form. Where
nothing of that is asked for, whatever the model writes is read as it comes, and schemas are only told to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.errors import InvalidRequest
from server.chat_profile import ChatProfile
from server.chat_schemas import ChatRequest, Tool, ToolChoice
from server.generation import off_loop_if_long
from server.grammar.answers import grammar_of
from server.grammar.blame import blame
from server.grammar.keywords import REMARKS
from server.grammar.places import Path, refused
from server.grammar.schema import checked_schema
from server.grammar.trial import GrammarTrial
from server.tools.grammar import AllowedTool, CallRules, grammar_of_calls

_PLAIN_WORDS = REMARKS | {"type", "properties", "required", "additionalProperties"}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
"""Of a tool without parameters."""


async def grammar_of_request(
    request: ChatRequest, profile: ChatProfile, marker_ids: Mapping[str, int], trial: GrammarTrial, num_chars: int
) -> str:
    """The grammar of an answer, tried out; empty where it may say anything.

    Args:
        request: sound, as ``validation`` has it.
        profile: of the model.
        marker_ids: the markers of calls that are single control tokens of the vocabulary.
        trial: where grammars are tried out.
        num_chars: about how much text the request has.

    Raises:
        InvalidRequest: what cannot be kept, by the path of the field or keyword.
    """
    is_required = must_call(request)
    answer = "" if is_required else await grammar_of(request.response_format, trial, num_chars)
    if not request.tools or request.tool_choice == "none" or not _needs_grammar(request, answer):
        return answer
    if profile.family_name is None:
        _refuse_unless_idle(request)
        return answer
    form = profile.call_form
    rules = await off_loop_if_long(num_chars, lambda: _rules(request, answer))
    grammar = await off_loop_if_long(num_chars, lambda: grammar_of_calls(form, rules, marker_ids))
    # The trial has a vocabulary of its own, without these tokens.
    plain = grammar if not marker_ids else await off_loop_if_long(num_chars, lambda: grammar_of_calls(form, rules, {}))
    if said := await trial.verdict(plain, "tools"):
        raise await _blamed(said, form, rules, trial)
    return grammar


def must_call(request: ChatRequest) -> bool:
    """Whether an answer has to call a tool."""
    choice = request.tool_choice
    if isinstance(choice, ToolChoice):
        return choice.allowed_tools is None or choice.allowed_tools.mode == "required"
    return choice == "required"


def names_one(request: ChatRequest) -> bool:
    """Whether the request names the one function to call."""
    return isinstance(request.tool_choice, ToolChoice) and request.tool_choice.function is not None


def _allowed(request: ChatRequest) -> list[tuple[int, Tool]]:
    """The tools that may be called, with their places."""
    choice, tools = request.tool_choice, list(enumerate(request.tools or ()))
    if not isinstance(choice, ToolChoice):
        return tools
    named = [choice.function] if choice.function else []
    named += [tool.function for tool in choice.allowed_tools.tools] if choice.allowed_tools else []
    names = {function.name for function in named}
    return [(i, tool) for i, tool in tools if tool.function.name in names]


def _needs_grammar(request: ChatRequest, answer: str) -> bool:
    is_strict = any(tool.function.strict for _, tool in _allowed(request))
    is_chosen = request.tool_choice not in (None, "auto")
    return is_chosen or is_strict or request.parallel_tool_calls is False or bool(answer)


def _refuse_unless_idle(request: ChatRequest) -> None:
    """Of a model whose calls are not known none are found; what asks for some cannot be honoured."""
    param = next((f"tools[{i}].function.strict" for i, tool in _allowed(request) if tool.function.strict), None)
    if request.tool_choice not in (None, "auto"):
        param = "tool_choice"
    if param is not None:
        raise InvalidRequest(
            f"{param} cannot be honoured: how this model writes calls is not known; see --tool-call-parser.",
            param=param,
            code="unsupported_parameter",
        )


def _rules(request: ChatRequest, answer: str) -> CallRules:
    is_required = must_call(request)
    return CallRules(
        tools=[_tool(i, tool, is_held=is_required or bool(tool.function.strict)) for i, tool in _allowed(request)],
        names=[tool.function.name for tool in request.tools or ()],
        is_required=is_required,
        is_single=request.parallel_tool_calls is False or names_one(request),
        answer=answer,
        is_marked=calls_are_marked(request),
    )


def has_form(request: ChatRequest) -> bool:
    """Whether an answer without a call may be, and has a form; what looks like a call in it is part of it then."""
    form = request.response_format
    return form is not None and form.type != "text" and not must_call(request)


def calls_are_marked(request: ChatRequest) -> bool:
    """Whether an answer of the form that is asked for may look like a call that has no marker."""
    form = request.response_format
    if form is None or not has_form(request):
        return False
    if form.choice is not None:
        return any(text.lstrip().startswith(("{", "[")) for text in form.choice)
    schema = form.json_schema.schema if form.json_schema else None
    if schema is None or schema.keys() - _PLAIN_WORDS or schema.get("type") != "object":
        return True
    return schema.get("additionalProperties") is not False or "name" in schema.get("properties", ())


def _tool(place: int, tool: Tool, *, is_held: bool) -> AllowedTool:
    parameters = NO_ARGUMENTS if tool.function.parameters is None else tool.function.parameters
    path = Path(None, f"tools[{place}].function.parameters")
    schema = checked_schema(_of_object(parameters, path), str(path)) if is_held else None
    return AllowedTool(tool.function.name, schema if isinstance(schema, dict) else None, parameters, path)


def _of_object(parameters: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The schema, which says that it is of objects.

    Raises:
        InvalidRequest: it is of something else.
    """
    named = parameters.get("type", "object")
    if named != "object" and not (isinstance(named, list) and "object" in named):
        raise refused(path / "type", "must be 'object', which arguments are.")
    return {"type": "object", **{word: value for word, value in parameters.items() if word != "type"}}


async def _blamed(said: str, form: str, rules: CallRules, trial: GrammarTrial) -> InvalidRequest:
    """The refusal of a grammar: because of the first tool that cannot be kept to by itself."""
    for tool in rules.tools:
        alone = replace(rules, tools=[tool], is_required=True, answer="")
        if tool.schema is None:
            continue
        if reason := await trial.verdict(grammar_of_calls(form, alone, {}), str(tool.path)):
            return blame(reason, _of_object(tool.parameters, tool.path), str(tool.path))
    first_line = said.partition("\n")[0][:300]
    return InvalidRequest(f"tools cannot be kept to by a grammar: {first_line}.", param="tools", code="invalid_grammar")
