"""`hisparse demo`: a trained model decodes from host memory, against a reference in memory."""

import argparse
from pathlib import Path

from hisparse_sidecar.cli import output

_DESCRIPTION = """\
Plant facts in a real text, start the sidecar server on a Unix socket, prefill the text and generate
greedily through it: once with flat selection, once with HISA, with KV rows and index keys in host
memory. Compare with the same model held in memory with the same row layouts.
"""
_EXAMPLES = """\
examples:
  hisparse demo
  hisparse demo --prompt-tokens 1500
  hisparse demo --json --seed 3 > demo.json

The exit code is 0 only if flat gave every token of the reference. Needs the extra [transformers].
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo` to the subcommands."""
    parser = subparsers.add_parser(
        "demo",
        help="prefill and decode from host memory, against the reference",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="DSA checkpoint (models/tiny-dsa)")
    add("--text", type=Path, metavar="PATH", help="text file or folder of them (examples/text)")
    add(
        "--prompt-tokens",
        type=int,
        default=12000,
        metavar="N",
        help="length of the prompt (%(default)s)",
    )
    add("--new-tokens", type=int, default=64, metavar="N", help="generated tokens (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="chooses the facts (%(default)s)")
    add(
        "--window-blocks",
        type=int,
        default=48,
        metavar="N",
        help="blocks of 64 index keys of a layer on the device (%(default)s)",
    )
    add("--hot-slots", type=int, metavar="N", help="KV rows of a layer on the device (2 * topk)")
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda or cuda:N (cuda if there is one)",
    )
    backends = "auto, reference, triton, gluon_sm100 or flash_mla (%(default)s)"
    add("--backend", default="auto", metavar="NAME", help=backends)
    add("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo and show what it found."""
    from hisparse_sidecar.cli.checkout import find_beside
    from hisparse_sidecar.cli.demo.progress import DemoProgress
    from hisparse_sidecar.cli.demo.run_demo import run_demo
    from hisparse_sidecar.cli.demo.settings import DemoSettings
    from hisparse_sidecar.cli.demo.tables import demo_tables

    settings = DemoSettings(
        model_dir=args.model or find_beside("models/tiny-dsa"),
        text=args.text or find_beside("examples/text"),
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        seed=args.seed,
        window_blocks=args.window_blocks,
        hot_slots=args.hot_slots,
        device=args.device,
        backend=args.backend,
    )
    with DemoProgress(output.progress_console()) as progress:
        report = run_demo(settings, progress)
    if args.json:
        output.write_json(report.to_json())
    else:
        output.write_result(*demo_tables(report))
    return 0 if report.holds else 1
