"""`hisparse serve`: a real server from a file and flags, and what it refuses."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cli.command import run_hisparse
from hisparse_sidecar.cli.checkout import find_beside
from hisparse_sidecar.cli.demo.server_process import ServerProcess
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig

CONFIG = SidecarConfig(ModelShape(2, (0, 0), 4, 64, 0.125), host_pages=8, max_sequences=2)


def test_a_server_serves_the_configuration_of_its_file() -> None:
    with ServerProcess(CONFIG) as server, server.connect() as session:
        assert session.config.model == CONFIG.model
        assert session.config.host_pages == 8
        sequence = session.open(100, 28, selection=SelectionConfig("flat"))
        assert session.stats().core.sequences == 1
        session.close_sequence(sequence)
        folder = server.socket.parent
        assert folder.exists()
    assert not folder.exists()


def test_a_server_that_cannot_start_says_why() -> None:
    too_large = replace(CONFIG, hot_slots=1 << 40)
    with (
        ServerProcess(too_large) as server,
        pytest.raises(OSError, match=r"the server ended with code 1: (?s:.)*slots"),
    ):
        server.connect()


def test_serve_takes_the_shape_from_a_checkpoint_and_ends_on_sigterm(tmp_path: Path) -> None:
    socket = tmp_path / "s.sock"
    command = [sys.executable, "-m", "hisparse_sidecar.cli", "serve", "--json"]
    command += ["--socket", str(socket), "--model-dir", str(find_beside("models/tiny-dsa"))]
    command += ["--host-pages", "8", "--block-tokens", "64", "--index-source", "flat"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            _await(socket)
        finally:
            process.send_signal(signal.SIGTERM)
            stdout, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    served = json.loads(stdout)
    assert served["socket"] == str(socket)
    assert served["config"]["model"]["anchor_of"] == [0, 1, 2, 3]
    assert served["config"]["model"]["topk"] == 512
    assert served["config"]["host_pages"] == 8
    assert served["config"]["selection"]["index_source"] == "flat"
    assert not socket.exists()


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.json"
    file.write_text(json.dumps({**asdict(CONFIG), "hot_rows": 3}))
    done = run_hisparse("serve", "--socket", str(tmp_path / "s.sock"), "--config", str(file))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "hisparse serve: unknown key hot_rows; known keys: backend, block_tokens" in done.stderr


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    done = run_hisparse("serve", "--socket", str(tmp_path / "s.sock"), "--host-pages", "8")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "key model is missing" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "cuda:99"], "device is 'cuda:99', torch"),
        (["--device", "gpu"], "device is 'gpu', must be cpu, cuda or cuda:N"),
        (
            ["--backend", "cuda"],
            "backend is 'cuda', must be one of auto, flash_mla, gluon_sm100, reference, triton",
        ),
    ],
)
def test_a_device_or_backend_that_is_not_there_is_refused(
    flags: list[str], message: str, tmp_path: Path
) -> None:
    socket = tmp_path / "s.sock"
    where = ["--socket", str(socket), "--model-dir", str(find_beside("models/tiny-dsa"))]
    sizes = ["--host-pages", "8", "--block-tokens", "64"]
    done = run_hisparse("serve", *where, *sizes, *flags)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"hisparse serve: {message}")
    assert done.stderr.count("\n") == 1
    assert not socket.exists()


def _await(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
