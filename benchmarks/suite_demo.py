"""Suite `demo`: the demo's measures, beside the same model with everything in memory.

The peer of the bytes is a plain DSA cache with the same row layouts, computed from its shapes.
"""

from collections.abc import Iterator

from hisparse_sidecar.cli import output
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch
from hisparse_sidecar.cli.checkout import find_beside
from hisparse_sidecar.cli.demo.progress import DemoProgress
from hisparse_sidecar.cli.demo.report import DemoReport, RunReport
from hisparse_sidecar.cli.demo.run_demo import run_demo
from hisparse_sidecar.cli.demo.settings import DemoSettings

_IN_MEMORY, _PLAIN = "transformers, all in memory", "plain DSA cache"


def _measure(_: Stopwatch) -> Iterator[Measurement]:
    """One run: the tokens and counts are exact, the times are of this run alone."""
    settings = DemoSettings(find_beside("models/tiny-dsa"), find_beside("examples/text"))
    with DemoProgress(output.progress_console()) as progress:
        report = run_demo(settings, progress)
    for run in (report.flat, report.hisa):
        case = f"{run.index_source}, {settings.prompt_tokens} + {settings.new_tokens} tokens"
        yield from _quality(case, run)
        yield from _cost(case, run, report)


def _quality(case: str, run: RunReport) -> Iterator[Measurement]:
    equal, recall = run.tokens_equal_fraction, run.recall_mean
    yield Measurement(case, "tokens equal, share", equal, "higher", _IN_MEMORY, 1.0)
    yield Measurement(case, "facts found of all planted", run.facts_found, "higher")
    if recall is not None:
        yield Measurement(case, "recall@topk, mean of layers", recall, "higher")
    yield Measurement(case, "hot buffer hit rate", run.traffic.hot_hit_rate, "higher")
    yield Measurement(case, "block window hit rate", run.traffic.block_hit_rate, "higher")


def _cost(case: str, run: RunReport, report: DemoReport) -> Iterator[Measurement]:
    held, plain = run.device_bytes_per_token, report.plain_device_bytes_per_token
    yield Measurement(case, "device bytes a token", held, "lower", _PLAIN, plain)
    ours, reference = run.generation, report.reference
    peer_seconds = reference.prefill_seconds
    yield Measurement(case, "prefill s", ours.prefill_seconds, "lower", _IN_MEMORY, peer_seconds)
    if ours.tokens_per_second and reference.tokens_per_second:
        rates = ours.tokens_per_second, reference.tokens_per_second
        yield Measurement(case, "decode tokens/s", rates[0], "higher", _IN_MEMORY, rates[1])


SUITE = Suite("demo", "the demo's measures beside the model in memory (minutes)", "cpu", _measure)
