"""The `hisparse` command."""

from hisparse_sidecar.cli.main import main

__all__ = ["main"]
