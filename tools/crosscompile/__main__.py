"""`python -m tools.crosscompile`: compile every kernel for sm_90 and sm_100, check, and print."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import hisparse_kernels.gpu
from tools.crosscompile.case import PRODUCTION, cases_of
from tools.crosscompile.checks import MATRIX_UNITS
from tools.crosscompile.coverage import kernels_in
from tools.crosscompile.report import CaseReport
from tools.crosscompile.run_cases import run_cases
from tools.crosscompile.stub_driver import refuse_interpreter
from tools.crosscompile.table import print_table

GPU_FOLDER = Path(hisparse_kernels.gpu.__path__[0])
_ARCHES = (90, 100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a check failed, 2 if nothing could be checked."""
    options = _parser().parse_args(arguments)
    try:
        refuse_interpreter()
        chosen = _chosen(options.cases or PRODUCTION, options.case)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    arches = options.arch or _ARCHES
    reports = run_cases(chosen, arches, options.jobs)
    failures = [line for report in reports for line in report.failure_lines()]
    # some kernels are for one of them alone
    if not options.cases and not options.case and set(arches).issuperset(_ARCHES):
        failures += _uncovered(reports)
    if options.json:
        found = [report.as_json() for report in reports]
        print(json.dumps({"cases": found, "failures": failures}, indent=1))
    else:
        print_table(reports, failures)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.crosscompile",
        description="Compile every Triton kernel, without a GPU, and check what came out. "
        "Exit status 1 if a check failed.",
    )
    parser.add_argument(
        "--arch",
        type=int,
        action="append",
        choices=sorted(MATRIX_UNITS),
        help="compute capability; may be repeated; 90 and 100 if left out",
    )
    parser.add_argument("--case", metavar="TEXT", help="only cases whose name has this text")
    parser.add_argument(
        "--cases",
        metavar="MODULE",
        action="append",
        help="module whose cases() are compiled, instead of the production ones",
    )
    parser.add_argument("--jobs", type=int, help="processes; as many as processors if left out")
    parser.add_argument("--json", action="store_true", help="everything found, for a program")
    return parser


def _chosen(modules: Sequence[str], text: str | None) -> list[tuple[str, str]]:
    """Module and name of each case; ValueError if there is none."""
    all_cases = [(module, case.name) for module in modules for case in cases_of(module)]
    chosen = [(module, name) for module, name in all_cases if (text or "") in name]
    if not chosen:
        raise ValueError(f"none of {len(all_cases)} cases has {text!r} in its name")
    return chosen


def _uncovered(reports: Sequence[CaseReport]) -> list[str]:
    compiled = {kernel.kernel for report in reports for kernel in report.kernels}
    missing = sorted(kernels_in(GPU_FOLDER) - compiled)
    return [f"{kernel}: no case compiles this kernel" for kernel in missing]


if __name__ == "__main__":
    raise SystemExit(main())
