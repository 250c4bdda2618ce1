"""What is in each wheel, and that the extension loads in other versions of Python."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repo.repository import ROOT, tracked_files

pytestmark = pytest.mark.slow  # they build; Cargo's target folder makes a second build short

LOAD_CORE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("hisparse_sidecar._core", sys.argv[1])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
region = core.HostRegion(1 << 20)
assert region.num_bytes == 1 << 20
print(core.core_version())
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder)]
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for maturin
    for project in (ROOT / "kernels", ROOT):
        built = subprocess.run(
            [*command, str(project)],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": search},
        )
        assert built.returncode == 0, built.stderr
    return folder


def contents(wheel: Path) -> set[str]:
    """Files of a wheel without its metadata folder."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n.split(".dist-info/")[1] for n in archive.namelist() if ".dist-info/" in n}


def tracked_below(folder: str) -> set[str]:
    return {name.removeprefix(folder) for name in tracked_files() if name.startswith(folder)}


def one_wheel(folder: Path, project: str) -> Path:
    (wheel,) = folder.glob(f"{project}-*.whl")
    return wheel


def test_the_kernels_wheel_holds_its_sources_and_nothing_else(wheels: Path) -> None:
    wheel = one_wheel(wheels, "hisparse_kernels")
    assert wheel.name.endswith("-py3-none-any.whl")
    sources = {name for name in tracked_below("kernels/") if name.startswith("hisparse_kernels/")}
    assert contents(wheel) == sources
    assert metadata(wheel) == {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}


def test_the_sidecar_wheel_holds_its_sources_and_one_abi3_library(wheels: Path) -> None:
    wheel = one_wheel(wheels, "hisparse_sidecar")
    assert re.search(r"-cp310-abi3-(many)?linux_[\w.]+\.whl$", wheel.name)
    libraries = {name for name in contents(wheel) if name.endswith(".so")}
    assert libraries == {"hisparse_sidecar/_core.abi3.so"}
    assert contents(wheel) - libraries == tracked_below("python/")
    extra = metadata(wheel) - {"METADATA", "WHEEL", "RECORD", "entry_points.txt"}
    assert "licenses/LICENSE" in extra
    assert all(name.startswith("licenses/") for name in extra)


def test_no_wheel_holds_a_path_of_the_machine_that_built_it(wheels: Path) -> None:
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                assert str(ROOT).encode() not in archive.read(name), f"{wheel.name}: {name}"


def other_pythons() -> list[str]:
    """One interpreter of each other supported version that this machine has."""
    found: dict[str, str] = {}
    for minor in range(10, 15):
        name = f"python3.{minor}"
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))
        candidates = [shutil.which(name), *map(str, installed)]
        runs = [path for path in candidates if path and _runs(path, minor)]
        if runs and minor != sys.version_info.minor:
            found[name] = runs[0]
    return list(found.values())


def _runs(path: str, minor: int) -> bool:
    script = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
    return subprocess.run([path, "-c", script], capture_output=True).returncode == 0


def test_the_extension_loads_in_every_other_python_of_this_machine(
    wheels: Path, tmp_path: Path
) -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other supported version of Python on this machine")
    with zipfile.ZipFile(one_wheel(wheels, "hisparse_sidecar")) as archive:
        library = archive.extract("hisparse_sidecar/_core.abi3.so", tmp_path)
    for python in pythons:
        command = [python, "-I", "-c", LOAD_CORE, library]
        loaded = subprocess.run(command, capture_output=True, text=True)
        assert loaded.returncode == 0, f"{python}: {loaded.stderr}"
        assert loaded.stdout.strip() == "0.1.0"
