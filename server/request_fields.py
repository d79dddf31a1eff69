"""A client's JSON object held against a struct, field by field, before msgspec sees it.

Invariants: nulls are left out, since null means absent for every optional field, and so are values that ask for what is
done anyway; a field that the struct does not have
is refused, by its path, as unknown or as one of those that are known and refused; a word that a field cannot be is
refused with those that it can. Types and bounds are msgspec's, afterwards.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from engine.errors import InvalidRequest
from server.schemas import RequestStruct

MAX_PATH_CHARS = 128


class _Field(NamedTuple):
    """What a field's value may be, as far as it is looked at here.

    Attributes:
        struct: if it is an object; item: if it is a list, of its items.
        words: if it is a string and none but these.
    """

    struct: type[RequestStruct] | None
    item: type[RequestStruct] | None
    words: tuple[str, ...]


def checked(value: Any, path: str, struct: type[RequestStruct]) -> Any:
    """``value`` without its nulls, if it is an object that has only what ``struct`` has; any other type as it is.

    Raises:
        InvalidRequest: a field or a word that is unknown or refused, by its path.
    """
    if not isinstance(value, dict):
        return value
    fields = _fields(struct)
    _refuse_words(value, path, struct, fields)
    found = {}
    for name, given in value.items():
        param = f"{path}.{name}" if path else name
        member = None if _is_as_absent(given, name, struct) else given
        if name in fields:
            if member is not None:
                found[name] = _nested(member, param, fields[name])
        elif name not in struct.refused_fields:
            raise _unknown(param, name, path, fields)
        elif member is not None:
            message = f"{param} is not supported by this server. {struct.refused_fields[name]}".strip()
            raise InvalidRequest(message, param=param, code="unsupported_parameter")
    return found


def _is_as_absent(given: Any, name: str, struct: type[RequestStruct]) -> bool:
    wanted = struct.as_absent.get(name)
    return wanted is not None and type(given) is type(wanted) and given == wanted


def _refuse_words(value: dict[str, Any], path: str, struct: type[RequestStruct], fields: dict[str, _Field]) -> None:
    """Before all else: an object of a kind that is refused has fields that are unknown."""
    for name, field in fields.items():
        word = value.get(name)
        if not field.words or not isinstance(word, str) or word in field.words:
            continue
        param = f"{path}.{name}" if path else name
        words = " or ".join(f"'{word}'" for word in field.words)
        reason = struct.refused_words.get(name, {}).get(word)
        if reason is None:
            raise InvalidRequest(f"{param} must be {words}.", param=param)
        message = f"{param} can only be {words} here. {reason}".strip()
        raise InvalidRequest(message, param=param, code="unsupported_parameter")


def _nested(value: Any, param: str, field: _Field) -> Any:
    if field.item is not None and isinstance(value, list):
        return [checked(item, f"{param}[{i}]", field.item) for i, item in enumerate(value)]
    if field.struct is not None:
        return checked(value, param, field.struct)
    return value


def _unknown(param: str, name: str, path: str, known: Iterable[str]) -> InvalidRequest:
    nearest = difflib.get_close_matches(name[:64], known, n=1)
    hint = "."
    if nearest:
        hint = f"; did you mean '{nearest[0]}'?"
    elif path:
        hint = f"; {path} can have {', '.join(known)}."
    shown = shortened(param)
    return InvalidRequest(f"Unknown parameter '{shown}'{hint}", param=shown, code="unknown_parameter")


def shortened(param: str) -> str:
    """A path that a client made up, as it may be shown."""
    return param[:MAX_PATH_CHARS].encode("unicode_escape").decode("ascii")


@cache
def _fields(struct: type[RequestStruct]) -> dict[str, _Field]:
    hints = get_type_hints(struct, include_extras=True)
    return {name: _field(list(_alternatives(hints[name]))) for name in struct.__struct_fields__}


def _alternatives(hint: Any) -> Iterable[Any]:
    """The types of a union, without what they are annotated with."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in {Union, UnionType}:
        for inner in get_args(hint):
            yield from _alternatives(inner)
    else:
        yield hint


def _field(types: list[Any]) -> _Field:
    struct = item = None
    words: tuple[str, ...] = ()
    for kind in types:
        if isinstance(kind, type) and issubclass(kind, RequestStruct):
            struct = kind
        elif get_origin(kind) is list:
            item = next((t for t in _alternatives(get_args(kind)[0]) if _is_struct(t)), None)
        elif get_origin(kind) is Literal:
            words = get_args(kind)
    return _Field(struct, item, words)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, RequestStruct)
