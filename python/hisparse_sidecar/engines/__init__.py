"""Adapters to model engines: the only modules that import an engine or use its words."""
