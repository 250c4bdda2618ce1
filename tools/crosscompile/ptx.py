"""What a kernel's PTX says: matrix instructions, traps, and how wide each argument is accessed."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

WIDE_BYTES = 16

_INSTRUCTION = re.compile(
    r"^\s*(?:\w+:\s+)?(?:@!?%\w+\s+)?([a-z][\w.:]*)(?<!:)\s*(.*?);", re.MULTILINE
)
_REGISTER = re.compile(r"%\w+")
_ADDRESS = re.compile(r"\[\s*(%\w+)")
_PARAM = re.compile(r"\[\w+_param_(\d+)")
_VECTOR = re.compile(r"(?:\.v(\d))?\.[a-z]+(\d+)$")
_MATRIX = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
GATHER4 = "cp.async.bulk.tensor.2d.tile::gather4"
TMEM_LOAD, TMEM_STORE, PRODUCTS_TELL = "tcgen05.ld", "tcgen05.st", "tcgen05.commit"
AWAIT, EXPECT_BYTES = "mbarrier.try_wait", "mbarrier.arrive.expect_tx"
_ASYNC = (GATHER4, TMEM_LOAD, TMEM_STORE, PRODUCTS_TELL, AWAIT, EXPECT_BYTES)


@dataclass
class Widths:
    """Instructions between global memory and one argument, counted by the bytes that they move."""

    loads: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)

    @property
    def wide_share(self) -> float:
        """Share of the bytes that move 16 or more at a time."""
        both = [*self.loads.items(), *self.stores.items()]
        wide = sum(width * count for width, count in both if width >= WIDE_BYTES)
        return wide / max(sum(width * count for width, count in both), 1)


@dataclass
class Ptx:
    """The instructions of one kernel: opcode and operands, in order."""

    instructions: list[tuple[str, str]]

    @classmethod
    def parse(cls, text: str) -> "Ptx":
        """Reads the text; declarations and debug sections have no `;` and fall away."""
        return cls([(match[1], match[2]) for match in _INSTRUCTION.finditer(text)])

    @property
    def traps(self) -> bool:
        """Whether some path ends in `trap`; a kernel that overflows TMEM is nothing else."""
        return any(opcode == "trap" for opcode, _ in self.instructions)

    @property
    def rounds_to_tf32(self) -> bool:
        """Whether some product cuts fp32 operands down to 10 bits of mantissa."""
        return any("tf32" in opcode for opcode, _ in self.instructions)

    def matrix_counts(self) -> dict[str, int]:
        """How many instructions of each matrix unit."""
        return self._counts(_MATRIX)

    def async_counts(self) -> dict[str, int]:
        """How many instructions of each kind that pipelines of sm_100 are made of."""
        return self._counts(_ASYNC)

    def _counts(self, kinds: Iterable[str]) -> dict[str, int]:
        opcodes = [opcode for opcode, _ in self.instructions]
        counts = {kind: sum(opcode.startswith(kind) for opcode in opcodes) for kind in kinds}
        return {kind: count for kind, count in counts.items() if count}

    def widths(self, arguments: Mapping[int, str]) -> dict[str, Widths]:
        """Access widths of each pointer argument; an address out of shared memory is nobody's.

        Args:
            arguments: name of each pointer parameter, by its place among the parameters.
        """
        sources = _sources(self.instructions)
        found = {name: Widths() for name in arguments.values()}
        for kind, width, address in _accesses(self.instructions):
            for name in _arguments_behind(address, sources, arguments):
                counts = getattr(found[name], kind)
                counts[width] = counts.get(width, 0) + 1
        return found


def _accesses(instructions: Iterable[tuple[str, str]]) -> Iterator[tuple[str, int, str]]:
    """`loads` or `stores`, bytes, address register."""
    for opcode, operands in instructions:
        addresses = _ADDRESS.findall(operands)
        if opcode.startswith("cp.async.c") and "shared.global" in opcode and len(addresses) == 2:
            yield "loads", int(operands.split("]")[2].split(",")[1], 0), addresses[1]
        elif opcode.startswith(("ld.", "st.")) and ".global" in opcode and addresses:
            vector = _VECTOR.search(opcode)
            assert vector, opcode
            width = int(vector[1] or 1) * int(vector[2]) // 8
            yield ("loads" if opcode.startswith("ld.") else "stores"), width, addresses[0]


def _sources(instructions: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """For each register what it was computed from: registers, or `param N`; loads end the walk."""
    sources: dict[str, set[str]] = defaultdict(set)
    for opcode, operands in instructions:
        registers = _REGISTER.findall(operands)
        if opcode.startswith("ld.param"):
            param = _PARAM.search(operands)
            assert param, operands
            sources[registers[0]].add(f"param {param[1]}")
        elif registers and not opcode.startswith(("ld.", "st.", "atom.", "red.", "setp.")):
            sources[registers[0]].update(registers[1:])
    return sources


def _arguments_behind(
    address: str, sources: Mapping[str, set[str]], arguments: Mapping[int, str]
) -> set[str]:
    seen, waiting = {address}, [address]
    while waiting:
        new = sources.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    params = {int(source.split()[1]) for source in seen if source.startswith("param ")}
    return {arguments[param] for param in params if param in arguments}
