"""`hisparse info`: what it reads from the kernel's files, and its JSON."""

from pathlib import Path

import pytest

from cli.command import run_hisparse
from hisparse_sidecar.cli.system.copy_bandwidth import measure_copies
from hisparse_sidecar.cli.system.host import find_host_memory, parse_meminfo


def test_info_json_is_one_object_with_measured_numbers() -> None:
    done = run_hisparse("info", "--json", "--copy-mib", "8")

    assert done.exit_code == 0, done.stderr
    found = done.json
    assert set(found) == {"versions", "backends", "gpus", "host", "copies"}
    assert {"sidecar", "kernels", "core", "torch", "triton", "python"} <= set(found["versions"])
    assert [*found["backends"]] == ["reference", "triton", "gluon_sm100", "flash_mla"]
    assert found["backends"]["reference"] is None
    assert found["host"]["total_bytes"] >= found["host"]["available_bytes"] > 0
    for copy in found["copies"]:
        assert copy["copied_bytes"] == 8 << 20
        rate = copy["copied_bytes"] / copy["median_seconds"] / 1e9
        assert copy["gigabytes_per_second"] == pytest.approx(rate)


@pytest.mark.cpu_only
def test_a_backend_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = run_hisparse("info", "--json", "--copy-mib", "1").json["backends"]
    assert found["triton"].startswith("backend is 'triton' on device 'cpu', needs the interpreter")
    assert found["gluon_sm100"] == "backend is 'gluon_sm100' on device 'cpu', needs 10.0 or 10.3"
    assert found["flash_mla"] == "backend is 'flash_mla' on device 'cpu', needs a GPU of sm_90"


def test_info_shows_tables_without_json() -> None:
    done = run_hisparse("info", "--copy-mib", "1")
    assert done.exit_code == 0, done.stderr
    for title in ("versions", "backends", "GPU", "host", "copy bandwidth"):
        assert title in done.stdout


def test_meminfo_is_read_in_bytes_and_counts() -> None:
    text = "MemTotal:       1024 kB\nActive(anon):      4 kB\nHugePages_Total:       3\n"
    assert parse_meminfo(text) == {"MemTotal": 1 << 20, "Active": 4096, "HugePages_Total": 3}


def test_numa_nodes_and_huge_pages_come_from_the_kernels_files(tmp_path: Path) -> None:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    _write(
        proc / "meminfo",
        "MemTotal: 4096 kB\nMemAvailable: 2048 kB\nHugePages_Total: 7\n"
        "HugePages_Free: 5\nHugepagesize: 2048 kB\n",
    )
    _write(proc / "cpuinfo", "processor\t: 0\nmodel name\t: A Fine CPU\n")
    _write(sys / "kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    for node, cpus in ((0, "0-3"), (10, "8-11"), (2, "4-7")):
        folder = sys / f"devices/system/node/node{node}"
        _write(folder / "meminfo", f"Node {node} MemTotal:       {1024 * (node + 1)} kB\n")
        _write(folder / "cpulist", cpus + "\n")

    host = find_host_memory(proc, sys)

    assert (host.cpu, host.total_bytes, host.available_bytes) == ("A Fine CPU", 4 << 20, 2 << 20)
    pages = host.huge_pages
    assert (pages.page_bytes, pages.num_total, pages.num_free) == (2 << 20, 7, 5)
    assert pages.transparent == "madvise"
    nodes = [(node.node_id, node.total_bytes >> 20, node.cpus) for node in host.numa_nodes]
    assert nodes == [(0, 1, "0-3"), (2, 3, "4-7"), (10, 11, "8-11")]


def test_a_copy_of_no_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"copy of 0 bytes asked for, at least 1 needed"):
        measure_copies(0)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
