"""Servers for the tests: in this process, and as a program of its own that can be killed."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import grpc
import pytest
import torch

from hisparse_sidecar import LayerOutputs, Session, SidecarConfig
from hisparse_sidecar.step.step import StepKind
from tests.pipeline.world import random_rows, small_config

START_SECONDS = 60.0
END_SECONDS = 20.0


def run_layers(session: Session, rows: list[tuple[int, int]], seed: int) -> list[LayerOutputs]:
    """Random rows through every layer of the open step."""
    count = sum(count for _, count in rows)
    config = session.config
    return [
        session.run_layer(layer, random_rows(config, layer, count, seed))
        for layer in range(config.model.num_layers)
    ]


def run_step(
    session: Session, rows: list[tuple[int, int]], seed: int, kind: StepKind = "prefill"
) -> list[LayerOutputs]:
    """One committed step of random rows."""
    session.begin_step(rows, kind)
    outputs = run_layers(session, rows, seed)
    session.end_step()
    return outputs


def assert_equal(found: list[LayerOutputs], wanted: list[LayerOutputs]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for name in ("out", "lse", "topk_indices"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def channel_to(path: Path) -> grpc.Channel:
    return grpc.insecure_channel(f"unix:{path}", (("grpc.use_local_subchannel_pool", 1),))


class ServerProgram:
    """`python -m hisparse_sidecar.server` on a socket in `folder`."""

    def __init__(self, folder: Path, config: SidecarConfig | None = None, *flags: str) -> None:
        self.socket_path = folder / "sidecar.sock"
        config_path = folder.parent / f"{folder.name}.json"
        config_path.write_text(json.dumps(asdict(config or small_config())))
        command = [sys.executable, "-W", "error", "-m", "hisparse_sidecar.server"]
        self._error_path = folder.parent / f"{folder.name}.stderr"
        with self._error_path.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command, "--socket", self.socket_path, "--config", config_path, *flags],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stderr=stderr,
            )

    @property
    def stderr(self) -> str:
        return self._error_path.read_text()

    def wait_until_it_listens(self) -> "ServerProgram":
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.stderr
            if "serving on" in self.stderr:
                return self
            time.sleep(0.02)
        raise AssertionError(f"the server does not listen: {self.stderr}")

    def end(self, number: int) -> int:
        """Sends a signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS)

    def __enter__(self) -> "ServerProgram":
        return self.wait_until_it_listens()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(END_SECONDS)


class SideClient:
    """A client of the side socket, byte by byte."""

    def __init__(self, socket_path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(END_SECONDS)
        self.socket.connect(f"{socket_path}.fd")

    def say(self, line: bytes) -> None:
        self.socket.sendall(line)

    def hear(self) -> tuple[str, list[int]]:
        """One answer and the descriptors that came with it."""
        received, descriptors, _, _ = socket.recv_fds(self.socket, 8192, 4)
        return received.decode(), descriptors

    def __enter__(self) -> "SideClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error = refused.value
    return error.code(), error.details(), dict(error.trailing_metadata() or ())  # type: ignore[attr-defined]
