"""Calls between a translated module and the model: how types are passed, what is declared, how a kernel is entered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.ascend.hivm.module import SPACES, Argument
from tools.ascend.hivm.types import MemoryType, parse_type

SHORT = {"f16", "bf16"}
"""Passed by their bits, since hosts differ in how they pass them."""
INTERFACE = " attributes {llvm.emit_c_interface}"
_NAMES = {"f32": "float", "f16": "half", "bf16": "bfloat16_t"}


@dataclass(frozen=True)
class ScalarAccess:
    """The call by which the scalar unit reads or writes an element of such a memory."""

    loads: bool
    rank: int
    element: str

    @classmethod
    def of(cls, memory: MemoryType, *, loads: bool) -> ScalarAccess:
        """The one for this memory."""
        return cls(loads, memory.rank, memory.element)

    @property
    def name(self) -> str:
        """As the model has it."""
        element = _NAMES.get(self.element, f"int{self.element[1:]}_t")
        return f"hivm_{'load' if self.loads else 'store'}_{self.rank}d_{element}"

    @property
    def types(self) -> str:
        """Of the call, as it is passed."""
        strides = ", ".join("?" * self.rank)
        memory = f"memref<{'?x' * self.rank}{self.element}, strided<[{strides}], offset: ?>>"
        element = passed(self.element)
        return f"({memory}) -> {element}" if self.loads else f"({element}, {memory}) -> ()"

    @property
    def signature(self) -> str:
        """As the model's catalogue spells it."""
        memory = f"memref<{'?x' * self.rank}{self.element}>"
        return f"{memory} -> {self.element}" if self.loads else f"{self.element} {memory} -> "


def passed(kind: str) -> str:
    """How a value of this type is passed."""
    return "i16" if kind in SHORT else kind


def bitcast(to: str, source: str, kind: str, target: str) -> str:
    """The line that makes ``to`` of the bits of ``source``."""
    return f"    {to} = arith.bitcast {source} : {kind} to {target}"


def signature(kinds: Sequence[str]) -> str:
    """The types of a call without result, as the model's catalogue spells them."""
    return " ".join([*map(_spelled, kinds), "-> "])


def declarations(accesses: set[ScalarAccess], entries: Mapping[str, Sequence[Argument]]) -> Iterator[str]:
    """The calls of the model that a module may make."""
    yield "  func.func private @hivm_at(i64)"
    for space, (_, size, _) in SPACES.items():
        yield f"  func.func private @hivm_{space}(i64, i64) -> memref<{size}xi8>{INTERFACE}"
    for query in ("block_idx", "block_num", "sub_block_idx", "sub_block_num"):
        yield f"  func.func private @hivm_{query}() -> i64"
    for name in ("set_flag", "wait_flag"):
        yield f"  func.func private @hivm_{name}(i64, i64, i64)"
    yield "  func.func private @hivm_pipe_barrier(i64)"
    yield "  func.func private @hivm_block_set(i64, i64)"
    yield "  func.func private @hivm_block_wait(i64, i64)"
    for access in sorted(accesses, key=lambda access: access.name):
        yield f"  func.func private @{access.name}{access.types.removesuffix(' -> ()')}{INTERFACE}"
    for kind in sorted({argument.type for arguments in entries.values() for argument in arguments}):
        interface = INTERFACE if kind.startswith("memref") else ""
        yield f"  func.func private @{_argument_call(kind)}(i64) -> {passed(kind)}{interface}"


def entry(core: str, function: str, arguments: Sequence[Argument]) -> Iterator[str]:
    """A function without parameters that fetches the kernel's and calls it."""
    yield f"  func.func @hivm_entry_{core}() {{"
    names, kinds = [], []
    for argument in arguments:
        name, kind = f"%value{argument.index}", argument.type
        yield f"    %at{argument.index} = arith.constant {argument.index} : i64"
        fetched = name if passed(kind) == kind else f"%bits{argument.index}"
        yield f"    {fetched} = func.call @{_argument_call(kind)}(%at{argument.index}) : (i64) -> {passed(kind)}"
        if fetched != name:
            yield bitcast(name, fetched, passed(kind), kind)
        names.append(name)
        kinds.append(kind)
    yield f"    func.call @{function}({', '.join(names)}) : ({', '.join(kinds)}) -> ()"
    yield "    return"
    yield "  }"


def _argument_call(kind: str) -> str:
    """Which call of the model returns an argument of this type."""
    if kind.startswith("memref"):
        return f"hivm_buffer_{parse_type(kind).element}"
    return f"hivm_scalar_{kind}"


def _spelled(kind: str) -> str:
    if not kind.startswith("memref"):
        return "i64" if kind == "index" else kind
    memory = parse_type(kind)
    return f"memref<{'?x' * memory.rank}{memory.element}>"
