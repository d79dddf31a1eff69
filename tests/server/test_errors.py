"""ONE table: every exception of the tree has its answer there."""

from __future__ import annotations

import pytest

from engine.errors import ConfigError, ContextLengthExceeded, FollowerFailed, InvalidRequest, ModelError, UpwellError
from engine.types import ErrorInfo
from server.disconnect import ClientDisconnected
from server.errors import ERROR_TABLE, RequestRefused, answer_for, from_error_info, is_internal

NEVER_ANSWERED = {UpwellError, RequestRefused, ClientDisconnected, FollowerFailed}
"""Roots that nobody raises, the error that nobody is there to be told of, and one that EngineDead tells of."""


def leaves(cls: type[Exception]) -> set[type[Exception]]:
    """``cls`` and everything derived from it."""
    return {cls}.union(*(leaves(child) for child in cls.__subclasses__()))


def test_every_error_has_its_row_or_is_internal() -> None:
    internal = leaves(ModelError) | leaves(ConfigError)
    for cls in leaves(UpwellError) - NEVER_ANSWERED - internal:
        if cls.__module__ != "engine.errors" and not cls.__module__.startswith("server."):
            continue  # never crosses the socket
        assert any(base in ERROR_TABLE for base in cls.__mro__ if base is not Exception), cls


@pytest.mark.parametrize("error", [ModelError("/secret/path"), ConfigError("/secret/path"), KeyError("/secret/path")])
def test_what_has_no_row_says_nothing(error: Exception) -> None:
    answer = answer_for(error, "r-1")
    assert answer.status == 500
    assert is_internal(error)
    assert "/secret" not in answer.body.error.message
    assert (answer.body.error.param, answer.body.error.code) == (None, "internal_error")


def test_no_row_is_422_and_codes_are_words() -> None:
    for kind in ERROR_TABLE.values():
        assert kind.status in {400, 401, 404, 405, 408, 413, 415, 421, 429, 500, 503, 504}
        assert kind.code is None or kind.code.replace("_", "").isalpha()


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("context_length_exceeded", ContextLengthExceeded, 400),
        ("invalid_value", InvalidRequest, 400),
        ("new", UpwellError, 500),
    ],
)
def test_errors_that_the_engine_reports(code: str, kind: type[Exception], status: int) -> None:
    error = from_error_info(ErrorInfo(code, "Why.", "max_tokens"))
    assert isinstance(error, kind)
    answer = answer_for(error, "r-1")
    assert answer.status == status
    assert (answer.body.error.message, answer.body.error.param, answer.body.error.code) == ("Why.", "max_tokens", code)
