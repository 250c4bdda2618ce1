"""A Mooncake master on loopback for each test that wants one; skipped where it cannot run."""

from collections.abc import Iterator

import pytest

from hisparse_sidecar._core import InvalidArgument
from hisparse_sidecar.remote.local_store import LocalMaster, LocalOwner


@pytest.fixture
def master_to_come() -> Iterator[LocalMaster]:
    """One that nobody has started yet."""
    try:
        master = LocalMaster()
    except InvalidArgument as error:
        pytest.skip(str(error))
    yield master
    master.kill()


@pytest.fixture
def master(master_to_come: LocalMaster) -> LocalMaster:
    master_to_come.start()
    return master_to_come


@pytest.fixture
def owner(master: LocalMaster) -> Iterator[LocalOwner]:
    """Lends 64 MiB."""
    running = LocalOwner(master.address, 64 << 20)
    yield running
    running.kill()
