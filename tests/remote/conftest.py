"""A Mooncake master on loopback for each test that wants one; skipped where it cannot run."""

from collections.abc import Iterator

import pytest

from hisparse_sidecar._core import InvalidArgument
from hisparse_sidecar.remote.local_store import LocalMaster, LocalOwner


@pytest.fixture
def master() -> Iterator[LocalMaster]:
    try:
        running = LocalMaster()
    except InvalidArgument as error:
        pytest.skip(str(error))
    running.start()
    yield running
    running.kill()


@pytest.fixture
def owner(master: LocalMaster) -> Iterator[LocalOwner]:
    """Lends 64 MiB."""
    running = LocalOwner(master.address, 64 << 20)
    yield running
    running.kill()
