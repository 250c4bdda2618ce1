"""The environment columns of a benchmark row."""

import os
import subprocess
from pathlib import Path

import torch

from hisparse_sidecar.cli.bench.rows import Environment
from hisparse_sidecar.cli.system.gpu import driver_version
from hisparse_sidecar.cli.system.host import cpu_model
from hisparse_sidecar.cli.system.versions import find_versions


def find_environment(device: str, checkout: Path) -> Environment:
    """Describe what a suite's numbers were made on.

    Args:
        device: "cpu" or "cuda", the suite's own.
        checkout: folder of the suites; the commit of the repository that holds it is recorded.

    Raises:
        ValueError: the suite needs a GPU and torch sees none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the suite runs on a GPU: 0 found, 1 needed")
    on_gpu = device == "cuda"
    versions = find_versions()
    return Environment(
        gpu=torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        driver=(driver_version() or "") if on_gpu else "",
        torch=versions["torch"] or "",
        triton=versions["triton"] or "",
        commit=find_commit(checkout),
    )


def find_commit(checkout: Path) -> str:
    """Short commit of a checkout, "-dirty" if tracked files differ from it; "" outside of one."""
    describe = ["git", "-C", str(checkout), "describe", "--always", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _cpu_name() -> str:
    return f"cpu: {cpu_model()} ({len(os.sched_getaffinity(0))} cores)"
