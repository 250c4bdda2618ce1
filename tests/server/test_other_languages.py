"""A client that is not Python: `buf curl`, written in Go, knows the server by reflection alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hisparse_sidecar.server import SidecarServer

BUF = Path(sys.executable).parent / "buf"  # of the buf-bin wheel
CALL_SECONDS = 60.0
ROOT = Path(__file__).parents[2]


class BufCurl:
    """Calls the server; with the schema of the repository, or with what reflection tells."""

    def __init__(self, server: SidecarServer, folder: Path, schema: str) -> None:
        where = [] if schema == "reflection" else ["--schema", str(ROOT / "proto")]
        self._command = [
            *(str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
            *("--unix-socket", str(server.socket_path), *where),
        ]
        self._folder = folder

    def run(self, method: str, **request: object) -> "subprocess.CompletedProcess[str]":
        url = f"http://localhost/hisparse.v1.{method}"
        return subprocess.run(
            [*self._command, "--data", json.dumps(request), url],
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
        )

    def call(self, method: str, **request: object) -> dict:
        ended = self.run(method, **request)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def refusal(self, method: str, **request: object) -> dict:
        ended = self.run(method, **request)
        assert ended.returncode != 0
        return json.loads(ended.stderr)


@pytest.mark.parametrize("schema", ["reflection", "files"])
def test_another_language_opens_reads_and_closes(
    server: SidecarServer, tmp_path: Path, schema: str
) -> None:
    buf = BufCurl(server, tmp_path, schema)
    info = buf.call("SidecarService/GetServerInfo")
    assert info["config"]["model"]["topk"] == "48"
    assert info["backend"] == "reference"
    selection = {"indexSource": "INDEX_SOURCE_HISA", "numKeptBlocks": 3}
    opened = buf.call("SequenceService/OpenSequence", promptTokens=100, selection=selection)
    stats = buf.call("SidecarService/GetStats")
    assert stats["core"]["sequences"] == "1"
    assert stats["core"]["hostPagesFree"] == "62"
    assert buf.call("SequenceService/CloseSequence", **opened) == {}
    refused = buf.refusal("SequenceService/CloseSequence", **opened)
    assert refused["code"] == "failed_precondition"
    assert "generation" in refused["message"]
    refused = buf.refusal("SequenceService/OpenSequence", promptTokens=6400)
    assert refused["code"] == "resource_exhausted"
    assert refused["message"] == "host pool full: need 100 pages, 64 free of 64"
    assert "sequences" not in buf.call("SidecarService/GetStats")["core"]


def test_the_proto_files_pass_the_standard_lint_and_are_formatted() -> None:
    for command in (["lint"], ["format", "--diff", "--exit-code"]):
        ended = subprocess.run([BUF, *command], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
