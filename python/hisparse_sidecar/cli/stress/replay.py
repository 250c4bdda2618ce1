"""Replay files: the settings and the operations of a run that found something."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.dealer import Operation
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.errors import InvalidArgument

_VERSION = 1


def write_replay(
    path: Path, settings: StressSettings, operations: list[Operation], counts: Counts
) -> None:
    """Writes what `read_replay` needs, and what was found."""
    content = {
        "version": _VERSION,
        "settings": settings.to_json(),
        "found": counts.remarks,
        "operations": operations,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def read_replay(path: Path) -> tuple[StressSettings, list[Operation]]:
    """The settings and the operations of a file.

    Raises:
        InvalidArgument: it is no replay file of this version.
        OSError: it cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        version = content["version"]
        settings, operations = StressSettings.of(content["settings"]), content["operations"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"{path} is no replay file: {error}") from None
    if version != _VERSION:
        raise InvalidArgument(f"{path} has version {version}, needs {_VERSION}")
    return replace(settings, self_check=None), operations
