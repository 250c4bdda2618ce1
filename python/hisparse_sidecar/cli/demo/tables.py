"""The demo's report as tables for a reader."""

from collections.abc import Callable, Iterator

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hisparse_sidecar.cli.demo.report import DemoReport, RunReport
from hisparse_sidecar.cli.output import simple_table

_RUN_LINES: tuple[tuple[str, Callable[[RunReport], str]], ...] = (
    ("tokens equal to the reference", lambda run: f"{run.tokens_equal_fraction:.1%}"),
    ("needle found", lambda run: "yes" if run.needle_found else "NO"),
    ("recall@topk, mean", lambda run: _percent(run.recall_mean)),
    ("recall@topk, each layer", lambda run: " ".join(f"{r:.3f}" for r in run.recall.values())),
    ("hot-buffer hit rate", lambda run: f"{run.traffic.hot_hit_rate:.1%}"),
    ("block-window hit rate", lambda run: f"{run.traffic.block_hit_rate:.1%}"),
    (
        "KV rows moved in, decode",
        lambda run: _moved(run.traffic.rows_moved, run.traffic.rows_moved_bytes),
    ),
    (
        "index blocks missed, decode",
        lambda run: _moved(run.traffic.blocks_missed, run.traffic.blocks_read_bytes),
    ),
    ("index blocks streamed, prefill", lambda run: f"{run.traffic.prefill_blocks_moved:,}"),
    ("KV bytes streamed, prefill", lambda run: _size(run.traffic.prefill_rows_moved_bytes)),
    ("spilled to the host", lambda run: _size(run.traffic.spilled_bytes)),
    ("prefill", lambda run: f"{run.generation.prefill_seconds:.1f} s"),
    ("time per token", lambda run: _per_token(run.generation.tokens_per_second)),
)


def demo_tables(report: DemoReport) -> Iterator[RenderableType]:
    """Texts, results, bytes by tier, verdict."""
    yield _texts(report)
    yield _results(report)
    yield _tiers(report)
    yield _verdict(report)


def _texts(report: DemoReport) -> Panel:
    asked = report.prompt.asked
    lines = Text()
    lines.append(f"asked: {asked.question}  planted at token {asked.position:,}: {asked.digits}\n")
    texts = {"reference": report.reference.text}
    texts |= {run.index_source: run.generation.text for run in report.runs}
    for name, text in texts.items():
        lines.append(f"\n{name}: ", style="bold")
        lines.append(" ".join(text.split()))
    return Panel(lines, title="generated text", title_align="left")


def _results(report: DemoReport) -> Table:
    tokens = f"{len(report.prompt.token_ids):,} + {len(report.reference.token_ids)} tokens"
    title = f"{tokens}, backend {report.backend} on {report.device}"
    table = simple_table(title, "", "in memory", "flat, offloaded", "hisa, offloaded")
    reference = {
        "tokens equal to the reference": "reference",
        "needle found": "yes" if report.reference_found else "NO",
        "prefill": f"{report.reference.prefill_seconds:.1f} s",
        "time per token": _per_token(report.reference.tokens_per_second),
    }
    for label, show in _RUN_LINES:
        table.add_row(label, reference.get(label, ""), *(show(run) for run in report.runs))
    facts = len(report.prompt.needles)
    answered = [f"{run.facts_found} of {facts}" for run in report.runs]
    table.add_row("facts answered, each asked in turn", "", *answered)
    return table


def _tiers(report: DemoReport) -> Table:
    table = simple_table("bytes", "tier", "holds", "plain DSA cache", "flat", "hisa")
    num_tokens = report.flat.num_tokens
    for part in ("hot_buffer", "hot_tables", "block_window", "window_tables", "pooled_keys"):
        held = [_size(getattr(run.held, part)) for run in report.runs]
        table.add_row("device", part.replace("_", " "), "", *held)
    plain = report.plain_device_bytes_per_token
    device = [_size(run.held.device) for run in report.runs]
    table.add_row("device", "all of it", _size(plain * num_tokens), *device, style="bold")
    each = [f"{run.device_bytes_per_token:,.0f} B" for run in report.runs]
    table.add_row("device", "for each token", f"{plain:,} B", *each, style="bold")
    stage = _size(report.stage_bytes)
    table.add_row("device", "prefill stage, one layer", "", stage, stage)
    host = [_size(run.held.host) for run in report.runs]
    table.add_row("host", "pages of all layers", "", *host)
    return table


def _verdict(report: DemoReport) -> Text:
    seconds = f" ({report.total_seconds:.0f} s in all)"
    if report.holds:
        return Text(f"flat gave every token of the reference{seconds}", style="green")
    share = f"{report.flat.tokens_equal_fraction:.1%}"
    return Text(f"flat gave {share} of the reference's tokens, must give all{seconds}", style="red")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _moved(count: int, moved_bytes: int) -> str:
    return f"{count:,} ({_size(moved_bytes)})"


def _per_token(tokens_per_second: float | None) -> str:
    return "-" if tokens_per_second is None else f"{1e3 / tokens_per_second:.1f} ms"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
