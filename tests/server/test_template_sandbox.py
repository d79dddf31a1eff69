"""Templates that would take all time or memory, or reach out of their sandbox."""

from __future__ import annotations

import tracemalloc

import pytest

from engine.errors import InvalidRequest
from server import template_sandbox
from server.chat_template import ChatTemplate

GROW = "{% set n = namespace(x='ab', l=[]) %}{% for i in range(100000) %}"
ENDLESS = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "callers": (
        "{% macro g() %}{{ caller() }}{{ caller() }}{% endmacro %}{% macro f(n) %}"
        "{% if n %}{% call g() %}{{ f(n-1) }}{% endcall %}{% endif %}{% endmacro %}{{ f(25) }}"
    ),
}
HUGE = {
    "output": "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    "block": "{% set b = 'x' * 1000000 %}{% set t %}{% for i in range(1000) %}{{ b }}{% endfor %}{% endset %}{{ t }}",
    "times": "{{ 'x' * 10**9 }}",
    "times reversed": "{{ 10**9 * 'x' }}",
    "list times": "{{ ([0] * 10**9) | length }}",
    "bytes": "{{ ('x'.encode() * 10**9) | length }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "squares": "{% set n = namespace(x=3) %}{% for i in range(100) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "plus": GROW + "{% set n.x = n.x + n.x %}{% endfor %}",
    "list plus": GROW + "{% set n.l = n.l + [1] + n.l %}{% endfor %}",
    "tilde": GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "join": GROW + "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "join method": GROW + "{% set n.x = ''.join([n.x, n.x]) %}{% endfor %}",
    "join lazily": "{{ (['x' * 1000000] * 1000) | map('upper') | join | length }}",
    "replace": GROW + "{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
    "replace method": GROW + "{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "format": "{{ '%999999999d' % 1 }}",
    "format star": "{{ '%*d' % (999999999, 1) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "format method": "{{ '{:>999999999}'.format(1) }}",
    "format nested": "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "format repeated": "{{ ('{0}' * 1000).format('x' * 1000000) | length }}",
    "center": "{{ 'x' | center(999999999) }}",
    "mapped": "{{ ['x'] | map('center', 999999999) | list }}",
    "ljust": "{{ 'x'.ljust(999999999) }}",
    "zfill": "{{ 'x'.zfill(999999999) }}",
    "indent": "{{ ('a\n' * 1000) | indent(1000000) }}",
    "wordwrap": "{{ ('a ' * 100000) | wordwrap(1, wrapstring='x' * 100000) }}",
    "batch": "{{ [1] | batch(999999999, 0) | list }}",
    "slice": "{{ [1] | slice(999999999) | list }}",
    "sum": "{{ ([[1] * 100000] * 100000) | sum(start=[]) | length }}",
    "tojson indent": "{{ [[1]] | tojson(indent=999999999) }}",
    "shared references": GROW.replace("100000", "50") + "{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
    "shared in tojson": GROW.replace("100000", "50") + "{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l | tojson }}",
    "shared in tilde": GROW.replace("100000", "50") + "{% set n.l = [n.l, n.l] %}{% endfor %}{{ '' ~ n.l }}",
    "shared dicts": GROW.replace("100000", "50") + "{% set n.l = dict(a=n.l, b=n.l) %}{% endfor %}{{ n.l }}",
    "many texts": GROW + "{% set n.l = n.l + ['x' * (3000000 + i)] %}{% endfor %}",
    "many slices": "{% set b = 'x' * 4000000 %}" + GROW + "{% set n.l = n.l + [b[i:]] %}{% endfor %}",
    "many splits": "{% set b = 'x ' * 1000000 %}" + GROW + "{% set n.l = n.l + [b.split()] %}{% endfor %}",
    "time": "{{ strftime_now('%c' * 10000000) | length }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_ended(monkeypatch, name):
    monkeypatch.setattr(template_sandbox, "MAX_RENDER_S", 0.1)
    template = ChatTemplate(ENDLESS[name], {})
    with pytest.raises(InvalidRequest, match="ran for more than"):
        template.render([])


@pytest.mark.parametrize("name", HUGE)
def test_a_template_that_makes_too_much_is_ended(monkeypatch, name):
    """What is allocated stays near the budget: an operation is refused before it is carried out."""
    budget = 32 << 20
    monkeypatch.setattr(template_sandbox, "MAX_WORK_BYTES", budget)
    monkeypatch.setattr(template_sandbox, "_MAX_TEXT_BYTES", budget // 32)  # tracing makes the walk slow
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=r"too much|too large|too great|put out more"):
            ChatTemplate(HUGE[name], {}).render([])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A split's pieces are only counted when they are there: 64 bytes or so each, as many as half the characters.
    assert peak < 5 * budget


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.items() }}",
        "{{ messages.append(1) }}",
        "{% set x = messages.__class__.__base__ %}{{ x() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ (1).to_bytes(9, 'big') }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ 'x\t'.expandtabs(9) }}",
        "{{ self._TemplateReference__context.environment.globals.update(a=1) }}",
    ],
)
def test_what_templates_may_not_do(source):
    with pytest.raises(InvalidRequest, match=r"may not|cannot render"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    ["{% include 'x' %}", "{% extends 'x' %}", "{{ range(10**9) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
)
def test_what_goes_wrong_inside_is_an_invalid_request(source):
    with pytest.raises(InvalidRequest, match="cannot render"):
        ChatTemplate(source, {}).render([])
