"""The engine's exceptions, all in one tree.

    UpwellError
    ├── InvalidRequest            the caller can mend it; names the parameter
    │   └── ContextLengthExceeded prompt and answer can never fit
    ├── ModelError                a model that cannot be loaded; one line, for a terminal
    │   ├── ModelNotFound         no such file, folder, alias or package
    │   ├── MalformedModel        a file that contradicts itself or its own size
    │   └── UnsupportedModel      a well-formed model that this build cannot run
    ├── ConfigError               flags that contradict each other or the model
    ├── FollowerFailed            another rank of a tensor parallel model is gone
    └── EngineDead                the engine process is gone; the request may be sent again

Messages are complete sentences that name the cause and, where there is one, the way out. They never hold a prompt.
"""

from __future__ import annotations


class UpwellError(Exception):
    """Root of every error that Upwell raises on purpose."""


class InvalidRequest(UpwellError):
    """A request that cannot be accepted as it is.

    Attributes:
        param: the request field at fault, as a path such as ``messages[0].content``, or None for the whole body.
        code: a stable machine-readable word, as in OpenAI's error objects.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus answer is longer than the model's context or than the whole KV cache."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ModelError(UpwellError):
    """A model that cannot be served."""


class ModelNotFound(ModelError):
    """Nothing is there under the given name."""


class MalformedModel(ModelError):
    """A model file whose contents contradict its format, itself or its size."""


class UnsupportedModel(ModelError):
    """A sound model that needs something this build does not have."""


class ConfigError(UpwellError):
    """Settings that cannot hold together."""


class FollowerFailed(UpwellError):
    """Another rank of a model has failed, without which no step can be computed.

    Attributes:
        expected: True for what would have been a ModelError or ConfigError here.
    """

    def __init__(self, rank: int, reason: str, *, expected: bool = False) -> None:
        super().__init__(f"rank {rank} of the tensor parallel processes failed: {reason}")
        self.rank = rank
        self.expected = expected


class EngineDead(UpwellError):
    """The engine process ended while the request was open."""
