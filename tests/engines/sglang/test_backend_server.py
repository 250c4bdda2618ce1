"""A server of SGLang with rows on the host, on a GPU: from its start to its end by SIGTERM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from benchmarks.engine.models import TINY_DSA
from benchmarks.engine.setups import CACHED_OFFLOAD, for_trained

_MOST_START_SECONDS, _MOST_END_SECONDS = 600, 30
_GIVEN_BACK = "the host pool is given back"
_SIZES = {"context_length": 16384, "max_running_requests": 8, "max_total_tokens": 1 << 17}


@pytest.mark.gpu
def test_a_server_with_aborted_requests_ends_soon_after_sigterm(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    with server(tmp_path / "log") as (process, port):
        wait_until_healthy(process, port, tmp_path / "log")
        askers = [Thread(target=ask, args=(port, request)) for request in range(12)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert ask(port, 0) == 16  # it still serves
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(2 * _MOST_END_SECONDS)
        seconds = time.monotonic() - start
    log = (tmp_path / "log").read_text(errors="replace")
    assert _GIVEN_BACK in log, log[-3000:]
    assert seconds < _MOST_END_SECONDS
    assert set(os.listdir("/dev/shm")) <= before


@contextmanager
def server(log: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A server in a process group of its own, and its port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    arguments = for_trained(CACHED_OFFLOAD).arguments(TINY_DSA, **_SIZES, port=port)
    command = [sys.executable, "-m", "sglang.launch_server", *options(arguments)]
    environment = {**os.environ, "SGLANG_DSA_PREFILL_DENSE_ATTN_KV_LEN_THRESHOLD": "0"}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env=environment
        )
        try:
            yield process, port
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def options(arguments: dict[str, Any]) -> Iterator[str]:
    """As a command line has them."""
    for name, value in arguments.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield str(value)


def wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _MOST_START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            if answer.status == 200:
                return
        time.sleep(1)
    pytest.fail(f"not healthy after {_MOST_START_SECONDS} s")


def ask(port: int, request: int) -> int:
    """Tokens of an answer; each third request goes away before it has one."""
    prompt = [(7 * at + 13 * request) % 500 + 2 for at in range(700 + 211 * request)]
    sampling = {"max_new_tokens": 16, "temperature": 0, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling}).encode()
    sent = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(sent, timeout=0.05 if request % 3 == 2 else 120) as answer:
            return len(json.load(answer)["output_ids"])
    except (TimeoutError, urllib.error.URLError):
        return 0
