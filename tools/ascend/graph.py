"""Graph capture on the CPU: a stand-in for torch.npu.NPUGraph and torch.npu.graph that keeps the device's rules.

A captured graph replays what was recorded, at the addresses and with the host's numbers of the capture. Code that is
right when it runs eagerly can so be wrong in a graph. The stand-in shows it on the CPU:

- Operations are recorded as the dispatcher sees them; ``replay`` runs them again and writes into the same tensors.
  A Python number, list or branch of the capture stays as it was.
- To bring data from the device to the host or back raises, as it does on the device (errors 107027 and 107030).
- A capture computes nothing: what it wrote is undone at its end, and its results hold NaN, or the largest integer,
  until the first replay.

What it cannot see: a copy from a host tensor that existed before the capture, since here all tensors are the host's;
a capture on one stream that waits for another; memory that the device's pool gives to a second graph.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

STREAM_IS_CAPTURED = 107027
MODE_FORBIDS = 107030

UPDATED = {"npu::npu_fused_infer_attention_score": ("actual_seq_lengths", "actual_seq_lengths_kv")}
"""Host lists that ``NPUGraph.update`` may replace, by operation, where auto_dispatch_capture is on."""

_WAITS_FOR_DEVICE = frozenset({
    "aten::_local_scalar_dense", "aten::bincount", "aten::equal", "aten::is_nonzero", "aten::item",
    "aten::masked_select", "aten::nonzero", "aten::repeat_interleave", "aten::_unique2", "aten::unique_consecutive",
    "aten::unique_dim",
})  # fmt: skip
_INDEXED = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
_TO_HOST = frozenset({"cpu", "numpy", "tolist", "__array__", "__dlpack__", "__repr__", "__format__", "pin_memory"})

_current: NPUGraph | None = None


class CaptureError(RuntimeError):
    """What the device answers to an operation that a capture does not allow."""

    def __init__(self, what: str, code: int) -> None:
        reason = "the stream is captured" if code == STREAM_IS_CAPTURED else "the capture mode does not support this"
        super().__init__(f"{what} during a graph capture: NPU function error, error code is {code} ({reason}).")


@dataclass
class _Recorded:
    """One operation of a graph: its arguments, and the tensors that it made."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: list[torch.Tensor | None]

    @property
    def name(self) -> str:
        return str(self.function._schema.name)

    def run(self) -> None:
        """Compute again, into the tensors of the capture."""
        results = tree_leaves(self.function(*self.args, **self.kwargs))
        for tensor, result in zip(self.made, results, strict=True):
            if tensor is None:
                continue
            if tensor.shape != result.shape:
                raise RuntimeError(f"{self.name} gives {list(result.shape)}, but {list(tensor.shape)} when captured.")
            tensor.copy_(result)


class NPUGraph:
    """Recorded operations, with the interface of torch.npu.NPUGraph. For one thread.

    Attributes:
        auto_dispatch_capture: whether ``update`` may replace host lists, set by ``graph``.
    """

    def __init__(self) -> None:
        self.auto_dispatch_capture = False
        self._recorded: list[_Recorded] = []
        self._captured = False
        self._waiting = False
        self._capture: contextlib.ExitStack | None = None
        self._recorder: _Recorder | None = None

    @property
    def operations(self) -> tuple[str, ...]:
        """What a replay runs, in order: "aten::add", "npu::npu_rms_norm"."""
        return tuple(recorded.name for recorded in self._recorded)

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        """Record from now on.

        Raises:
            RuntimeError: a capture is under way, or this graph has been captured already.
        """
        global _current  # noqa: PLW0603  (one capture at a time in a process, as on the device)
        if _current is not None:
            raise CaptureError("a second capture", STREAM_IS_CAPTURED)
        if self._captured:
            raise RuntimeError("this graph has been captured; reset it, or take another.")
        if capture_error_mode not in {"global", "thread_local", "relaxed"}:
            raise RuntimeError(f'capture_error_mode "{capture_error_mode}" is unknown.')
        self._recorder = _Recorder(self._recorded)
        self._capture = contextlib.ExitStack()
        self._capture.enter_context(_HostGuard())
        self._capture.enter_context(self._recorder)
        _current = self

    def capture_end(self) -> None:
        """Stop recording and undo what the recorded operations wrote."""
        self._stop()
        self._captured = True
        self._waiting = self.auto_dispatch_capture and any(self._updated())

    def abort(self) -> None:
        """Stop a capture that failed; the graph is empty then."""
        self._stop()
        self._recorded.clear()

    def replay(self) -> None:
        """Run what was recorded, into the same tensors.

        Raises:
            RuntimeError: nothing has been captured, or a list is to be updated before each replay and has not been: the
                device would wait for it.
        """
        if _current is not None:
            raise CaptureError("a replay", STREAM_IS_CAPTURED)
        if not self._captured:
            raise RuntimeError("this graph has not been captured.")
        if self._waiting:
            raise RuntimeError("this graph waits for its host lists: call update before each replay.")
        with torch.inference_mode():
            for recorded in self._recorded:
                recorded.run()
        self._waiting = self.auto_dispatch_capture and any(self._updated())

    def update(self, cpu_update_input: Sequence[dict[str, Any]]) -> None:
        """Replace host lists of the recorded attention calls: one dict for each, or one for all.

        Raises:
            RuntimeError: auto_dispatch_capture was off, there are not as many dicts as calls, or a key is not a list
                that can be replaced or was not in the captured call by keyword.
        """
        if not self.auto_dispatch_capture:
            raise RuntimeError("update needs a capture with auto_dispatch_capture=True.")
        calls = list(self._updated())
        inputs = list(cpu_update_input) * len(calls) if len(cpu_update_input) == 1 else list(cpu_update_input)
        if len(inputs) != len(calls):
            raise RuntimeError(f"{len(calls)} operations are to be updated, but there are {len(inputs)} elements.")
        for recorded, values in zip(calls, inputs, strict=True):
            for key, value in values.items():
                if key not in UPDATED[recorded.name] or key not in recorded.kwargs:
                    raise RuntimeError(f"{recorded.name} was not captured with a list {key} to update.")
                recorded.kwargs[key] = list(value)
        self._waiting = False

    def reset(self) -> None:
        """Forget the capture."""
        self._recorded.clear()
        self._captured = self._waiting = False

    def pool(self) -> tuple[int, int]:
        """A token for other captures; memory pools are not emulated."""
        return (0, id(self))

    def _updated(self) -> Iterator[_Recorded]:
        return (recorded for recorded in self._recorded if recorded.name in UPDATED)

    def _stop(self) -> None:
        global _current  # noqa: PLW0603
        if self._capture is None or self._recorder is None:
            raise RuntimeError("no capture of this graph is under way.")
        _current = None
        self._capture.close()
        self._recorder.undo()
        self._capture = self._recorder = None


class graph:  # noqa: N801  (as in torch.npu)
    """Context manager that captures into a graph, with the interface of torch.npu.graph; the stream has no meaning."""

    def __init__(
        self,
        npu_graph: NPUGraph,
        pool: object = None,
        stream: object = None,
        auto_dispatch_capture: bool = False,
        capture_error_mode: str = "global",
    ) -> None:
        self._graph = npu_graph
        self._mode = capture_error_mode
        self._graph.auto_dispatch_capture = auto_dispatch_capture

    def __enter__(self) -> Self:
        self._graph.capture_begin(capture_error_mode=self._mode)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._graph.capture_end()
        else:
            self._graph.abort()


def graph_pool_handle() -> tuple[int, int]:
    """A token for a memory pool, which is not emulated."""
    return (0, 0)


def is_current_stream_capturing() -> bool:
    """Whether a capture is under way."""
    return _current is not None


def synchronize(device: object = None) -> None:
    """Wait for the device: nothing here, and an error during a capture."""
    if _current is not None:
        raise CaptureError("synchronize", STREAM_IS_CAPTURED)


@contextlib.contextmanager
def emulated_graphs() -> Iterator[None]:
    """Put the stand-ins into torch.npu while entered; torch_npu must have been imported."""
    namespace = importlib.import_module("torch_npu").npu
    stand_ins: dict[str, Callable[..., Any]] = {
        "NPUGraph": NPUGraph,
        "graph": graph,
        "graph_pool_handle": graph_pool_handle,
        "is_current_stream_capturing": is_current_stream_capturing,
        "synchronize": synchronize,
    }
    before = {name: getattr(namespace, name) for name in stand_ins}
    try:
        for name, stand_in in stand_ins.items():
            setattr(namespace, name, stand_in)
        yield
    finally:
        for name, original in before.items():
            setattr(namespace, name, original)


class _Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch has no types where it is not installed
    """Records each operation that reaches the dispatcher, and what it will have to undo."""

    def __init__(self, recorded: list[_Recorded]) -> None:
        super().__init__()
        self._recorded = recorded
        self._made: set[int] = set()
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        _refuse_waiting(func, args, kwargs)
        self._remember(func, args, kwargs)
        result = func(*args, **kwargs)
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        leaves = tree_leaves(result)
        fresh = [isinstance(leaf, torch.Tensor) and _storage(leaf) not in given for leaf in leaves]
        if any(fresh) or func._schema.is_mutable:
            made = [leaf if new else None for leaf, new in zip(leaves, fresh, strict=True)]
            self._made.update(_storage(tensor) for tensor in made if tensor is not None)
            own_args, own_kwargs = tree_map(lambda leaf: leaf, (args, kwargs))  # lists that the caller cannot change
            self._recorded.append(_Recorded(func, own_args, own_kwargs, made))
        return result

    def undo(self) -> None:
        """Give tensors from before the capture their contents back, and spoil those that it made."""
        with torch.inference_mode():
            for storage, contents in self._before.values():
                storage.copy_(contents)
            for recorded in self._recorded:
                for tensor in recorded.made:
                    if tensor is not None:
                        tensor.fill_(_spoiled(tensor.dtype))

    def _remember(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the contents of what an operation is about to write to, unless the capture made it."""
        if not func._schema.is_mutable:
            return
        for index, argument in enumerate(func._schema.arguments):
            if not (argument.alias_info and argument.alias_info.is_write):
                continue
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in tree_leaves(value):
                if isinstance(tensor, torch.Tensor) and _storage(tensor) not in self._made | self._before.keys():
                    storage: Any = tensor.untyped_storage()
                    self._before[_storage(tensor)] = (storage, storage.clone())


class _HostGuard(TorchFunctionMode):  # type: ignore[misc]
    """Refuses what brings data to the host without passing the dispatcher, as on the CPU it needs no copy.

    torch takes the mode away while an operation runs, so what is inside of one may use the host.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _TO_HOST or (name == "to" and _names_device(args[1:], kwargs or {})):
            raise CaptureError(f"Tensor.{name}", MODE_FORBIDS)
        return func(*args, **(kwargs or {}))


def _refuse_waiting(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise for operations that wait for the device or copy from the host."""
    name = func._schema.name
    if name in _WAITS_FOR_DEVICE and kwargs.get("output_size") is None:
        raise CaptureError(name, STREAM_IS_CAPTURED)
    if name in _INDEXED:
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if any(index.dtype in {torch.bool, torch.uint8} for index in indices):
            raise CaptureError(f"{name} by a mask", STREAM_IS_CAPTURED)
    if name == "aten::lift_fresh" and args[0].dim() > 0:
        raise CaptureError("a tensor from the host's data", MODE_FORBIDS)


def _names_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, (str, torch.device)) for value in (*args, kwargs.get("device")))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _spoiled(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


__all__ = [
    "CaptureError",
    "NPUGraph",
    "emulated_graphs",
    "graph",
    "graph_pool_handle",
    "is_current_stream_capturing",
    "synchronize",
]
