"""openapi.yaml as a judge: whether a response is one that the contract has."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})


@cache
def contract() -> dict[str, Any]:
    """openapi.yaml."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "openapi.yaml").read_text())
    return document


def resolve(node: Any) -> Any:
    """What ``node`` refers to, if it is a reference."""
    while "$ref" in node:
        target: Any = contract()
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def schema(name: str) -> Any:
    """A component's schema, without its outermost reference."""
    return resolve({"$ref": f"#/components/schemas/{name}"})


def inlined(node: Any) -> Any:
    """``node`` with everything it refers to in place: no schema of the contract refers to itself."""
    if isinstance(node, dict):
        return {key: inlined(value) for key, value in resolve(node).items()}
    return [inlined(item) for item in node] if isinstance(node, list) else node


@cache
def _validator(encoded: str) -> Draft202012Validator:
    return Draft202012Validator(inlined(json.loads(encoded)))


def check(instance: Any, node: Any) -> None:
    """Raise ``jsonschema.ValidationError`` unless ``instance`` is as the schema ``node`` says."""
    _validator(json.dumps(node)).validate(instance)


def operation_for(method: str, path: str) -> dict[str, Any] | None:
    """The contract's operation, or None if it has none for this method and path."""
    for template, item in contract()["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in item:
            operation: dict[str, Any] = item[method.lower()]
            return operation
    return None


def check_response(method: str, path: str, status: int, headers: Any, body: bytes) -> None:
    """Assert that the contract has this answer to this method and path, down to its body and its headers."""
    operation = operation_for("get" if method == "HEAD" else method, path)
    media_type = headers.get("content-type", "").partition(";")[0]
    if operation is None:
        assert status in {400, 401, 404, 405, 413, 421}, (method, path, status)
        check(json.loads(body), {"$ref": "#/components/schemas/Error"})
        return
    assert str(status) in operation["responses"], f"{method} {path} is not to answer {status}"
    response = resolve(operation["responses"][str(status)])
    for name, header in response.get("headers", {}).items():
        declared = resolve(header)
        value = headers.get(name)
        assert value is not None, f"{name} is missing"
        check(int(value) if declared["schema"]["type"] == "integer" else value, declared["schema"])
    assert media_type in response["content"], f"{method} {path} is not to answer with {media_type}"
    if method == "HEAD":
        return
    content = response["content"][media_type]
    if media_type == "application/json":
        check(json.loads(body), content["schema"])
    elif media_type == "text/event-stream":
        check_events(body.decode(), content["itemSchema"])


def check_events(stream: str, item_schema: Any) -> None:
    """Assert that every event is as the contract has it, and that the stream ends in one of its two ways."""
    _, data = resolve(item_schema)["properties"]["data"]["anyOf"]
    data_schema, _ = data["contentSchema"]["anyOf"]
    assert stream.endswith("\n\n")
    events = [block for block in stream.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    *chunks, last = [event.removeprefix("data: ") for event in events]
    for chunk in chunks:
        check(json.loads(chunk), data_schema)
    if last != "[DONE]":
        check(json.loads(last), {"$ref": "#/components/schemas/Error"})
