"""Everything that `hisparse info` found, as one value, as JSON and as tables."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from hisparse_sidecar.cli.output import simple_table
from hisparse_sidecar.cli.system.copy_bandwidth import CopyBandwidth, measure_copies
from hisparse_sidecar.cli.system.gpu import Gpu, find_gpus
from hisparse_sidecar.cli.system.host import HostMemory, find_host_memory
from hisparse_sidecar.cli.system.versions import find_backends, find_versions

_GIB = float(1 << 30)


@dataclass(frozen=True)
class System:
    """What this machine has."""

    versions: dict[str, str | None]
    backends: dict[str, str | None]
    gpus: list[Gpu]
    host: HostMemory
    copies: list[CopyBandwidth]

    def to_json(self) -> dict[str, object]:
        """The one object of `hisparse info --json`."""
        return {
            "versions": self.versions,
            "backends": self.backends,
            "gpus": [gpu.to_json() for gpu in self.gpus],
            "host": self.host.to_json(),
            "copies": [copy.to_json() for copy in self.copies],
        }


def find_system(copied_bytes: int) -> System:
    """Look at the machine and measure its copies of `copied_bytes`."""
    return System(
        versions=find_versions(),
        backends=find_backends(),
        gpus=find_gpus(),
        host=find_host_memory(),
        copies=measure_copies(copied_bytes),
    )


def system_tables(system: System) -> Iterable[Table]:
    """Tables for a reader."""
    versions = [(name, version or "not installed") for name, version in system.versions.items()]
    yield _table("versions", versions)
    yield _table("backends", [(name, why or "runs") for name, why in system.backends.items()])
    yield _table("GPU", [(gpu.name, _describe_gpu(gpu)) for gpu in system.gpus] or [("none", "")])
    yield _table("host", _host_lines(system.host))
    yield _table("copy bandwidth", [(copy.route, _describe_copy(copy)) for copy in system.copies])


def _table(title: str, lines: Iterable[tuple[str, str]]) -> Table:
    table = simple_table(title, "", "")
    for name, value in lines:
        table.add_row(name, value)
    return table


def _describe_gpu(gpu: Gpu) -> str:
    memory = f"{gpu.memory_bytes / _GIB:.1f} GiB"
    return f"{memory}, capability {gpu.capability}, driver {gpu.driver or 'not reported'}"


def _describe_copy(copy: CopyBandwidth) -> str:
    size = f"{copy.copied_bytes / _GIB:.3g} GiB copied, median of {copy.num_runs}"
    return f"{copy.gigabytes_per_second:.2f} GB/s ({size})"


def _host_lines(host: HostMemory) -> Iterable[tuple[str, str]]:
    limit, pages = host.lock_limit_bytes, host.huge_pages
    yield "CPU", f"{host.cpu}, {host.num_cpus} usable"
    total, free = host.total_bytes / _GIB, host.available_bytes / _GIB
    yield "memory", f"{total:.1f} GiB, {free:.1f} GiB available"
    yield "locked memory", "no limit" if limit is None else f"at most {limit / _GIB:.3g} GiB"
    size = f"{pages.page_bytes >> 20} MiB"
    counts = f"{pages.num_free} of {pages.num_total} free"
    yield "huge pages", f"{size}, {counts}; transparent: {pages.transparent}"
    for node in host.numa_nodes:
        yield f"NUMA node {node.node_id}", f"{node.total_bytes / _GIB:.1f} GiB, CPUs {node.cpus}"
