"""The final HIVM module of bishengir-compile as upstream MLIR that runs on the host, and what the module holds.

Addresses of on-chip memory stay as planned: a ``pointer_cast`` becomes a view of an arena of the core that runs. Flags,
barriers and scalar accesses become calls of the model in ``csrc``; library calls stay calls. Every such call is
preceded by one that tells its line, so that a report names the line of the module. What is not known is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tools.ascend.hivm.interface import INTERFACE, ScalarAccess, bitcast, declarations, entry, passed, signature
from tools.ascend.hivm.module import SPACES, Argument, Module, PointerCast, UnalignedOperand, UnknownConstruct
from tools.ascend.hivm.types import MemoryType, OperandError, parse_type, split_types

PIPES = ("PIPE_S", "PIPE_V", "PIPE_M", "PIPE_MTE1", "PIPE_MTE2", "PIPE_MTE3", "PIPE_FIX", "PIPE_ALL")
_PLAIN = re.compile(
    r"(?:%[\w#:,% -]+ = )?(?:arith\.\w+|scf\.(?:for|if|yield|while|condition)|affine\.(?:apply|min|max)"
    r"|(?:func\.)?return|memref\.(?:cast|collapse_shape|expand_shape|reinterpret_cast|subview|view|dim)"
    r"|memref\.extract_strided_metadata)\b"
)


def translate(text: str) -> Module:
    """Translate what ``--save-temps`` leaves as ``module.hivm.opt.mlir``.

    Raises:
        UnknownConstruct: an operation, an attribute or a form of either that the model does not know.
    """
    return _Translation(text).run()


@dataclass
class _Translation:
    source: str
    out: list[str] = field(default_factory=list)
    number: int = 0
    function: str = ""
    temporaries: int = 0
    constants: dict[str, int] = field(default_factory=dict)
    types: dict[str, MemoryType] = field(default_factory=dict)
    casts: list[PointerCast] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    signatures: dict[str, str] = field(default_factory=dict)
    vector_operands: int = 0
    unaligned: list[UnalignedOperand] = field(default_factory=list)
    entries: dict[str, list[Argument]] = field(default_factory=dict)
    scalar_accesses: set[ScalarAccess] = field(default_factory=set)
    workspace_bytes: int = 0
    host: bool = False

    def run(self) -> Module:
        for number, line in enumerate(self.source.splitlines(), 1):
            self.number = number
            try:
                self.out += self.translated(line)
            except (OperandError, KeyError, IndexError, ValueError) as error:
                raise UnknownConstruct(f"line {self.number}: {line.strip()} ({error})") from error
        aic = [name for name in self.entries if name.endswith("_mix_aic")]
        aiv = [name for name in self.entries if name not in aic]
        if len(aiv) != 1 or len(aic) > 1:
            raise UnknownConstruct(f"functions of the device are {sorted(self.entries)}: not one kernel")
        end = max(i for i, line in enumerate(self.out) if line == "}")
        self.out[end:end] = [*declarations(self.scalar_accesses, self.entries)]
        self.out[-1:-1] = entry("vector", aiv[0], self.entries[aiv[0]])
        if aic:
            self.out[-1:-1] = entry("cube", aic[0], self.entries[aic[0]])
        return Module(
            text="\n".join(self.out) + "\n",
            kernel=aiv[0].removesuffix("_mix_aiv"),
            has_cube=bool(aic),
            arguments=tuple(self.entries[aiv[0]]),
            casts=tuple(self.casts),
            calls=dict(self.calls),
            signatures=self.signatures,
            vector_operands=self.vector_operands,
            unaligned=tuple(self.unaligned),
            workspace_bytes=self.workspace_bytes,
        )

    def fail(self, line: str) -> UnknownConstruct:
        return UnknownConstruct(f"line {self.number}: {line.strip()}")

    def translated(self, line: str) -> list[str]:
        """The lines that a line becomes."""
        words = line.strip()
        if not words or words.startswith(("#map", "//", "} else {")):
            return [line] if words else []
        if words.startswith("module"):
            return ["module {"]
        if words.startswith("}"):
            return [re.sub(r"^(\s*\}) \{.*\}$", r"\1", line)]
        if words.startswith("func.func"):
            return self.begin(line)
        if self.host:
            return [self.plain(line)]
        if "hivm.hir." in words:
            return self.hivm(line)
        if call := re.match(r"(?:func\.)?call @(\w+)\((.*?)\) : \((.*)\) -> \(\)$", words):
            return [*self.at(), *self.call(*call.groups())]
        if re.match(r"(?:%\w+ = )?memref\.(load|store)\b", words):
            return self.scalar_access(line)
        return [self.plain(line)]

    def plain(self, line: str) -> str:
        """An operation of an upstream dialect, without address spaces and without the compiler's attributes."""
        words = line.strip()
        if re.match(r"\^bb0\([^#]*\):$", words):  # the body of an scf.while
            return line
        if not _PLAIN.match(words):
            raise self.fail(line)
        if constant := re.match(r"(%[\w-]+) = arith\.constant (-?\d+) : (?:i\d+|index)$", words):
            self.constants[constant[1]] = int(constant[2])
        if view := re.match(r"(%\w+) = memref\.\w+ .* (?:to|into) (memref<.*>)$", words):
            self.types[view[1]] = parse_type(view[2])
        bare = re.sub(
            r"\s\{(?:to_be_bubbled_slice|markDCache\w+ = [^{}]*|[\w.]*producer[^{}]*)\}", "", without_spaces(line)
        )
        if "#h" in bare:
            raise self.fail(line)
        return bare

    def begin(self, line: str) -> list[str]:
        """The first line of a function, or the declaration of a library call."""
        if declared := re.match(r"\s*func\.func private @(\w+)\((.*)\) attributes \{.*\}\s*$", line):
            name, types = declared[1], without_spaces(declared[2])
            self.signatures[name] = signature(split_types(types))
            return [f"  func.func private @{name}({', '.join(map(passed, split_types(types)))}){INTERFACE}"]
        head = re.match(r"\s*func\.func @(\w+)\((.*?)\)((?: -> \w+)?) attributes \{(.*)\} \{$", line)
        if not head:
            raise self.fail(line)
        name, parameters, result, attributes = head.groups()
        self.function, self.constants, self.types = name, {}, {}
        self.host = "function_kind<HOST>" in attributes
        if self.host:
            self.read_workspace(name)
            return [f"  func.func @{name}({without_spaces(parameters)}){result} {{"]
        arguments = list(_arguments(parameters))
        self.entries[name] = arguments
        spelled = ", ".join(f"%arg{a.index}: {a.type}" for a in arguments)
        return [f"  func.func @{name}({spelled}){result} {{"]

    def read_workspace(self, name: str) -> None:
        if name.endswith("infer_workspace_shape_function"):
            rest = "\n".join(self.source.splitlines()[self.number :])
            constant = re.match(r"\s*%\w+ = arith\.constant (\d+) : index\s+return", rest)
            if not constant:
                raise self.fail(name)
            self.workspace_bytes = int(constant[1])

    def temporary(self) -> str:
        self.temporaries += 1
        return f"%hivm{self.temporaries}"

    def constant(self, value: int) -> tuple[str, str]:
        """The name of a new i64 and the line that makes it."""
        name = self.temporary()
        return name, f"    {name} = arith.constant {value} : i64"

    def at(self) -> list[str]:
        name, line = self.constant(self.number)
        return [line, f"    func.call @hivm_at({name}) : (i64) -> ()"]

    def hivm(self, line: str) -> list[str]:
        """An operation of the HIVM dialect."""
        words = line.strip()
        for pattern, handle in _HIVM:
            if match := re.fullmatch(pattern, words):
                return [*self.at(), *handle(self, *match.groups())]
        if re.match(r"hivm\.hir\.(set_ffts_base_addr %\w+|set_mask_norm)$", words):
            return []
        raise self.fail(line)

    def pointer_cast(self, to: str, address: str, kind: str) -> list[str]:
        memory = parse_type(kind)
        if memory.space not in SPACES or memory.num_bytes is None:
            raise OperandError("not a buffer of known size in UB, L1 or L0C")
        self.types[to] = memory
        self.casts.append(
            PointerCast(self.number, self.function, memory.space, self.constants.get(address), memory.num_bytes)
        )
        size, size_line = self.constant(memory.num_bytes)
        base, index, space = self.temporary(), self.temporary(), f"memref<{SPACES[memory.space][1]}xi8>"
        return [
            size_line,
            f"    {base} = func.call @hivm_{memory.space}({address}, {size}) : (i64, i64) -> {space}",
            f"    {index} = arith.index_cast {address} : i64 to index",
            f"    {to} = memref.view {base}[{index}][] : {space} to {without_spaces(kind)}",
        ]

    def query(self, to: str, what: str) -> list[str]:
        return [f"    {to} = func.call @hivm_{what}() : () -> i64"]

    def flag(self, verb: str, source: str, target: str, event: str | None, register: str | None) -> list[str]:
        names, lines = zip(*(self.constant(PIPES.index(pipe)) for pipe in (source, target)), strict=True)
        if register is None:
            register, line = self.constant(int(event or 0))
            lines += (line,)
        return [*lines, f"    func.call @hivm_{verb}_flag({', '.join(names)}, {register}) : (i64, i64, i64) -> ()"]

    def barrier(self, pipe: str) -> list[str]:
        name, line = self.constant(PIPES.index(pipe))
        return [line, f"    func.call @hivm_pipe_barrier({name}) : (i64) -> ()"]

    def block_flag(self, verb: str, pipe: str, waiting: str, flag: str) -> list[str]:
        lines = []
        if not flag.startswith("%"):
            flag, line = self.constant(int(flag))
            lines.append(line)
        if verb == "wait":
            name, line = self.constant(PIPES.index(waiting))
            return [*lines, line, f"    func.call @hivm_block_wait({name}, {flag}) : (i64, i64) -> ()"]
        name, line = self.constant(PIPES.index(pipe))
        return [*lines, line, f"    func.call @hivm_block_set({name}, {flag}) : (i64, i64) -> ()"]

    def call(self, callee: str, operands: str, kinds: str) -> list[str]:
        """A call of the library."""
        self.calls[callee] += 1
        lines, names, types = [], [], []
        for operand, kind in zip(split_types(operands), split_types(kinds), strict=True):
            source = self.types.get(operand)
            in_ub = kind.endswith("address_space<ub>>")
            self.vector_operands += in_ub
            if in_ub and source is not None and not source.aligned:
                self.unaligned.append(UnalignedOperand(self.number, callee, source.text))
            name = operand
            if passed(kind) != kind:
                name = self.temporary()
                lines.append(bitcast(name, operand, kind, passed(kind)))
            names.append(name)
            types.append(passed(without_spaces(kind)))
        return [*lines, f"    func.call @{callee}({', '.join(names)}) : ({', '.join(types)}) -> ()"]

    def scalar_access(self, line: str) -> list[str]:
        """A load or store of one element by the scalar unit."""
        match = re.match(
            r"\s*(?:(%\w+) = memref\.load|memref\.store (%[\w-]+),) (%\w+)\[(.*?)\](?: \{[^{}]*\})? : (memref<.*>)$",
            line,
        )
        if not match:
            raise self.fail(line)
        result, value, source, indices, kind = match.groups()
        memory, element, cast = parse_type(kind), self.temporary(), self.temporary()
        access = ScalarAccess.of(memory, loads=bool(result))
        self.scalar_accesses.add(access)
        self.signatures[access.name] = access.signature
        ones, one = ", ".join("1" * memory.rank), memory.one_element()
        lines = [
            *self.at(),
            f"    {element} = memref.subview {source}[{indices}] [{ones}] [{ones}] : {without_spaces(kind)} to {one}",
            f"    {cast} = memref.cast {element} : {one} to {memory.dynamic()}",
        ]
        short, bits = passed(memory.element) != memory.element, self.temporary()
        if result:
            lines.append(f"    {bits if short else result} = func.call @{access.name}({cast}) : {access.types}")
            return [*lines, bitcast(result, bits, "i16", memory.element)] if short else lines
        if short:
            lines.append(bitcast(bits, value, memory.element, "i16"))
        return [*lines, f"    func.call @{access.name}({bits if short else value}, {cast}) : {access.types}"]


_Handler = Callable[..., list[str]]
_PIPE = r"<(PIPE_\w+)>"
_HIVM: tuple[tuple[str, _Handler], ...] = (
    (r"(%\w+) = hivm\.hir\.pointer_cast\((%[\w-]+)\)(?: \{[^{}]*\})? : (memref<.*>)", _Translation.pointer_cast),
    (r"(%\w+) = hivm\.hir\.get_((?:sub_)?block_(?:idx|num)) -> i64", _Translation.query),
    (rf"hivm\.hir\.(set|wait)_flag\[{_PIPE}, {_PIPE}, (?:<EVENT_ID(\d+)>|(%[\w-]+))\]", _Translation.flag),
    (rf"hivm\.hir\.pipe_barrier\[{_PIPE}\]", _Translation.barrier),
    (
        rf"hivm\.hir\.sync_block_(set|wait)\[<(?:CUBE|VECTOR)>, {_PIPE}, {_PIPE}\]"
        r" flag = (\d+|%[\w-]+)(?: ffts_base_addr = %\w+)?",
        _Translation.block_flag,
    ),
)


def without_spaces(text: str) -> str:
    """Types without their address spaces."""
    return re.sub(r", #hivm\.address_space<\w+>", "", text)


def _arguments(parameters: str) -> Iterator[Argument]:
    split = split_types(parameters)
    roles = {"ffts_base_address": "ffts", "sync_block_lock": "lock", "workspace": "workspace"}
    for index, parameter in enumerate(split):
        named = re.match(r"%arg(\d+): (memref<\?x(\w+), #hivm\.address_space<gm>>|\w+)(?: \{(.*)\})?$", parameter)
        if not named or int(named[1]) != index:
            raise OperandError(f"an argument that is not known: {parameter}")
        attributes = named[4] or ""
        special = re.search(r"arg_type<(\w+)>", attributes)
        kind = re.search(r"tt\.tensor_kind = (\d)", attributes)
        role = (
            roles[special[1]] if special else "buffer" if named[3] else "grid" if index >= len(split) - 3 else "scalar"
        )
        yield Argument(index, role, named[3] or named[2], int(kind[1]) if kind else None)
