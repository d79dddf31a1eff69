"""Every field of every request in openapi.yaml has a test that shows what it does, or the 400 that names it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.contract import contract, inlined

TESTS = Path(__file__).parents[1]
REGISTRY = tomllib.loads((Path(__file__).parent / "field_tests.toml").read_text())
SECTIONS = {"createChatCompletion": "chat", "createCompletion": "text"}
"""Of the registry, by operation, where they are not called as it is; "both" is for what these two share."""


NO_FIELDS = ("missing", "as in chat")
"""What else a section may have; the second are tests by which what it shares with chats is as it is there."""


def paths(node: Any, at: str = "") -> Iterator[str]:
    """The paths of all fields that a schema has, however deep."""
    for option in node.get("anyOf", [node]):
        if option is not node:
            yield from paths(option, at)
            continue
        if "items" in node:
            yield from paths(node["items"], f"{at}[]")
        for name, inner in node.get("properties", {}).items():
            path = f"{at}.{name}" if at else name
            yield path
            yield from paths(inner, path)


def fields() -> dict[str, set[str]]:
    """Section -> the parameters of its operation, and the paths of the fields of its body."""
    found: dict[str, set[str]] = {}
    for item in contract()["paths"].values():
        for operation in map(inlined, item.values()):
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            for content in operation.get("requestBody", {}).get("content", {}).values():
                names.update(paths(content["schema"]))
            if names:
                found[SECTIONS.get(operation["operationId"], operation["operationId"])] = names
    return found


def missing(section: str) -> set[str]:
    return set(REGISTRY.get(section, {}).get("missing", []))


def listed(section: str) -> dict[str, list[str]]:
    """Field -> tests, of a section with what it shares with others."""
    own = dict(REGISTRY.get(section, {}))
    shared = REGISTRY["both"] if section in SECTIONS.values() else {}
    if "as in chat" in own:
        shared = dict.fromkeys(fields()[section] & set(listed("chat")), own["as in chat"])
    return {name: tests for name, tests in {**shared, **own}.items() if name not in NO_FIELDS}


@pytest.mark.parametrize("section", fields())
def test_every_field_is_listed_and_nothing_else(section: str) -> None:
    known = missing(section) | (missing("both") if section in SECTIONS.values() else set())
    assert fields()[section] - set(listed(section)) - known == set()
    assert (set(listed(section)) | known) - fields()[section] == set()
    assert known & set(listed(section)) == set(), "shown by a test, so not missing any more"


@cache
def sources_in(file: str) -> dict[str, str]:
    """Name of each test in a file -> its source, with all of the file that it uses, such as tables of parameters."""
    module = ast.parse((TESTS / file).read_text())
    parts: dict[str, ast.AST] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                parts[ast.unparse(target)] = node

    def used(name: str, seen: set[str]) -> set[str]:
        for each in ast.walk(parts[name]):
            if isinstance(each, ast.Name) and each.id in parts and each.id not in seen:
                seen |= used(each.id, seen | {each.id})
        return seen

    tests = [name for name in parts if name.startswith("test_")]
    return {name: "\n".join(ast.unparse(parts[each]) for each in used(name, {name})) for name in tests}


CASES = [
    pytest.param(section, field, id=f"{section}: {field}")
    for section in sorted({"both", *fields()})
    for field in REGISTRY.get(section, {})
    if field not in NO_FIELDS
]


@pytest.mark.parametrize(("section", "field"), CASES)
def test_the_tests_of_a_field_are_there_and_name_it(section: str, field: str) -> None:
    tests = REGISTRY[section][field]
    assert tests
    sources = []
    for test in tests:
        file, _, name = test.partition("::")
        assert name in sources_in(file), test
        sources.append(sources_in(file)[name])
    leaf = re.split(r"[.\[\]]+", field.rstrip("[]"))[-1]
    assert re.search(rf"\b{leaf}\b", "\n".join(sources)), f"none of its tests names {leaf}"
