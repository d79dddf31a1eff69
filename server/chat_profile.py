"""What the loaded model can do in a chat: known from its template, or told by flags.

Made once when the server starts. A request is held against it by ``conversation``.
"""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import meta

from server.reasoning import THOUGHTS, Markers
from server.template_sandbox import TemplateSandbox, limits
from server.tools.families import FAMILIES, Family, family_of_template, form_of

WRITTEN_OUT = "hermes"
"""How models are told to call tools whose template has no place for them; see ``tools.written_out``."""
AUTO, NONE = "auto", "none"
"""What flags take beside names: what the template tells; nothing of the kind."""
SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates are told whether the model is to think: true or false."""
BUDGET = "thinking_budget"
EFFORT = "reasoning_effort"


@dataclass(frozen=True)
class ChatProfile:
    """What templates and models differ in.

    Attributes:
        variables: that the template reads, beside those that every template has.
        family_name: of ``FAMILIES``, how the model calls tools; None if that is not known.
        thoughts: what stands around its thoughts; None if it has none.
        arguments_as_text: the template wants the arguments of earlier calls as a string, not as an object.
        has_template: whether there is one; without it a model has no chats.
        shows_names: the template shows the model who speaks, where a message says so.
        call_form: of ``tools.grammar.SHAPES``, how it is made to call tools; "" if that is not known.
    """

    variables: frozenset[str] = frozenset()
    family_name: str | None = None
    thoughts: Markers | None = None
    arguments_as_text: bool = False
    has_template: bool = True
    shows_names: bool = False
    call_form: str = ""

    @property
    def family(self) -> Family | None:
        """How the model calls tools."""
        return FAMILIES[self.family_name] if self.family_name else None

    def new_call_id(self) -> str:
        """An id for a tool call, as the model takes it."""
        return (self.family or FAMILIES[WRITTEN_OUT]).new_call_id()

    @property
    def switch(self) -> str | None:
        """The variable that turns thinking on and off."""
        return next((name for name in SWITCHES if name in self.variables), None)

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return "tools" in self.variables

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that mean something in an answer, whatever tokens they are."""
        return (*(self.family.markers if self.family else ()), *(self.thoughts or ()))


def profile_of(template: str, *, family: str = AUTO, thoughts: str = AUTO) -> ChatProfile:
    """The profile of a model.

    Args:
        template: the source of its chat template, which compiles.
        family: one of ``FAMILIES``, or ``AUTO`` for what the template tells, or ``NONE``: calls are not looked for.
        thoughts: one of ``THOUGHTS``, or ``AUTO`` likewise, or ``NONE``: thoughts are not told from answers.
    """
    variables = _variables(template)
    told = family_of_template(template) or (None if "tools" in variables else WRITTEN_OUT)
    name = {AUTO: told, NONE: None}.get(family, family)
    known = FAMILIES[name] if name else None
    return ChatProfile(
        variables=variables,
        family_name=name,
        thoughts=_thoughts_of(template) if thoughts == AUTO else THOUGHTS.get(thoughts),
        arguments_as_text=known is not None and known.arguments_as_text(template),
        call_form=form_of(name, template) if name else "",
    )


def _variables(template: str) -> frozenset[str]:
    with limits():
        return frozenset(meta.find_undeclared_variables(TemplateSandbox().parse(template)))


def _thoughts_of(template: str) -> Markers | None:
    return next((markers for markers in reversed(THOUGHTS.values()) if markers.end in template), None)
