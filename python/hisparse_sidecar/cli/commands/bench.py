"""`hisparse bench`: run benchmark suites, write their rows to CSV files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hisparse_sidecar.cli import output

if TYPE_CHECKING:
    from hisparse_sidecar.cli.bench.run_suites import BenchReport, SuiteList
    from hisparse_sidecar.cli.bench.suite import Suite

_EXAMPLES = """\
examples:
  hisparse bench --list
  hisparse bench core copy
  hisparse bench reference_step --out /tmp/results --runs 50 --plot
  hisparse bench attend swap step --runs 10 --replace --plot
  hisparse bench ops --cases "sparse_mla|topk" --replace
  hisparse bench select --cases "decode batch 1," --plot
  hisparse bench --draw benchmarks/results/ops-nvidia-h200.csv
  hisparse bench --json > rows.json

Rows go to OUT/SUITE-GPU.csv (SUITE-cpu.csv for suites that run on the CPU). A row replaces the one
with the same suite, case, metric and peer; other rows of the file stay, unless --replace is given.
A ratio above 1 means that ours is better. Without a name all suites run; those that need a GPU are
left out where there is none.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `bench` to the subcommands."""
    parser = subparsers.add_parser(
        "bench",
        help="run benchmark suites",
        description="Time warm runs of benchmark suites, beside their peers where one loads.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help="suites to run (all of them)")
    add("--list", action="store_true", help="list the suites and stop")
    add("--suites-dir", type=Path, metavar="DIR", help="folder of suite_*.py (benchmarks/)")
    add("--out", type=Path, metavar="DIR", help="folder of the CSV files (benchmarks/results/)")
    add("--replace", action="store_true", help="start each CSV file over instead of merging")
    add("--warm-ups", type=int, default=3, metavar="N", help="untimed runs first (%(default)s)")
    add("--runs", type=int, default=30, metavar="N", help="timed runs of each case (%(default)s)")
    add(
        "--cases",
        default="",
        metavar="REGEX",
        help="only cases that it finds (suites of many cases)",
    )
    add("--draw", type=Path, nargs="+", metavar="CSV", help="draw results files and stop")
    add("--plot", action="store_true", help="draw each CSV file as a PNG beside it")
    add("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen suites, or list them."""
    from hisparse_sidecar.cli.bench import run_suites
    from hisparse_sidecar.cli.bench.suite import choose_suites, load_suites
    from hisparse_sidecar.cli.bench.timing import Stopwatch
    from hisparse_sidecar.cli.checkout import find_beside

    folder = args.suites_dir or find_beside("benchmarks")
    suites = load_suites(folder)
    chosen = choose_suites(suites, args.suites)
    if args.list:
        return _show(args, run_suites.SuiteList(chosen))
    if args.draw:
        return _show(args, run_suites.draw_files(suites, args.draw))
    if not args.suites:
        chosen = _leave_out_gpu_suites(chosen)
    out = args.out or folder / "results"
    results = run_suites.Results(out, args.replace, args.plot, checkout=folder)
    stopwatch = Stopwatch(args.warm_ups, args.runs, args.cases)
    return _show(args, run_suites.run_suites(chosen, stopwatch, results))


def _leave_out_gpu_suites(suites: "list[Suite]") -> "list[Suite]":
    import torch

    from hisparse_sidecar.cli.bench.suite import runnable_suites

    runnable, left_out = runnable_suites(suites, has_gpu=torch.cuda.is_available())
    if left_out:
        output.write_error("bench", f"left out, no GPU found: {', '.join(left_out)}")
    return runnable


def _show(args: argparse.Namespace, result: "BenchReport | SuiteList") -> int:
    if args.json:
        output.write_json(result.to_json())
    else:
        output.write_result(*result.tables())
    return 0
