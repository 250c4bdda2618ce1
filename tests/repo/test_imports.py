"""The arrows between the parts: who may import whom."""

import ast
import sys
from pathlib import Path

import pytest

from tests.repo.repository import ROOT, tracked_files

PACKAGE = "hisparse_sidecar"
ENGINES = {"sglang", "transformers", "vllm"}
PEERS = {"flash_mla"}
GRPC = {"grpc", "grpc_health", "grpc_reflection", "google"}

# from the ground up: a part, which is a folder or a file, imports parts before it alone
ORDER = (
    *("_core", "_proto", "errors", "requirements", "clopper_pearson", "layer_io"),
    *("side_stream", "uploads", "config", "backends", "tensor_checks"),
    *("remote", "ranks", "tiers", "stats", "step", "selection", "pipeline"),
    *("attention", "engine_rows", "sidecar", "tuning"),
    *("engine_stats", "wire", "client", "engines", "server", "cli"),
)
# part -> parts of the package that it must not reach, besides; "" is all that is not listed
FORBIDDEN_PARTS = {
    "": {"_proto", "cli", "client", "engines", "server", "wire"},
    "engines": {"_proto", "cli", "client", "pipeline", "server", "wire"},
    "wire": {"cli", "client", "engines", "pipeline", "server"},
    "client": {"cli", "engines", "pipeline", "server"},
    "server": {"cli", "client", "engines"},
    "cli": set(),
}
FORBIDDEN_LIBRARIES = {
    "": ENGINES | GRPC | {"rich"},
    "engines": GRPC | {"rich"},
    "wire": ENGINES | {"rich"},
    "client": ENGINES | {"rich"},
    "server": ENGINES | {"rich"},
    "cli": ENGINES,
}


def imported_names(path: Path) -> set[str]:
    """Every dotted name that the file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of_part(part: str) -> list[str]:
    prefix = f"python/{PACKAGE}/"
    found = []
    for name in tracked_files():
        first = name.removeprefix(prefix).split("/")[0]
        own = first if first in FORBIDDEN_PARTS else ""
        if name.startswith(prefix) and name.endswith(".py") and first != "_proto" and own == part:
            found.append(name)
    return found


@pytest.mark.parametrize("part", FORBIDDEN_PARTS)
def test_a_part_imports_only_along_the_arrows(part: str) -> None:
    files = files_of_part(part)
    assert files
    for name in files:
        for imported in imported_names(ROOT / name):
            library, *inner = imported.split(".")
            assert library not in FORBIDDEN_LIBRARIES[part], f"{name} imports {imported}"
            if library == PACKAGE and inner:
                assert inner[0] not in FORBIDDEN_PARTS[part], f"{name} imports {imported}"


def part_of(name: str) -> str:
    return name.removeprefix(f"python/{PACKAGE}/").split("/")[0].removesuffix(".py")


def test_imports_between_the_parts_go_down_only() -> None:
    files = [name for part in FORBIDDEN_PARTS for name in files_of_part(part)]
    files.remove(f"python/{PACKAGE}/__init__.py")
    assert {part_of(name) for name in files} == {*ORDER} - {"_core", "_proto"}
    for name in files:
        own = part_of(name)
        for imported in imported_names(ROOT / name):
            library, *inner = imported.split(".")
            if library == PACKAGE and inner[0] != own:
                assert ORDER.index(inner[0]) < ORDER.index(own), f"{name} imports {imported}"


def test_kernels_import_torch_and_triton_and_peers_in_a_file_of_their_own() -> None:
    files = [n for n in tracked_files() if n.startswith("kernels/") and n.endswith(".py")]
    allowed = {"torch", "triton", "hisparse_kernels"} | sys.stdlib_module_names
    assert files
    for name in files:
        libraries = {imported.split(".")[0] for imported in imported_names(ROOT / name)}
        own = {Path(name).stem} & PEERS
        assert libraries <= allowed | own, f"{name} imports {libraries - allowed}"


def test_the_core_crate_depends_on_no_python_gpu_or_async_crate() -> None:
    manifest = (ROOT / "rust/core/Cargo.toml").read_text()
    assert not {"pyo3", "cudarc", "tokio", "tonic"} & set(manifest.replace("=", " ").split())
