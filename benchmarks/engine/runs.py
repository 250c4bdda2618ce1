"""Engines started one after the other, each in a process of its own."""

import importlib.metadata
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from benchmarks.programs import command_of, environment

LOG_FOLDER = "HISPARSE_ENGINE_LOGS"  # environment: where engines' logs are kept
Load: TypeAlias = tuple[int, int, int]  # context tokens, requests at once, new tokens of each
_MOST_SECONDS = 900.0  # the first start on a machine compiles for minutes


@dataclass(frozen=True)
class Work:
    """What an engine is asked.

    Attributes:
        prompts: answered all at once.
        new_tokens: of each answer.
        loads: timed, one after the other.
    """

    prompts: Sequence[Sequence[int]] = ()
    new_tokens: int = 8
    loads: Sequence[Load] = ()


@dataclass(frozen=True)
class Served:
    """What came of it, as far as the engine came.

    Attributes:
        answers: token ids for each prompt.
        loads: see `benchmarks.engine.child`.
        failure: the end of its log; "" = it did all of its work.
    """

    answers: list[list[int]] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""


def sglang_version() -> str:
    """Of the installed SGLang; "" = there is none."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return ""


def serve(
    name: str,
    engine: dict[str, Any],
    work: Work,
    program: str = "child",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Served:
    """Starts an engine with these arguments, gives it the work and ends it.

    Args:
        name: of its log.
        engine: keyword arguments of `sglang.Engine`.
        work: what it is asked.
        program: the module of this package that does it.
        variables: of the environment, added to those of this process.
    """
    with tempfile.TemporaryDirectory(prefix="hisparse-engine-") as folder:
        work_file, result_file = Path(folder) / "work.json", Path(folder) / "result.json"
        asked = {"prompts": list(work.prompts), "new_tokens": work.new_tokens}
        work_file.write_text(json.dumps({"engine": engine, **asked, "loads": list(work.loads)}))
        log_name = re.sub(r"[^A-Za-z0-9.]+", "-", name)
        log_file = Path(os.environ.get(LOG_FOLDER, folder)) / f"{log_name}.log"
        command = command_of(f"benchmarks.engine.{program}", work_file, result_file)
        failure = _run(command, log_file, {**environment(), **variables})
        done = json.loads(result_file.read_text()) if result_file.exists() else {}
        return Served(**done, failure=failure)


def _run(command: list[str], log_file: Path, variables: dict[str, str]) -> str:
    with log_file.open("w") as log:
        try:
            subprocess.run(
                command,
                check=True,
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_MOST_SECONDS,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return log_file.read_text(errors="replace")[-2000:]
    return ""
