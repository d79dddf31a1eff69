"""Small final HIVM modules, written call by call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.ascend_links import BUILT
from tools.ascend.hivm.execute import Program, Report, Value, build

FOLDER = BUILT
"""Where what is compiled is kept from run to run."""
ELEMENTS = {"f32": "float", "f16": "half", "bf16": "bfloat16_t", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t"}
_SPACE = "#hivm.address_space<{}>"


@dataclass(frozen=True)
class Operand:
    """A value of the module and its type."""

    name: str
    type: str


@dataclass
class Core:
    """The body of one function, and what it declares."""

    arguments: Sequence[str]
    lines: list[str] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)

    def new(self, operation: str, kind: str) -> Operand:
        operand = Operand(f"%v{len(self.lines)}", kind)
        self.lines.append(f"    {operand.name} = {operation}")
        return operand

    def constant(self, value: float, kind: str) -> Operand:
        text = f"{value:.9e}" if "f" in kind else str(value)
        return self.new(f"arith.constant {text} : {kind}", kind)

    def buffer(self, space: str, address: int, shape: str, element: str) -> Operand:
        """A buffer at a planned address, with nothing known of it but its rank."""
        at = self.constant(address, "i64")
        kind = f"memref<{shape}x{element}, {_SPACE.format(space)}>"
        cast = self.new(f"hivm.hir.pointer_cast({at.name}) : {kind}", kind)
        return self.dynamic(cast, shape.count("x") + 1, element, space)

    def argument(self, number: int, sizes: str, strides: str, offset: int = 0) -> Operand:
        """A part of an argument in global memory."""
        element, gm, at = self.arguments[number], _SPACE.format("gm"), self.constant(offset, "index")
        shape = "x".join(sizes.split(", "))
        kind = f"memref<{shape}x{element}, strided<[{strides}], offset: ?>, {gm}>"
        view = self.new(
            f"memref.reinterpret_cast %arg{number + 3} to offset: [{at.name}], sizes: [{sizes}], strides: [{strides}]"
            f" : memref<?x{element}, {gm}> to {kind}",
            kind,
        )
        return self.dynamic(view, sizes.count(",") + 1, element, "gm")

    def dynamic(self, operand: Operand, rank: int, element: str, space: str) -> Operand:
        strides = ", ".join("?" * rank)
        kind = f"memref<{'?x' * rank}{element}, strided<[{strides}], offset: ?>, {_SPACE.format(space)}>"
        return self.new(f"memref.cast {operand.name} : {operand.type} to {kind}", kind)

    def call(self, name: str, *operands: Operand) -> None:
        kinds = ", ".join(operand.type for operand in operands)
        names = ", ".join(operand.name for operand in operands)
        self.declared[name] = f"  func.func private @{name}({kinds}) attributes {{hacc.always_inline}}"
        self.lines.append(f"    func.call @{name}({names}) : ({kinds}) -> ()")

    def flag(self, verb: str, source: str, target: str, event: int = 0) -> None:
        self.lines.append(f"    hivm.hir.{verb}_flag[<PIPE_{source}>, <PIPE_{target}>, <EVENT_ID{event}>]")

    def sync(self, source: str, target: str) -> None:
        """What `target` does next comes after what `source` has been given."""
        self.flag("set", source, target)
        self.flag("wait", source, target)

    def barrier(self, pipe: str) -> None:
        self.lines.append(f"    hivm.hir.pipe_barrier[<PIPE_{pipe}>]")

    def block(self, verb: str, core: str, pipe: str, flag: int, *, waiting: str = "S") -> None:
        self.lines.append(f"    hivm.hir.sync_block_{verb}[<{core}>, <PIPE_{pipe}>, <PIPE_{waiting}>] flag = {flag}")

    def load(
        self, source: Operand, target: Operand, element: str, rank: int = 1, pad: tuple[int, float] = (0, 0)
    ) -> None:
        value = self.constant(pad[1], element)
        mode, left = self.constant(pad[0], "i32"), self.constant(0, "index")
        self.call(f"load_gm_to_ubuf_{rank}d_{ELEMENTS[element]}", source, target, mode, value, left)

    def store(self, source: Operand, target: Operand, element: str, rank: int = 1) -> None:
        self.call(f"store_ubuf_to_gm_{rank}d_{ELEMENTS[element]}", source, target, self.constant(0, "i32"))

    def matmul(
        self, name: str, operands: tuple[Operand, Operand, Operand], sizes: tuple[int, int, int], *, first: bool = True
    ) -> None:
        """A call of the matrix unit that leaves all flags to the library."""
        a, b, c = operands
        init = self.new(f"arith.constant {'true' if first else 'false'}", "i1")
        numbers = [self.constant(size, "index") for size in sizes]
        none = self.constant(-1, "i64")
        self.call(name, a, b, init, *numbers, c, *[none] * 7, self.constant(0, "i8"))

    def function(self, name: str, kinds: Sequence[int]) -> list[str]:
        gm, types = _SPACE.format("gm"), "hacc.arg_type = #hacc.arg_type"
        parameters = [
            f"%arg0: i64 {{{types}<ffts_base_address>}}",
            f"%arg1: memref<?xi8, {gm}> {{{types}<sync_block_lock>}}",
            f"%arg2: memref<?xi8, {gm}> {{{types}<workspace>}}",
            *(
                f"%arg{i + 3}: memref<?x{element}, {gm}> {{tt.tensor_kind = {kind} : i32}}"
                for i, (element, kind) in enumerate(zip(self.arguments, kinds, strict=True))
            ),
        ]
        parameters += [f"%arg{len(parameters) + i}: i32" for i in range(3)]
        head = f"  func.func @{name}({', '.join(parameters)}) attributes {{hacc.function_kind = "
        return [f"{head}#hacc.function_kind<DEVICE>}} {{", *self.lines, "    return", "  }"]


def module(arguments: Sequence[tuple[str, int]], *, cube: Core | None = None, vector: Core | None = None) -> str:
    """The text of a module with these buffers (element, kind) as arguments."""
    kinds = [kind for _, kind in arguments]
    vector = vector or Core([element for element, _ in arguments])
    cores = [(core, f"tiny_mix_{suffix}") for core, suffix in ((cube, "aic"), (vector, "aiv")) if core]
    if cube is None:
        cores = [(vector, "tiny")]
    declared = {name: line for core, _ in cores for name, line in core.declared.items()}
    lines = ["module attributes {} {", *declared.values()]
    for core, name in cores:
        lines += core.function(name, kinds)
    return "\n".join([*lines, "}"]) + "\n"


def program(arguments: Sequence[tuple[str, int]], *, cube: Core | None = None, vector: Core | None = None) -> Program:
    """The same, built."""
    return build(module(arguments, cube=cube, vector=vector), FOLDER)


def run(
    arguments: Sequence[tuple[str, int]],
    values: Sequence[Value],
    *,
    cube: Core | None = None,
    vector: Core | None = None,
    num_cores: int = 1,
) -> Report:
    """The same, run."""
    return program(arguments, cube=cube, vector=vector).run(values, num_cores)
