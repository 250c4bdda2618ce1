"""`hisparse stress`: load and faults on a real server, against what every byte has to be."""

import argparse
from pathlib import Path

from hisparse_sidecar.cli import output

_DESCRIPTION = """\
Start a real server over real tiers, let seeded clients live on it, and break things: full pools,
failing, full, slow and corrupted disks, a lying remote store, SIGKILL and restart. Every row is a
pure function of the tokens before it, so every byte that the server has can be computed and
compared. Pages that a flush has acknowledged must be found again.
"""
_EXAMPLES = """\
examples:
  hisparse stress --seconds 60
  hisparse stress --seconds 600 --seed 7 --sessions 8 --json > stress.json
  hisparse stress --seconds 30 --faults kill,corrupt --tiers file
  hisparse stress --seconds 600 --faults alloc,io,corrupt,slow,remote    a soak: one server lives
  hisparse stress --replay stress-7.json
  hisparse stress --seconds 20 --self-check byte    must fail: one byte is flipped on the way

Faults count when they have happened: a lease that took pages (alloc), a call of a tier that was
made to fail or to sleep (io, enospc, slow, remote), a file that has other bytes (corrupt), a server
that ended by SIGKILL (kill). The exit code is 0 only if nothing was lost, wrong or leaked; else a
replay file is written.

Memory, descriptors and threads of a server that lives for two minutes or more are measured once the
first third of its life is over. Descriptors and threads that grow throughout fail the run, and so
do leases without a break of 60 s; memory, hit rate and times are reported only.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `stress` to the subcommands."""
    parser = subparsers.add_parser(
        "stress",
        help="load and faults on a real server, against an oracle of every byte",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, metavar="N", help="length of the run (%(default)g)")
    add("--operations", type=int, metavar="N", help="stop after so many (no limit)")
    add("--seed", type=int, default=0, metavar="S", help="of all random choices (%(default)s)")
    add("--sessions", type=int, default=4, metavar="K", help="clients at a time (%(default)s)")
    every = "alloc,io,kill,corrupt,enospc,slow,remote"
    add("--faults", default=every, metavar="KINDS", help="faults to make; '' = none (%(default)s)")
    add("--tiers", default="file,remote", metavar="NAMES", help="lower tiers (%(default)s)")
    add("--directory", type=Path, metavar="DIR", help="for the server's files (a temporary one)")
    add("--replay", type=Path, metavar="FILE", help="carry out the operations of a replay file")
    add("--replay-to", type=Path, metavar="FILE", help="replay file to write (stress-SEED.json)")
    checks = ("byte", "page", "lease")
    add("--self-check", choices=checks, help="spoil, lose or leak one; must fail")
    add("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run, and show what was found."""
    from hisparse_sidecar.cli.stress.progress import StressProgress
    from hisparse_sidecar.cli.stress.replay import read_replay
    from hisparse_sidecar.cli.stress.report import tables
    from hisparse_sidecar.cli.stress.run_stress import run_stress
    from hisparse_sidecar.cli.stress.settings import StressSettings

    if args.replay is not None:
        settings, _ = read_replay(args.replay)
    else:
        settings = StressSettings(
            args.seconds,
            args.seed,
            args.sessions,
            faults=_names(args.faults),
            tiers=_names(args.tiers),
            operations=args.operations,
            self_check=args.self_check,
        )
    replay_to = args.replay_to or Path(f"stress-{settings.seed}.json")
    with StressProgress(output.progress_console(), settings.seconds) as progress:
        report = run_stress(settings, args.directory, replay_to, progress, args.replay)
    if args.json:
        output.write_json(report)
    else:
        output.write_result(*tables(report))
    if report["holds"] and report["never_injected"]:
        kinds = ", ".join(report["never_injected"])
        output.write_error("stress", f"asked for, and never injected: {kinds}")
    if report["replay"] is not None:
        output.write_error("stress", f"again: hisparse stress --replay {report['replay']}")
    return 0 if report["holds"] else 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
