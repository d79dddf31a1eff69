"""The words of JSON Schema, of all its drafts and of OpenAPI: what each is to a grammar.

Read by ``schema``, which knows what to do with those that are kept.
"""

from __future__ import annotations

KEPT = frozenset(
    {
        "$ref", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "dependencies",
        "dependentRequired", "dependentSchemas", "discriminator", "enum", "exclusiveMaximum", "exclusiveMinimum",
        "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength",
        "minProperties", "minimum", "multipleOf", "nullable", "oneOf", "pattern", "patternProperties", "prefixItems",
        "properties", "propertyNames", "required", "type", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
    }
)  # fmt: skip
"""Some of them only with values that ask for nothing."""

REMARKS = frozenset(
    {
        "$anchor", "$comment", "$defs", "$id", "$schema", "$vocabulary", "contentEncoding", "contentMediaType",
        "contentSchema", "default", "definitions", "deprecated", "description", "enumDescriptions", "enumNames",
        "errorMessage", "example", "examples", "externalDocs", "id", "markdownDescription", "readOnly", "title",
        "writeOnly", "xml",
    }
)  # fmt: skip
"""Nothing is valid or invalid by them. ``x-`` words, which are remarks too, go without saying."""

ROOT_REMARKS = frozenset({"components"})
"""Where OpenAPI keeps definitions."""

REFUSED = {
    "not": "say what is allowed instead, by type, enum or anyOf",
    "if": "write each case as a branch of anyOf",
    "then": "write each case as a branch of anyOf",
    "else": "write each case as a branch of anyOf",
    "contains": "describe all of the items by items or prefixItems",
    "minContains": "describe all of the items by items or prefixItems",
    "maxContains": "describe all of the items by items or prefixItems",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "use $defs and $ref",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "use $ref",
    "x-guidance": "its options are the server's",
    "extends": "use allOf",
    "disallow": "say what is allowed instead, by type, enum or anyOf",
    "divisibleBy": "use multipleOf",
}
"""What a grammar cannot keep, and what can be done."""

DIALECTS = frozenset(
    {
        "json-schema.org/schema",
        "json-schema.org/draft/2020-12/schema",
        "json-schema.org/draft/2019-09/schema",
        "json-schema.org/draft-07/schema",
        "json-schema.org/draft-06/schema",
        "json-schema.org/draft-04/schema",
        "spec.openapis.org/oas/3.1/dialect/base",
    }
)
"""Which ``$schema`` may name, without their scheme and their last ``#``."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

MAX_DEPTH = 32
"""Of schemas in schemas, within a definition. The library's stack would do for ten times as many."""
MAX_KEYWORDS = 20_000
MAX_PROPERTIES = 5_000
"""In all. Names of one object cost the library the square of their number: 10,000 took it 4.7 s."""
MAX_CONSTANTS = 5_000
"""In all. Choosing the first token among 10,000 took 41 ms."""
MAX_CHARS = 500_000
"""In names and constants, in all."""
MAX_DEPENDENCIES = 4
"""In one object: each doubles the forms that it may have."""
