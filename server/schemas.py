"""What clients may send: the request bodies of the API as typed structs, with the bounds of openapi.yaml.

Owned here: the shape, the types and the numeric bounds of every field, and the names of the fields that OpenAI's API
has and Upwell refuses. ``validation`` turns a body into one of these; nothing else builds them. A contract test holds
each field and bound to openapi.yaml. Every optional field is None when the client left it out or sent null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from engine.types import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS

MAX_CHOICES = 16
MAX_PROMPTS = 128
MAX_API_STOPS = 4
MAX_STOP_CHARS = 1000
MAX_INT32 = 2**31 - 1
MAX_METADATA = 16
MAX_NAME_CHARS = 64
MAX_OPAQUE_CHARS = 512
MAX_REGEX_CHARS = 1 << 16
MAX_LARK_CHARS = 1 << 18
MAX_ALTERNATIVES = 10_000

NOT_TEXT = "This model takes text, and no {}."
"""Why parts of messages that are no text are refused."""
FORMAT = "Send response_format of type '{}'."
"""What forms of answers are called here that other servers have fields for."""

ServiceTier = Literal["auto", "default", "flex", "priority"]

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=MAX_INT32)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT32)]
TokenKey = Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Meta(ge=-100, le=100)]
FunctionName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS, pattern="^[a-zA-Z0-9_.-]+$")]
Alternative = Annotated[str, Meta(min_length=1)]
MetadataKey = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
Opaque = Annotated[str, Meta(max_length=MAX_OPAQUE_CHARS)]


class RequestStruct(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every struct here has in common: unknown fields are refused.

    Attributes:
        refused_fields: names that are known and refused as such, and what to do instead, or nothing.
        refused_words: of a field, words that it cannot be here, and why or what else to send.
        as_absent: of a field, the value that asks for what is done anyway; it counts as null.
    """

    refused_fields: ClassVar[Mapping[str, str]] = {}
    refused_words: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    as_absent: ClassVar[Mapping[str, object]] = {}


class StreamOptions(RequestStruct, frozen=True, kw_only=True):
    """How a stream looks."""

    refused_fields: ClassVar = {"include_obfuscation": ""}
    as_absent: ClassVar = {"include_obfuscation": False}

    include_usage: bool | None = None


class UpwellOptions(RequestStruct, frozen=True, kw_only=True):
    """What Upwell is asked for beyond OpenAI's API."""

    usage: bool | None = None


class ContentPart(RequestStruct, frozen=True, kw_only=True):
    """One part of a message's content; a refusal is the assistant's, and has its text in another field."""

    refused_words: ClassVar = {
        "type": {
            "image_url": NOT_TEXT.format("images"),
            "input_image": NOT_TEXT.format("images"),
            "input_audio": NOT_TEXT.format("audio"),
            "audio_url": NOT_TEXT.format("audio"),
            "video_url": NOT_TEXT.format("video"),
            "input_video": NOT_TEXT.format("video"),
            "file": NOT_TEXT.format("files"),
        }
    }
    refused_fields: ClassVar = {
        "image_url": NOT_TEXT.format("images"),
        "input_audio": NOT_TEXT.format("audio"),
        "audio_url": NOT_TEXT.format("audio"),
        "video_url": NOT_TEXT.format("video"),
        "file": NOT_TEXT.format("files"),
        "prompt_cache_breakpoint": "Prompts are cached block by block, without being asked to.",
    }

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class JsonSchemaFormat(RequestStruct, frozen=True, kw_only=True):
    """A schema that the answer keeps to, strict or not."""

    name: FunctionName
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(RequestStruct, frozen=True, kw_only=True):
    """What form the answer has; of the other fields, the one that its type names."""

    refused_words: ClassVar = {
        "type": {"structural_tag": "Send a lark grammar instead.", "ebnf": "Send a lark grammar."}
    }

    type: Literal["text", "json_object", "json_schema", "regex", "choice", "lark"]
    json_schema: JsonSchemaFormat | None = None
    regex: Annotated[str, Meta(min_length=1, max_length=MAX_REGEX_CHARS)] | None = None
    choice: (
        Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_ALTERNATIVES)] | None
    ) = None
    lark: Annotated[str, Meta(min_length=1, max_length=MAX_LARK_CHARS)] | None = None


class Prediction(RequestStruct, frozen=True, kw_only=True):
    """What the answer is likely to be."""

    type: Literal["content"]
    content: str | list[ContentPart]

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content


class SamplingFields(RequestStruct, frozen=True, kw_only=True):
    """The fields that chat and text completions share.

    ``seed`` is bounded by ``SamplingParams``: its upper bound does not fit the bounds a struct can hold.
    """

    refused_words: ClassVar = {"service_tier": dict.fromkeys(("scale", "fast"), "")}
    refused_fields: ClassVar = {
        "guided_json": FORMAT.format("json_schema"),
        "guided_regex": FORMAT.format("regex"),
        "guided_choice": FORMAT.format("choice"),
        "guided_grammar": FORMAT.format("lark"),
        "structured_outputs": "Send response_format: its types are json_object, json_schema, regex, choice and lark.",
        "use_beam_search": "",
    }
    as_absent: ClassVar = {"use_beam_search": False}

    model: Annotated[str, Meta(min_length=1)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Meta(max_length=MAX_LOGIT_BIAS)] | None = None
    seed: int | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=MAX_API_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_STOP_TOKEN_IDS)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    service_tier: ServiceTier | None = None
    prompt_cache_key: Opaque | None = None
    safety_identifier: Opaque | None = None
    user: Opaque | None = None
    metadata: Annotated[dict[MetadataKey, Opaque], Meta(max_length=MAX_METADATA)] | None = None
    upwell: UpwellOptions | None = None

    @property
    def explain_usage(self) -> bool:
        """Whether the usage says where the time went."""
        return bool(self.upwell and self.upwell.usage)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.explain_usage or bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of POST /v1/completions.

    ``prompt`` is a text, a list of texts, a list of token ids, or a list of such lists; a mixture is refused later.
    With ``echo``, ``max_tokens`` may be 0.
    """

    refused_fields: ClassVar = SamplingFields.refused_fields | {
        "suffix": "Put it into the prompt, where the model has a form for it.",
        "prompt_embeds": "",
        "prompt_logprobs": "Send echo with logprobs.",
    }

    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_INT32)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None

    @property
    def prompt_logprobs(self) -> int | None:
        """How many alternatives to report with each token of the prompt; None for no log probabilities of it."""
        return self.logprobs if self.echo else None
