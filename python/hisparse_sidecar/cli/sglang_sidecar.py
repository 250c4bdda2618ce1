"""`--sidecar hisparse_sidecar.cli.sglang_sidecar`: the gRPC server that SGLang starts beside it."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from hisparse_sidecar.config.file import build_config, read_values
from hisparse_sidecar.engine_stats import StatsFolder
from hisparse_sidecar.engines.sglang.offload.stats import folder_of
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.server.engine_server import EngineServer
from hisparse_sidecar.server.main import Server, add_server_flags, serve, server_options
from hisparse_sidecar.server.options import ServerOptions
from hisparse_sidecar.server.runtime import ServerRuntime

ENDPOINT = "SGLANG_GRPC_ENDPOINT"
_SOCKET = "server.sock"


def main(argv: Sequence[str] | None = None) -> None:
    """Serve what SGLang's schedulers tell until SIGTERM or SIGINT.

    SGLang ends when the process of its --sidecar fails, so an error at the start is raised.

    Raises:
        HisparseError: the endpoint, a flag, the socket or the configuration does not fit.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    folder = folder_of(engine_port(os.environ.get(ENDPOINT)))
    folder.make()
    folder.remove_dead()
    arguments = _parser(folder).parse_args(argv)
    options = server_options(arguments)
    try:
        serve(lambda: _server(arguments.config, options, folder), options)
    finally:
        folder.remove_if_empty()


def engine_port(endpoint: str | None) -> int:
    """The port of SGLang's own gRPC server.

    Args:
        endpoint: as SGLang names it to its --sidecar, "http://HOST:PORT"; None = not at all.

    Raises:
        InvalidArgument: it is not so.
    """
    try:
        port = urlsplit(endpoint or "").port
    except ValueError:
        port = None
    if port is None:
        needed = "http://HOST:PORT, as SGLang sets it for its --sidecar"
        raise InvalidArgument(f"{ENDPOINT} is {endpoint!r}, needs {needed}")
    return port


def _server(config: Path | None, options: ServerOptions, folder: StatsFolder) -> Server:
    if config is None:
        return EngineServer(options, folder.read)
    made = build_config(read_values(config))
    return ServerRuntime(made, options, read_engines=folder.read)


def _parser(folder: StatsFolder) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="--sidecar hisparse_sidecar.cli.sglang_sidecar", description=main.__doc__
    )
    text = "JSON file of SidecarConfig: a sidecar of its own, for other clients"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    add_server_flags(parser, folder.path / _SOCKET)
    return parser


if __name__ == "__main__":
    main()
