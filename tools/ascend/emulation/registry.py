"""How an emulation is registered, and what happens around each call of one.

An emulation names the arguments of the schema that it knows. The layer around it, ``SchemaChecked``, fills in the
schema's defaults, refuses any other argument that is not at its default, runs it, and compares what it returns with
what the operation's meta kernel returns for the same arguments. It sits below the dispatcher, so a call is checked in
whatever thread it is made, inside other operations and when a captured graph is replayed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import torch
from torch.utils._pytree import tree_map_only

from tools.ascend.stubs import import_torch_npu

NAMESPACE = "npu"
SUBJECTS = ("norm", "quant", "cache", "moe", "attention", "sampling")

Emulation = Callable[..., Any]
Overload = Any
"""A ``torch._ops.OpOverload``, which torch does not type."""

WITHOUT_META = frozenset({"npu_format_cast", "get_npu_format"})
"""Operations that have no meta kernel: their results are held against the schema alone."""

META_NEEDS = {"npu_top_k_top_p": ("p", "k")}
"""Optional arguments without which a meta kernel fails, as its Python has no default for them."""

_emulations: dict[str, Emulation] = {}
_installed: list[Any] = []
_records: list[CallRecord] = []
_lock = threading.RLock()
_library: Any = torch.library.Library  # which torch does not type


class EmulationMismatch(AssertionError):
    """An emulation returned what the operation's schema or meta kernel does not."""


class CallRecord:
    """Counts the operations that are called while it is entered, in any thread.

    Attributes:
        counts: the calls that were made, checked and returned, by operation.
        refused: the calls that raised, by operation.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    @property
    def called(self) -> frozenset[str]:
        """Names of the operations that returned at least once."""
        return frozenset(self.counts)

    def __enter__(self) -> Self:
        with _lock:
            _records.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            _records.remove(self)


class SchemaChecked:
    """An emulation as the dispatcher calls it: between the schema and the meta kernel of one overload."""

    def __init__(self, overload: Overload, emulation: Emulation) -> None:
        self.name: str = overload._schema.name.partition("::")[2]
        self._overload = overload
        self._emulation = emulation
        code = emulation.__code__
        self._known = frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run and check one call.

        Raises:
            RuntimeError: the documentation says that the device refuses the call, or the emulation does not know an
                argument of it.
            EmulationMismatch: shapes, dtypes or writes are not those of the schema and the meta kernel.
        """
        try:
            values = self._bind(args, kwargs)
            versions = self._versions(values)
            result = self._emulation(**{name: values[name] for name in self._known})
            self._check_writes(values, versions)
            self._check_results(args, kwargs, values, result)
        except Exception:
            self._count("refused")
            raise
        self._count("counts")
        return result

    def _count(self, attribute: str) -> None:
        with _lock:
            for record in _records:
                getattr(record, attribute)[self.name] += 1

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of the schema by name, with its defaults; unknown ones must be at them."""
        values: dict[str, Any] = {}
        for index, argument in enumerate(self._overload._schema.arguments):
            default = argument.default_value
            value = args[index] if index < len(args) else kwargs.get(argument.name, default)
            if argument.name not in self._known and not _is_default(value, default):
                refuse(self.name, f"{argument.name} is not emulated")
            values[argument.name] = value
        return values

    def _versions(self, values: Mapping[str, Any]) -> dict[str, int]:
        return {
            name: value._version
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and not value.is_inference()
        }

    def _check_writes(self, values: Mapping[str, Any], versions: Mapping[str, int]) -> None:
        for argument in self._overload._schema.arguments:
            if argument.name not in versions or (argument.alias_info and argument.alias_info.is_write):
                continue
            if values[argument.name]._version != versions[argument.name]:
                raise EmulationMismatch(f"{self.name}: writes to {argument.name}, which its schema does not say")

    def _check_results(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], values: Mapping[str, Any], result: Any
    ) -> None:
        got = _results(result)
        returns = self._overload._schema.returns
        lists = any(str(value.type) == "List[Tensor]" for value in returns)
        if not lists and len(got) != len(returns):
            raise EmulationMismatch(f"{self.name}: {len(got)} results, but its schema has {len(returns)}")
        if self.name in WITHOUT_META or any(values[name] is None for name in META_NEEDS.get(self.name, ())):
            return
        with contextlib.redirect_stdout(io.StringIO()):  # one of the meta kernels prints
            wanted = _results(self._overload(*_on_meta(args), **_on_meta(kwargs)))
        if len(got) != len(wanted):
            raise EmulationMismatch(f"{self.name}: {len(got)} results, but its meta kernel has {len(wanted)}")
        for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
            if one.shape != other.shape or one.dtype != other.dtype:
                raise EmulationMismatch(
                    f"{self.name}: result {index} is {one.dtype}{list(one.shape)}, "
                    f"but its meta kernel says {other.dtype}{list(other.shape)}"
                )


def emulates(name: str) -> Callable[[Emulation], Emulation]:
    """Decorator: this function is what an overload of torch_npu, such as "npu_rms_norm", does.

    Its parameters are named as in the schema; those that it leaves out are refused unless at their defaults.
    """

    def register(emulation: Emulation) -> Emulation:
        _emulations[name] = emulation
        return emulation

    return register


def install() -> None:
    """Import torch_npu, on stubs, and register all emulations for CPU tensors. Does so once in a process.

    Raises:
        StubsUnavailable: torch_npu cannot be imported here.
    """
    with _lock:
        if _installed:
            return
        import_torch_npu()
        for subject in SUBJECTS:
            importlib.import_module(f"tools.ascend.emulation.{subject}")
        library = _library(NAMESPACE, "IMPL")
        for name, emulation in _emulations.items():
            library.impl(name, SchemaChecked(overload_of(name), emulation), "CPU")
        _installed.append(library)


def operators() -> tuple[str, ...]:
    """The overloads that have an emulation, sorted, once ``install`` has run."""
    return tuple(sorted(_emulations))


def overload_of(name: str) -> Overload:
    """The overload of torch_npu's with this name: "npu_rms_norm", or "npu_format_cast.Tensor"."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, NAMESPACE), packet), overload or "default")


def refuse(name: str, reason: str) -> NoReturn:
    """Raise the RuntimeError of a call that the device would not take."""
    raise RuntimeError(f"{name}: {reason}.")


def require(condition: bool, name: str, reason: str) -> None:
    """Refuse the call unless the condition holds."""
    if not condition:
        refuse(name, reason)


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, torch.Tensor) or (isinstance(value, list) and any(isinstance(v, torch.Tensor) for v in value)):
        return False
    return bool(value == default)


def _results(result: Any) -> list[Any]:
    if result is None:
        return []
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _on_meta(arguments: Any) -> Any:
    """The arguments with tensors that have shapes, strides and dtypes, and no values."""

    def to_meta(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    if isinstance(arguments, Mapping):
        return tree_map_only(torch.Tensor, to_meta, dict(arguments))
    return tree_map_only(torch.Tensor, to_meta, tuple(arguments))
