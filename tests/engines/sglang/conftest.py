"""Tests with the real SGLang, on the CPU; without it they are skipped, and say so."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.engines.sglang.prefix_world import CachingEngine

HAS_SGLANG = importlib.util.find_spec("sglang") is not None
FOLDER = Path(__file__).parent
NEEDS_SGLANG = ("test_plugin.py", "test_live_", "test_backend", "test_writers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs SGLang where it is not; its own warnings are no failures of ours."""
    skip = pytest.mark.skip(reason="SGLang is not installed: make test-engines")
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if not HAS_SGLANG and item.path.name.startswith(NEEDS_SGLANG):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def sglang() -> Iterator[None]:
    """SGLang with its plug-ins loaded, told that there is an H100: it asks when it starts."""
    from tests.engines.sglang.on_the_cpu import sglang_on_the_cpu

    with sglang_on_the_cpu():
        yield


@pytest.fixture
def caching(sglang: None, tmp_path: Path) -> Iterator[Callable[..., "CachingEngine"]]:
    """Makes engines with our prefix cache, under the options of a server that has it."""
    from tests.engines.sglang.prefix_world import CachingEngine
    from tests.engines.sglang.world import server_args

    options = "--attention-backend hisparse --enable-hisparse --disable-radix-cache"
    server_args(tmp_path, *options.split(), "--radix-cache-backend", "hisparse")
    made: list[CachingEngine] = []

    def make_one(**named: Any) -> CachingEngine:
        made.append(CachingEngine(**named))
        return made[-1]

    yield make_one
    for engine in made:
        engine.coordinator.destroy()
