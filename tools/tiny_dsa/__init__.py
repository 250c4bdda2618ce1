"""Trains and evaluates `models/tiny-dsa`, from raw text to the exported checkpoint.

The commands, in their order: `prepare`, `train`, `evaluate`, `check_transformers`; each a module
of this package with --help.
"""
