"""The benchmark harness: suites register here, are timed here, and become CSV rows here."""
