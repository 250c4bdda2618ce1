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
resource.setrlimit(resource.RLIMIT_NOFILE, (600, 800))
from tests.pipeline.test_descriptor_limit import config_of
from hisparse_sidecar import Sidecar
Sidecar(config_of(Path(sys.argv[1])))
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


@pytest.mark.usefixtures("few_descriptors")
def test_the_soft_limit_is_raised_for_the_files_and_what_else_is_open(tmp_path: Path) -> None:
    with Sidecar(config_of(tmp_path)):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert NUM_FILES + 500 < soft <= hard


@pytest.mark.usefixtures("few_descriptors")
def test_a_limit_that_suffices_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    tiers = replace(config.tiers, file_bytes=8 * SEGMENT_BYTES)
    with Sidecar(replace(config, tiers=tiers)):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1024


def test_a_hard_limit_that_is_too_low_is_told_at_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "InvalidArgument" in ended.stderr
    assert f"{NUM_FILES} files" in ended.stderr
    assert "hard limit is 800" in ended.stderr
