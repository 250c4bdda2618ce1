"""Parse the command line, run one subcommand, turn its errors into an exit code."""

import argparse
from collections.abc import Sequence

from hisparse_sidecar.cli import output
from hisparse_sidecar.cli.commands import bench, demo, info, serve, stress, tune

_EXAMPLES = """\
examples:
  hisparse info                      what this machine has and how fast it copies
  hisparse demo                      prefill and decode from host memory, against the reference
  hisparse serve --model-dir models/tiny-dsa --host-pages 256 --socket /tmp/hisparse.sock
  hisparse bench --list              the benchmark suites
  hisparse tune                      where flat selection is faster than HISA on this machine
  hisparse stress --seconds 60       load and faults, against an oracle of every byte
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hisparse`.

    Args:
        argv: arguments after the program's name; None = those of this process.

    Returns:
        0 = done; 1 = the command failed or what it checked does not hold. A usage error exits 2.
    """
    args = build_parser().parse_args(argv)
    try:
        exit_code: int = args.run(args)
    except KeyboardInterrupt:
        output.write_error(args.command, "interrupted")
        return 130
    except output.expected_errors() as error:
        output.write_error(args.command, str(error))
        return 1
    return exit_code


def build_parser() -> argparse.ArgumentParser:
    """Make the parser with every subcommand; each sets `run` to its own function."""
    parser = argparse.ArgumentParser(
        prog="hisparse",
        description="DeepSeek Sparse Attention from host memory: serve it, show it, measure it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, serve, info, bench, tune, stress):
        command.add_parser(subparsers)
    return parser
