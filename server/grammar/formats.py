r"""Formats of texts in a schema, as patterns; of numbers, as bounds.

Called by ``schema``. A format is an annotation to JSON Schema, but who sends one means it: each is held to, passes as
the remark that it is, or is refused. What is held to is at times less than the standard allows, and never more: no leap
seconds, no year 0000, no comments in mail addresses; a program that reads the answer may not know them either. The
library's own dates would allow 29 February in each year.
"""

from __future__ import annotations

from typing import Any

REMARKS = frozenset(
    {"password", "binary", "path", "file-path", "directory-path", "html", "markdown", "textarea", "text"}
)
"""Say what a text is for, not how it is written."""

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,9}})?{_ZONE}"
_N = "[0-9]{1,9}"
_CLOCK = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DURATION = f"P(?:(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)(?:{_CLOCK})?|{_CLOCK}|{_N}W)"
HEX = "[0-9A-Fa-f]"
_BASE64 = "(?:[A-Za-z0-9+\\/]{4})*(?:[A-Za-z0-9+\\/]{2}==|[A-Za-z0-9+\\/]{3}=)?"
_BASE64URL = "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2,3})?"
_REFERENCE_TOKENS = r"(?:\/(?:[^~\/]|~[01])*)*"
PCHAR = rf"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%{HEX}{{2}})"
_NO_COLON = rf"(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%{HEX}{{2}})"
TAIL = rf"(?:\?(?:{PCHAR}|[\/?])*)?(?:#(?:{PCHAR}|[\/?])*)?"
_RELATIVE = rf"(?:\/(?:{PCHAR}+(?:\/{PCHAR}*)*)?|{_NO_COLON}+(?:\/{PCHAR}*)*)?{TAIL}"

_LABELS = r"^[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:\.[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)*$"
"""Of a host: no two hyphens in a row, which would make promises about what follows ('xn--')."""


def _is(pattern: str) -> dict[str, Any]:
    return {"pattern": f"^{pattern}$"}


def _uuid(version: str) -> dict[str, Any]:
    return _is(f"{HEX}{{8}}-{HEX}{{4}}-{version}{HEX}{{3}}-[89ABab]{HEX}{{3}}-{HEX}{{12}}")


_HOST: list[dict[str, Any]] = [{"format": "hostname", "maxLength": 253}, {"pattern": _LABELS}]
_ATEXT = r"[A-Za-z0-9!#$%&'*+\-\/=?\^_`{|}~]+"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL: list[dict[str, Any]] = [
    {"pattern": rf"^{_ATEXT}(?:\.{_ATEXT})*@{_LABEL}(?:\.{_LABEL})+$", "maxLength": 254},
    {"pattern": "^[^@]{1,64}@"},
]
_URI: list[dict[str, Any]] = [{"format": "uri"}]
_URI_REFERENCE: list[dict[str, Any]] = [{"anyOf": [{"format": "uri"}, _is(_RELATIVE)]}]
_IPV4, _IPV6 = {"format": "ipv4"}, {"format": "ipv6"}

HELD: dict[str, list[dict[str, Any]]] = {
    "date": [_is(_DATE)],
    "time": [_is(_TIME)],
    "date-time": [_is(f"{_DATE}T{_TIME}")],
    "duration": [_is(_DURATION)],
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": [_IPV4],
    "ipv6": [_IPV6],
    "ipvanyaddress": [{"anyOf": [_IPV4, _IPV6]}],
    "uri": _URI,
    "iri": _URI,
    "url": _URI,
    "uri-reference": _URI_REFERENCE,
    "iri-reference": _URI_REFERENCE,
    "uuid": [{"format": "uuid"}],
    **{f"uuid{version}": [_uuid(str(version))] for version in range(1, 9)},
    "byte": [_is(_BASE64)],
    "base64": [_is(_BASE64)],
    "base64url": [_is(_BASE64URL)],
    "json-pointer": [_is(_REFERENCE_TOKENS)],
    "relative-json-pointer": [_is(rf"(?:0|[1-9][0-9]{{0,8}})(?:#|{_REFERENCE_TOKENS})")],
}
"""What is held to instead, all of it. International names and identifiers are held to their plain forms."""

INTEGERS: dict[str, tuple[int, int]] = {
    **{f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}
"""What fits integers of so many bits."""

NUMBERS = frozenset({"float", "double", "decimal", "number", "integer"})
"""Say what a number is read into. JSON's have no width."""
