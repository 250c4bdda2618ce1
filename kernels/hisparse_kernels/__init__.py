"""Tensor ops of hierarchical sparse attention: one op per file, each with its `_ref` twin."""
