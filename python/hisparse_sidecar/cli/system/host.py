"""Host memory, huge pages and NUMA nodes, as the kernel reports them."""

import os
import platform
import re
import resource
from dataclasses import asdict, dataclass
from pathlib import Path

_KIB = 1024


@dataclass(frozen=True)
class HugePages:
    """Preallocated huge pages of the default size, and the setting of transparent ones."""

    page_bytes: int
    num_total: int
    num_free: int
    transparent: str


@dataclass(frozen=True)
class NumaNode:
    """One NUMA node."""

    node_id: int
    total_bytes: int
    cpus: str


@dataclass(frozen=True)
class HostMemory:
    """Memory of this host; `lock_limit_bytes` is None where locked memory is not limited."""

    cpu: str
    num_cpus: int
    total_bytes: int
    available_bytes: int
    lock_limit_bytes: int | None
    huge_pages: HugePages
    numa_nodes: tuple[NumaNode, ...]

    def to_json(self) -> dict[str, object]:
        """All fields, nested."""
        return asdict(self)


def find_host_memory(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> HostMemory:
    """Read what the kernel says about this host's memory."""
    meminfo = parse_meminfo((proc / "meminfo").read_text())
    return HostMemory(
        cpu=cpu_model(proc),
        num_cpus=len(os.sched_getaffinity(0)),
        total_bytes=meminfo["MemTotal"],
        available_bytes=meminfo["MemAvailable"],
        lock_limit_bytes=_lock_limit_bytes(),
        huge_pages=_huge_pages(meminfo, sys),
        numa_nodes=_numa_nodes(sys),
    )


def cpu_model(proc: Path = Path("/proc")) -> str:
    """Name of the first CPU, or the architecture where the kernel names none."""
    found = re.search(r"^model name\s*:\s*(.+)$", (proc / "cpuinfo").read_text(), re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def parse_meminfo(text: str) -> dict[str, int]:
    """Fields of /proc/meminfo or of a node's meminfo: bytes, or a count where no unit is given."""
    fields = re.findall(r"^(?:Node \d+ )?(\w+)(?:\([\w]+\))?:\s+(\d+)( kB)?$", text, re.MULTILINE)
    return {name: int(value) * (_KIB if unit else 1) for name, value, unit in fields}


def _lock_limit_bytes() -> int | None:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def _huge_pages(meminfo: dict[str, int], sys: Path) -> HugePages:
    setting = sys / "kernel/mm/transparent_hugepage/enabled"
    chosen = re.search(r"\[(\w+)\]", setting.read_text()) if setting.exists() else None
    return HugePages(
        page_bytes=meminfo.get("Hugepagesize", 0),
        num_total=meminfo.get("HugePages_Total", 0),
        num_free=meminfo.get("HugePages_Free", 0),
        transparent=chosen.group(1) if chosen else "absent",
    )


def _numa_nodes(sys: Path) -> tuple[NumaNode, ...]:
    folders = (sys / "devices/system/node").glob("node[0-9]*")
    return tuple(_numa_node(folder) for folder in sorted(folders, key=_node_id))


def _numa_node(folder: Path) -> NumaNode:
    meminfo = parse_meminfo((folder / "meminfo").read_text())
    cpus = (folder / "cpulist").read_text().strip()
    return NumaNode(node_id=_node_id(folder), total_bytes=meminfo["MemTotal"], cpus=cpus)


def _node_id(folder: Path) -> int:
    return int(folder.name.removeprefix("node"))
