import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks.together import STARTED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ranks.sock"


@pytest.fixture(autouse=True)
def _leave() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().leave()
    gc.collect()  # errors hold frames, and these regions: tests that count regions come after
