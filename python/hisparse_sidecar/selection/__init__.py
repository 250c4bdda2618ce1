"""Selectors: which token positions a query row attends to."""

from hisparse_sidecar.selection.contract import IndexKeys, KeptBlocks, SelectionQuery, Selector
from hisparse_sidecar.selection.registry import selector_for

__all__ = ["IndexKeys", "KeptBlocks", "SelectionQuery", "Selector", "selector_for"]
