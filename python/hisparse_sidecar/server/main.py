"""The server program: `python -m hisparse_sidecar.server --socket PATH --config FILE`."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.config.file import build_config, read_values
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.server.options import Limits, ServerOptions, TcpOptions
from hisparse_sidecar.server.runtime import ServerRuntime

_LOG = logging.getLogger("hisparse_sidecar.server")
_FAST_EXIT_SECONDS = 5.0
_LIMIT_FLAGS = {
    "drain_seconds": "time to end in, from SIGTERM on",
    "max_silent_seconds": "end a client that makes no call and sends no sign of life for longer",
    "max_unread_seconds": "end a stream whose client does not read for longer",
    "max_step_idle_seconds": "abort an open step without a call for longer",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the drain short."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        config = build_config(read_values(arguments.config))
        options = server_options(arguments)
        return run(config, options)
    except (HisparseError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def run(config: SidecarConfig, options: ServerOptions) -> int:
    """Serve until a signal; 0 after a drain, also one that was cut short."""
    return serve(lambda: ServerRuntime(config, options), options)


class Server(Protocol):
    """What is served until a signal."""

    tcp_port: int | None

    async def start(self) -> None: ...  # noqa: D102

    async def stop(self) -> None: ...  # noqa: D102

    def hurry(self) -> None: ...  # noqa: D102


def serve(make_server: Callable[[], Server], options: ServerOptions) -> int:
    """Serve until a signal; see `run`.

    Args:
        make_server: makes the server, in the event loop that runs it.
        options: the server's.
    """
    return asyncio.run(_serve(make_server, options))


async def _serve(make_server: Callable[[], Server], options: ServerOptions) -> int:
    runtime, loop = make_server(), asyncio.get_running_loop()
    signalled = asyncio.Event()

    def on_signal() -> None:
        if signalled.is_set():
            runtime.hurry()
            loop.call_later(_FAST_EXIT_SECONDS, os._exit, 1)  # a layer that does not end
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await runtime.start()
    _LOG.info("serving on %s", options.socket_path)
    if runtime.tcp_port is not None:
        _LOG.info("serving on TCP port %d", runtime.tcp_port)
    await signalled.wait()
    _LOG.info("draining, at most %g s", options.limits.drain_seconds)
    await runtime.stop()
    return 0


def server_options(arguments: argparse.Namespace) -> ServerOptions:
    """What the flags of `add_server_flags` ask for."""
    named = {name: getattr(arguments, name) for name in _LIMIT_FLAGS}
    limits = Limits(**named, max_clients=arguments.max_clients)
    tcp = None
    if arguments.tcp is not None:
        tcp = TcpOptions(
            arguments.tcp,
            token=_text(arguments.token_file),
            certificate=_bytes(arguments.tls_cert),
            key=_bytes(arguments.tls_key),
            client_authority=_bytes(arguments.tls_client_ca),
        )
    return ServerOptions(arguments.socket, tcp, limits, dict(arguments.tenant))


def _tenant(text: str) -> tuple[str, int]:
    name, found, pages = text.rpartition("=")
    if not found or not pages.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PAGES")
    return name, int(pages)


def _text(path: Path | None) -> str | None:
    return None if path is None else path.read_text().strip()


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hisparse_sidecar.server", description=main.__doc__
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON or .toml of SidecarConfig")
    add_server_flags(parser)
    return parser


def add_server_flags(parser: argparse.ArgumentParser, socket: Path | None = None) -> None:
    """Adds the flags that say where a server listens and how it ends.

    Args:
        parser: gets them.
        socket: where it listens unless it is said; None = it must be said.
    """
    add = parser.add_argument
    text = "Unix socket to serve on" + ("" if socket is None else "; default: %(default)s")
    required = socket is None
    add("--socket", type=Path, required=required, default=socket, metavar="PATH", help=text)
    for name, meaning in _LIMIT_FLAGS.items():
        flag, default = f"--{name.replace('_', '-')}", getattr(Limits(), name)
        text = f"{meaning}; default: %(default)g"
        add(flag, type=float, default=default, metavar="S", help=text)
    most, text = Limits().max_clients, "clients at a time; default: %(default)d"
    add("--max-clients", type=int, default=most, metavar="N", help=text)
    add(
        "--tenant",
        type=_tenant,
        action="append",
        default=[],
        metavar="NAME=PAGES",
        help="pages of the host pool that tenant NAME may have; repeat for more tenants; =PAGES "
        "limits sequences that name no tenant, which have no limit by default",
    )
    tcp = parser.add_argument_group("TCP", "off by default; needs a token or client certificates")
    tcp.add_argument("--tcp", metavar="HOST:PORT", help="serve on TCP too")
    tcp.add_argument("--token-file", type=Path, help="file of the bearer token")
    tcp.add_argument("--tls-cert", type=Path, help="PEM of the server's certificate")
    tcp.add_argument("--tls-key", type=Path, help="PEM of the server's key")
    tcp.add_argument("--tls-client-ca", type=Path, help="PEM that signed the clients' certificates")
