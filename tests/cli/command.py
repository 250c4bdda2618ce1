"""Run the real `hisparse` in a process of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one object on stdout; anything beside it fails to parse."""
        return json.loads(self.stdout)


def run_hisparse(*arguments: str, timeout_seconds: float = 120.0) -> Finished:
    """Run `hisparse` with arguments and wait for its end."""
    command = [sys.executable, "-m", "hisparse_sidecar.cli", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)
