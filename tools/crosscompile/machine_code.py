"""What ptxas made of a kernel: registers and spills from its log, code size from the cubin."""

import re
import struct
from dataclasses import dataclass

_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SERIAL_WGMMA = "wgmma.mma_async instructions are serialized"
_SECTION = struct.Struct("<IIQQQQIIQQ")  # an ELF64 section header


@dataclass(frozen=True)
class Usage:
    """Registers of a thread, bytes that it spills, and whether ptxas gave up overlapping wgmma."""

    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    serial_wgmma: bool


def usage(ptxas_log: str) -> Usage:
    """Reads the output of `ptxas -v` for one kernel.

    Raises:
        ValueError: it is not such an output.
    """
    spills, registers = _SPILLS.search(ptxas_log), _REGISTERS.search(ptxas_log)
    if spills is None or registers is None:
        raise ValueError(f"ptxas told no registers or spills: {ptxas_log!r}")
    stores, loads = map(int, spills.groups())
    return Usage(int(registers[1]), stores, loads, _SERIAL_WGMMA in ptxas_log)


def code_bytes(cubin: bytes) -> int:
    """Size of all machine code in a cubin: its ELF sections `.text.*`."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    count, names_at = struct.unpack_from("<HH", cubin, 60)
    sections = [_SECTION.unpack_from(cubin, table + i * _SECTION.size) for i in range(count)]
    names = sections[names_at][4]
    return sum(
        section[5] for section in sections if cubin.startswith(b".text.", names + section[0])
    )
