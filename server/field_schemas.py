"""What the fields of requests may be, as JSON Schema: read off the structs that hold requests to it."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from server.schemas import RequestStruct

SEED_BOUNDS = {"minimum": -(2**63), "maximum": 2**64 - 1}
"""As ``SamplingParams`` has them; they do not fit the bounds that a struct can hold."""

_REMARKS = frozenset({"title", "description", "default"})
_NULL = {"type": "null"}


@cache
def field_schemas(struct: type[RequestStruct]) -> dict[str, Any]:
    """Name -> schema of each field, without references; null, which is absent for every optional one, is left out."""
    document = msgspec.json.schema(struct)
    definitions = document["$defs"]
    plain: dict[str, Any] = _plain(document, definitions)["properties"]
    if "seed" in plain:
        plain["seed"] |= SEED_BOUNDS
    return plain


def words_of(struct: type[RequestStruct], field: str) -> list[str]:
    """The words that a field may be, if it may be words."""
    schema = field_schemas(struct)[field]
    return [word for option in schema.get("anyOf", [schema]) for word in option.get("enum", ())]


def _plain(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return _plain(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:
        options = [_plain(option, definitions) for option in node["anyOf"] if option != _NULL]
        return options[0] if len(options) == 1 else {"anyOf": options}
    plain = {}
    for key, value in node.items():
        if key == "properties":
            plain[key] = {name: _plain(member, definitions) for name, member in value.items()}
        elif key not in _REMARKS:
            plain[key] = _plain(value, definitions) if isinstance(value, dict) else value
    return plain
