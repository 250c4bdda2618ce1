"""Files of the file tier stay open: the process may open as many as there can be, or it is told."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hisparse_sidecar import Sidecar, SidecarConfig
from hisparse_sidecar.config import TiersConfig
from tests.pipeline.world import small_config

pytestmark = pytest.mark.cpu_only

NUM_FILES, SEGMENT_BYTES = 1500, 1 << 20
START = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (600, int(sys.argv[2])))
from tests.pipeline.test_descriptor_limit import config_of
from hisparse_sidecar import Sidecar
with Sidecar(config_of(Path(sys.argv[1]))):
    sys.stdout.write(f"{resource.getrlimit(resource.RLIMIT_NOFILE)}")
"""


def config_of(folder: Path) -> SidecarConfig:
    """A file tier of up to `NUM_FILES` files."""
    tiers = TiersConfig(
        file_directory=str(folder / "pages"),
        file_bytes=NUM_FILES * SEGMENT_BYTES,
        segment_bytes=SEGMENT_BYTES,
        probe_seconds=0.0,
    )
    return replace(small_config(), tiers=tiers)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """A soft limit below what the files take, and a hard one above."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * NUM_FILES:
        pytest.skip(f"the hard limit is {hard} here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def few_files(folder: Path) -> SidecarConfig:
    """A file tier of up to 8 larger files."""
    config = config_of(folder)
    return replace(config, tiers=replace(config.tiers, file_bytes=8 * SEGMENT_BYTES))


def start_with_hard_limit(limit: int, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START, str(folder), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("few_descriptors")
def test_the_soft_limit_is_raised_for_the_files_and_what_else_is_open(tmp_path: Path) -> None:
    with Sidecar(config_of(tmp_path)):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == NUM_FILES + 1024


@pytest.mark.usefixtures("few_descriptors")
def test_files_that_are_there_count_where_there_may_be_fewer_by_now(tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(NUM_FILES):
        (folder / f"segment-{number:08x}").touch()
    with Sidecar(few_files(tmp_path)):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == NUM_FILES + 1024


@pytest.mark.usefixtures("few_descriptors")
def test_a_limit_that_suffices_stays(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8 + 1024, hard))
    with Sidecar(few_files(tmp_path)):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 8 + 1024


@pytest.mark.usefixtures("few_descriptors")
def test_a_hard_limit_that_leaves_little_for_all_else_is_used_up(tmp_path: Path) -> None:
    hard = NUM_FILES + 600
    started = start_with_hard_limit(hard, tmp_path)
    assert started.stdout == f"({hard}, {hard})", started.stderr


def test_a_hard_limit_that_is_too_low_is_told_at_the_start(tmp_path: Path) -> None:
    ended = start_with_hard_limit(800, tmp_path)
    assert ended.returncode != 0
    assert "InvalidArgument" in ended.stderr
    assert f"{NUM_FILES} files" in ended.stderr
    assert "hard limit is 800" in ended.stderr
