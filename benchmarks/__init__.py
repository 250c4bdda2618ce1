"""Benchmark suites: one `suite_NAME.py` each; what a large one needs is a package beside it."""
