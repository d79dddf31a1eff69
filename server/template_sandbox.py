"""The Jinja sandbox that chat templates run in, with limits of time and memory.

A chat template is a program that comes with a model, so it is trusted no further than to be wrong at a user's expense:
it reaches nothing but its variables (``ImmutableSandboxedEnvironment``), and it cannot run or allocate for ever. Python
cannot interrupt an expression, so the limits are kept by what a template is compiled to: every loop and call reports
its turns, and every operation that can make a large value says how large before it makes it. Called by
``chat_template``, on any thread.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RENDER_S = 2.0
MAX_OUTPUT_CHARS = 4 << 20
MAX_WORK_BYTES = 256 << 20
"""Of all values that one rendering makes, counted as they are made, whether or not they are kept."""
_MAX_TEXT_BYTES = 16 << 20
"""Of one value that is written out as text."""
_MAX_INTEGER_BITS = 1 << 14

_DENIED_METHODS = frozenset({"expandtabs", "format_map", "maketrans", "to_bytes", "translate"})
_GROWING_METHODS = frozenset({"center", "ljust", "replace", "rjust", "zfill"})
_GROWING_FILTERS = frozenset({"center", "indent", "join", "replace", "tojson", "wordwrap", "xmlattr"})
_LIST_FILTERS = frozenset({"batch", "slice"})
_TEXT_FILTERS = _GROWING_FILTERS | {
    *("capitalize", "e", "escape", "forceescape", "lower", "pprint", "safe", "string", "striptags", "sum", "title"),
    *("trim", "truncate", "upper", "urlencode", "urlize", "wordcount"),
}
_WIDE_FIELD = re.compile(r"[%:.][-+<>=^ #0,.\d]*\d{5}|%[-+ #0\d.]*\*|\{[^{}]*\{")
"""In a format string: a width of five digits, or one that is itself an argument."""


class TemplateLimitError(Exception):
    """A rendering took too long or made too much; the message says which."""


class TemplateRefusalError(TemplateError):
    """The template itself refused its input, by ``raise_exception``."""


class _Budget:
    """What is left to one rendering."""

    def __init__(self) -> None:
        self.deadline_s = time.monotonic() + MAX_RENDER_S
        self.bytes_left = MAX_WORK_BYTES

    def spend(self, num_bytes: int) -> None:
        self.bytes_left -= num_bytes
        if self.bytes_left < 0:
            raise TemplateLimitError("needs too much memory")
        if time.monotonic() > self.deadline_s:
            raise TemplateLimitError(f"ran for more than {MAX_RENDER_S:g} s")


_BUDGET: ContextVar[_Budget] = ContextVar("template_budget")


@contextmanager
def limits() -> Iterator[None]:
    """Within, templates may be compiled and rendered, and all of it together has one budget."""
    token = _BUDGET.set(_Budget())
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _spend(num_bytes: int) -> None:
    _BUDGET.get().spend(num_bytes)


def compile_template(source: str) -> Template:
    """Compile a chat template. Has to run within ``limits``.

    Raises:
        jinja2.TemplateSyntaxError: it is not a template.
    """
    environment = TemplateSandbox()
    tree = environment.parse(source)
    _insert_limits(tree)
    return Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja as Hugging Face's chat templates expect it, with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=_checked_output
        )
        self.filters["tojson"] = to_json
        self.filters = {name: _limited_filter(name, function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now, "dict": make_dict}

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join what a template, a macro or a block put out, never more than an output may have."""
        kept: list[str] = []
        num_chars = 0
        for part in parts:
            kept.append(part)
            num_chars += len(part)
            if num_chars > MAX_OUTPUT_CHARS:
                raise TemplateLimitError(f"put out more than {MAX_OUTPUT_CHARS >> 20} MB of text")
            _spend(0)
        _spend(num_chars)
        return "".join(kept)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also refuse methods that make much out of little and that no chat template needs."""
        return attr not in _DENIED_METHODS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator that may make a large value."""
        _spend(_binop_bytes(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  names the caller may use
        """A call of a function, a macro or a method."""
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            if method.__name__ == "join" and args:
                args = (list(args[0]), *args[1:])
            _spend(_method_bytes(owner, method.__name__, [*args, *kwargs.values()]))
        result = super().call(__context, __obj, *args, **kwargs)
        _spend(_num_bytes(result))
        return result

    def tick(self) -> None:
        """One turn of a loop; calls of macros and blocks come by ``call``."""
        _spend(0)

    def join_texts(self, *parts: Any) -> str:
        """The ``~`` operator."""
        _spend(sum(map(_text_bytes, parts)))
        return "".join(map(str, parts))

    def take_slice(self, value: Any, *bounds: Any) -> Any:
        """``value[start:stop:step]``."""
        result = value[slice(*bounds)]
        _spend(_num_bytes(result))
        return result


class GenerationTag(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here its contents just stand."""

    tags = {"generation"}  # noqa: RUF012  Jinja declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        """Read up to ``{% endgeneration %}``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _insert_limits(node: nodes.Node) -> nodes.Node:
    """Put the calls that keep the limits into a parsed template; return what stands in the node's place."""
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            setattr(node, field, _insert_limits(value))
        elif isinstance(value, list):
            value[:] = [_insert_limits(item) if isinstance(item, nodes.Node) else item for item in value]
    if isinstance(node, nodes.For):
        node.body.insert(0, nodes.ExprStmt(_environment_call("tick", [], node), lineno=node.lineno))
    elif isinstance(node, nodes.Concat):
        return _environment_call("join_texts", node.nodes, node)
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _environment_call("take_slice", [node.node, *(bound or nodes.Const(None) for bound in bounds)], node)
    return node


def _environment_call(method: str, args: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), args, [], None, None, lineno=at.lineno)


def raise_exception(message: object) -> None:
    """What templates call to refuse a conversation."""
    raise TemplateRefusalError(str(message))


def strftime_now(pattern: str) -> str:
    """The time now, local, in ``strftime`` format."""
    _spend(_num_bytes(pattern) * 64)
    return datetime.now().strftime(pattern)


def make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """``dict(...)`` without the attributes of the type."""
    return dict(*args, **kwargs)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _checked_output(value: Any) -> Any:
    """Called with everything that is put out, before it is made a text."""
    if not isinstance(value, str):
        _text_bytes(value)
    return value


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        value, others = args[skipped], [*args[skipped + 1 :], *kwargs.values()]
        if name == "join":
            value = list(value)
            args = (*args[:skipped], value, *args[skipped + 1 :])
        _spend(_filter_bytes(name, value, others))
        result = function(*args, **kwargs)
        _spend(_num_bytes(result))
        return result

    return limited


def _filter_bytes(name: str, value: Any, others: list[Any]) -> int:
    if name == "format":
        return _format_bytes(str(value), others)
    if name in _LIST_FILTERS:
        return 64 * _largest(others)
    if name in _GROWING_FILTERS:
        return (_text_bytes(value) + 1) * (1 + _largest(others))
    return _text_bytes(value) if name in _TEXT_FILTERS else 0


def _method_bytes(owner: str | bytes, name: str, args: list[Any]) -> int:
    if name == "format":
        return _format_bytes(str(owner), args)
    if name == "join" and args:
        return (_text_bytes(args[0]) + 1) * (1 + len(owner))
    return (_num_bytes(owner) + 1) * (1 + _largest(args)) if name in _GROWING_METHODS else 0


def _binop_bytes(operator: str, left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
        if operator in {"*", "**"} and bits > _MAX_INTEGER_BITS:
            raise TemplateLimitError("computes too large a number")
        return 0
    if operator == "*":
        times = next((side for side in (left, right) if isinstance(side, int)), 1)
        return (_num_bytes(left) + _num_bytes(right)) * max(times, 0)
    if operator == "%" and isinstance(left, str | bytes):
        return _format_bytes(str(left), [right])
    return _num_bytes(left) + _num_bytes(right)


def _format_bytes(pattern: str, args: list[Any]) -> int:
    if _WIDE_FIELD.search(pattern):
        raise TemplateLimitError("formats a field of too great a width")
    num_fields = pattern.count("%") + pattern.count("{")
    return _num_bytes(pattern) + num_fields * (sum(map(_text_bytes, args)) + 10_000)


def _largest(args: list[Any]) -> int:
    """The largest number among the arguments, or the greatest length of a text."""
    sizes = (abs(arg) if isinstance(arg, int) else len(arg) if isinstance(arg, str) else 0 for arg in args)
    return max(sizes, default=0)


def _num_bytes(value: Any) -> int:
    """About what a value takes by itself, without the values it refers to."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if isinstance(value, bytes):
        return len(value)
    return 64 * len(value) if isinstance(value, list | tuple | Mapping | set) else 0


def _text_bytes(value: Any) -> int:
    """About what a value takes once it is written out as text, with all that it refers to.

    Raises:
        TemplateLimitError: more than any text may have; found out without walking through all of it.
    """
    if isinstance(value, str):
        return _num_bytes(value)
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            stack += item
        total += _num_bytes(item) + 8
        if total > _MAX_TEXT_BYTES:
            raise TemplateLimitError("needs too much memory")
    return total
