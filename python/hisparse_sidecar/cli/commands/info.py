"""`hisparse info`: versions, backends, GPU, memory, measured copy bandwidth."""

import argparse

from hisparse_sidecar.cli import output

_EXAMPLES = """\
examples:
  hisparse info
  hisparse info --json --copy-mib 1024
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `info` to the subcommands."""
    parser = subparsers.add_parser(
        "info",
        help="what this machine has and how fast it copies",
        description="Report versions, backends, GPUs, host memory, and measured copy bandwidth.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--copy-mib",
        type=int,
        default=256,
        metavar="N",
        help="size of a measured copy (%(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Find out and show."""
    from hisparse_sidecar.cli.system.report import find_system, system_tables

    system = find_system(copied_bytes=args.copy_mib << 20)
    if args.json:
        output.write_json(system.to_json())
    else:
        output.write_result(*system_tables(system))
    return 0
