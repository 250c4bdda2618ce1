import re
import subprocess
from pathlib import Path

import pytest

from tests.repo.repository import ROOT, tracked_files, tracked_texts
from tools.check_file_sizes import MAX_LINES, oversized_files

THIS_FILE = Path(__file__).relative_to(ROOT).as_posix()
WEIGHTS = "models/tiny-dsa/"

# hosts that serve packages, and switches that name one
REGISTRY = re.compile(
    r"https?://[^\s\"'>)]*(/simple\b|registry|npmmirror|goproxy|index\.crates)"
    r"|--(extra-)?index-url|--find-links|PIP_INDEX_URL|UV_INDEX|GOPROXY="
)
# folders where somebody's checkout or home lies
MACHINE_PATH = re.compile(r"(?<![\w./])/(work|home|root|Users|mnt|workspace)/[\w.-]+")


def test_no_source_file_is_over_500_lines() -> None:
    assert oversized_files() == []


def test_the_size_check_names_a_long_file_and_passes_over_generated_ones(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    generated = tmp_path / "python" / "hisparse_sidecar" / "_proto"
    generated.mkdir(parents=True)
    for path in (tmp_path / "long.py", tmp_path / "long.md", generated / "x_pb2.py"):
        path.write_text("x\n" * (MAX_LINES + 1))
    (tmp_path / "fits.rs").write_text("x\n" * MAX_LINES)
    assert oversized_files(tmp_path) == [("long.py", MAX_LINES + 1)]


@pytest.mark.parametrize("pattern", [REGISTRY, MACHINE_PATH], ids=["registry", "machine path"])
def test_no_tracked_file_names_a_registry_or_a_path_of_one_machine(
    pattern: re.Pattern[str],
) -> None:
    found = [
        f"{name}: {match.group()}"
        for name, text in tracked_texts()
        if name != THIS_FILE
        for match in pattern.finditer(text)
    ]
    # Cargo's lock file says of every crate that it comes from the one public registry
    assert [line for line in found if not line.startswith("Cargo.lock: ")] == []


def test_every_make_target_in_a_document_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "demo", "test", "lint", "bench", "proto"} <= targets
    command = re.compile(r"^\$? *make ([a-z][a-z0-9-]*)", re.MULTILINE)
    for name in (name for name in tracked_files() if name.endswith(".md")):
        parts = re.split(r"^```.*$", (ROOT / name).read_text(), flags=re.MULTILINE)
        named = set(re.findall(r"`make ([a-z][a-z0-9-]*)", "".join(parts[0::2])))
        named |= set(command.findall("".join(parts[1::2])))
        assert named <= targets, name


def test_the_changelog_has_an_entry_for_the_version_of_both_packages() -> None:
    versions = {
        re.search(r'^version = "([^"]+)"', (ROOT / name).read_text(), re.MULTILINE)[1]
        for name in ("pyproject.toml", "kernels/pyproject.toml", "Cargo.toml")
    }
    assert len(versions) == 1
    section = (ROOT / "CHANGELOG.md").read_text().split(f"\n## {versions.pop()}", 1)[1]
    assert re.search(r"^- \w", section.split("\n## ")[0], re.MULTILINE)


def test_weights_and_demo_text_state_their_sources() -> None:
    tracked = set(tracked_files())
    assert {WEIGHTS + "NOTICE", WEIGHTS + "README.md", "LICENSE"} <= tracked
    texts = [name for name in tracked if name.startswith("examples/text/") and name.endswith("txt")]
    licence = (ROOT / "examples/text/LICENSE.md").read_text()
    assert texts
    assert all(f"`{Path(name).name}`" in licence for name in texts)
    total_bytes = sum((ROOT / name).stat().st_size for name in tracked if name.startswith(WEIGHTS))
    assert total_bytes < 32_000_000
