"""Modules of this checkout that run in processes of their own."""

import os
import sys


def command_of(module: str, *arguments: object) -> list[str]:
    """What runs a module by this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """In which it finds what this process finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
