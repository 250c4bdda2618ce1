"""The gRPC server: control over a Unix socket, tensors in shared regions."""

from hisparse_sidecar.server.main import main, run
from hisparse_sidecar.server.options import Limits, ServerOptions, TcpOptions
from hisparse_sidecar.server.sidecar_server import SidecarServer

__all__ = ["Limits", "ServerOptions", "SidecarServer", "TcpOptions", "main", "run"]
