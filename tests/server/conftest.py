from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.server import SidecarServer
from tests.pipeline.world import small_config
from tests.server.serving import channel_to


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SidecarServer]:
    with SidecarServer(small_config(), tmp_path / "sidecar.sock") as running:
        yield running


@pytest.fixture
def session(server: SidecarServer) -> Iterator[RemoteSession]:
    with RemoteSession(server.socket_path) as opened:
        yield opened


@pytest.fixture
def channel(server: SidecarServer) -> Iterator[grpc.Channel]:
    with channel_to(server.socket_path) as opened:
        yield opened
