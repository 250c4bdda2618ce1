"""`hisparse serve`: the gRPC server of one sidecar."""

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

from hisparse_sidecar.cli import output
from hisparse_sidecar.cli.config_flags import add_config_flags, values_of_flags
from hisparse_sidecar.cli.serving import sidecar_config
from hisparse_sidecar.server.main import add_server_flags, server_options
from hisparse_sidecar.server.main import run as serve

_DESCRIPTION = """\
Serve one sidecar over gRPC. Its configuration comes from a JSON or TOML file with the fields of
SidecarConfig, from flags, or from both; flags win. docs/configuration.md explains every field.
The server ends on SIGTERM or SIGINT; a second signal cuts the end short.
"""
_EXAMPLES = """\
examples:
  hisparse serve --socket /run/hisparse/sidecar.sock --config sidecar.json
  hisparse serve --socket s.sock --model-dir models/tiny-dsa --host-pages 256

sidecar.json:
  {"model": {"num_layers": 4, "anchor_of": [0, 1, 2, 3], "index_heads": 32, "topk": 512,
             "softmax_scale": 0.0722},
   "host_pages": 256, "selection": {"index_source": "hisa", "num_kept_blocks": 64}}
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `serve` to the subcommands."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a sidecar over gRPC",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="JSON (or .toml) file of SidecarConfig")
    add("--model-dir", type=Path, metavar="DIR", help="take the model's shape from its config.json")
    add(
        "--json", action="store_true", help="write the configuration as one JSON object, then serve"
    )
    add_server_flags(parser)
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    config = sidecar_config(args.model_dir, args.config, values_of_flags(args))
    options = server_options(args)
    if args.json:
        output.write_json({"socket": str(args.socket), "config": asdict(config)})
    return serve(config, options)
