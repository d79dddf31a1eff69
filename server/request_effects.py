"""Fields of both APIs that change no token: which requests go first, and what is told with the answer or in the log."""

from __future__ import annotations

from typing import TypedDict

from msgspec import UNSET, UnsetType

from server.envelope import RequestRecord
from server.schemas import SamplingFields

_PRIORITIES = {"priority": -1, "auto": 0, "default": 0, "flex": 1}


class SaidWithAnswer(TypedDict):
    """Members of every answer; those of a stream's chunks, but for the metadata, which its first chunk has."""

    system_fingerprint: str
    service_tier: str | UnsetType
    metadata: dict[str, str] | UnsetType


def priority_of(request: SamplingFields) -> int:
    """By ``service_tier``; lower goes first."""
    return _PRIORITIES[request.service_tier or "default"]


def said_with_answer(request: SamplingFields, fingerprint: str) -> SaidWithAnswer:
    """What an answer says beside its choices and what they cost."""
    tier = request.service_tier
    return {
        "system_fingerprint": fingerprint,
        "service_tier": UNSET if tier is None else "default" if tier == "auto" else tier,
        "metadata": UNSET if request.metadata is None else request.metadata,
    }


def without_metadata(said: SaidWithAnswer) -> SaidWithAnswer:
    """What the chunks after the first say."""
    return said if said["metadata"] is UNSET else {**said, "metadata": UNSET}


def note_who(request: SamplingFields, record: RequestRecord) -> None:
    """Have the log say for whom the request is, as far as its client tells."""
    record.user = request.user or ""
    record.safety_identifier = request.safety_identifier or ""
