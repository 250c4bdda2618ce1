"""Durations as rows: their median and 99th percentile, beside those of a quiet time."""

from collections.abc import Iterator

from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.timing import summarize


def share_rows(
    case: str, what: str, seconds: list[float], quiet: list[float] | None = None, peer: str = ""
) -> Iterator[Measurement]:
    """Rows in ms; `quiet` are those of the same calls without the trouble, the peer's.

    Raises:
        ValueError: there was no such call.
    """
    if not seconds:
        raise ValueError(f"{case}: 0 calls of {what}, needs 1")
    ours, theirs = summarize(seconds), summarize(quiet) if quiet else None
    for share in ("median", "p99"):
        values = [getattr(one, f"{share}_seconds") for one in (ours, theirs) if one is not None]
        beside = (peer, 1e3 * values[1]) if theirs is not None else ()
        yield Measurement(case, f"{what}, {share} ms", 1e3 * values[0], "lower", *beside)
