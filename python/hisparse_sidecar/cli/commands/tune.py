"""`hisparse tune`: measure where flat selection is faster than HISA, and keep it for the gate."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hisparse_sidecar.cli import output

if TYPE_CHECKING:
    import torch

    from hisparse_sidecar.selection.gate_table import Cell, GateTable, Grid
    from hisparse_sidecar.tuning.measure import TunePlan

_DESCRIPTION = """\
Time flat selection and HISA at a grid of lengths and rows, on index keys that are resident, and
write the table that the gate decides by. The file is read when a sidecar starts, for the GPU of its
name; its grids go before those of the same settings in the table that comes with the package. Grids
of other settings in it are kept.
"""
_EXAMPLES = """\
examples:
  hisparse tune
  hisparse tune --index-heads 32 --num-kept-blocks 128 --lengths 4096,8192,16384,32768
  hisparse tune --graphs --runs 50
  hisparse tune --device cpu --json --output table.json

Up to 256 rows are decode rows, each of a sequence of its own; more are a prefill chunk of one.
"""
_GRIDS = {  # lengths, rows
    "cuda": ("1024,2048,4096,8192,16384,32768,65536", "1,8,64,256,4096"),
    "cpu": ("1024,4096,16384", "1,4"),
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `tune` to the subcommands."""
    parser = subparsers.add_parser(
        "tune",
        help="measure where flat selection is faster than HISA",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:N (cuda if any)")
    add("--lengths", type=_integers, metavar="N,N", help="tokens of a sequence (1024 to 65536)")
    add("--rows", type=_integers, metavar="N,N", help="rows of a call (1,8,64,256,4096)")
    add("--index-heads", type=_integers, default=[64, 32], metavar="N,N", help="heads (64,32)")
    add("--num-kept-blocks", type=int, default=64, metavar="N", help="kept by HISA (%(default)s)")
    add("--block-tokens", type=int, default=128, metavar="N", help="size of a block (%(default)s)")
    add("--topk", type=int, default=2048, metavar="N", help="tokens chosen (%(default)s)")
    add("--warm-ups", type=int, default=3, metavar="N", help="untimed runs first (%(default)s)")
    add("--runs", type=int, default=20, metavar="N", help="timed runs of each (%(default)s)")
    add("--graphs", action="store_true", help="time CUDA graphs instead of launches")
    add("--output", type=Path, metavar="FILE", help="table to write (in the user's cache folder)")
    add("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write the table, show it."""
    from hisparse_sidecar.selection.gate import gpu_name
    from hisparse_sidecar.selection.gate_table import user_table_path, with_grids, write_table

    device = _device(args.device)
    gpu = gpu_name(device)
    path = args.output or user_table_path(gpu)
    grids, num_left_out = _measure(_plans(args, device))
    table = with_grids(path, gpu, grids)
    write_table(table, path)
    if num_left_out:
        message = f"left out {num_left_out} of the cells, the GPU's memory is too small for them"
        output.write_error("tune", message)
    _show(args, table, grids, path)
    return 0


def _device(name: str) -> "torch.device":
    from hisparse_sidecar.backends import best_device, find_device

    return find_device(best_device() if name == "auto" else name)


def _plans(args: argparse.Namespace, device: "torch.device") -> "list[TunePlan]":
    from hisparse_sidecar.selection.gate_table import Setting
    from hisparse_sidecar.tuning.measure import TunePlan

    lengths, rows = (_integers(text) for text in _GRIDS[device.type])
    return [
        TunePlan(
            Setting(heads, args.num_kept_blocks, args.block_tokens, args.topk),
            tuple(args.lengths or lengths),
            tuple(args.rows or rows),
            device,
            args.warm_ups,
            args.runs,
            args.graphs,
        )
        for heads in dict.fromkeys(args.index_heads)  # a table has one grid for each
    ]


def _measure(plans: "list[TunePlan]") -> "tuple[list[Grid], int]":
    """The grids, and how many cells did not fit; a bar on stderr counts the cells."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from hisparse_sidecar.tuning.measure import measure_grid

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    num_left_out = 0
    with Progress(*columns, TimeElapsedColumn(), console=output.progress_console()) as progress:
        task = progress.add_task("flat and HISA", total=sum(len(plan.cells) for plan in plans))

        def measured(cell: "Cell | None") -> None:
            nonlocal num_left_out
            num_left_out += cell is None
            progress.advance(task)

        grids = [measure_grid(plan, measured) for plan in plans]
    return grids, num_left_out


def _show(args: argparse.Namespace, table: "GateTable", grids: "list[Grid]", path: Path) -> None:
    if args.json:
        output.write_json({"path": str(path), "table": table.to_values()})
        return
    for grid in grids:
        setting = grid.setting
        title = f"{setting.index_heads} index heads, {setting.num_kept_blocks} kept blocks"
        shown = output.simple_table(title, "rows", "tokens", "flat us", "HISA us", "faster")
        for cell in sorted(grid.cells, key=lambda cell: (cell.rows, cell.length)):
            faster = "HISA" if cell.flat_us > cell.hisa_us else "flat"
            times = f"{cell.flat_us:.1f}", f"{cell.hisa_us:.1f}"
            shown.add_row(str(cell.rows), str(cell.length), *times, faster)
        output.write_result(shown)
    output.write_result(f"{table.gpu}: {path}")


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
