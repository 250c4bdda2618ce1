"""What a server says of itself, fixed for its life."""

from importlib.metadata import PackageNotFoundError, version

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import core_version
from hisparse_sidecar._proto.hisparse.v1 import sidecar_pb2
from hisparse_sidecar.backends import backend_name
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.server.options import Limits
from hisparse_sidecar.wire.configs import encode_config


def server_info(config: SidecarConfig, limits: Limits) -> sidecar_pb2.GetServerInfoResponse:
    """Of a server with a sidecar of its own."""
    told = bare_info(limits)
    told.backend = backend_name(config)
    told.config.CopyFrom(encode_config(config))
    sizes = sidecar_pb2.RowSizes(
        kv_row_bytes=config.kv.row_bytes,
        index_row_bytes=config.index.row_bytes,
        query_dim=config.kv.query_dim,
        latent_dim=config.kv.latent_dim,
        page_tokens=PAGE_TOKENS,
    )
    told.row_sizes.CopyFrom(sizes)
    return told


def bare_info(limits: Limits) -> sidecar_pb2.GetServerInfoResponse:
    """Of any server: without what a sidecar was built for."""
    return sidecar_pb2.GetServerInfoResponse(
        version=_package_version(),
        core_version=core_version(),
        limits=sidecar_pb2.Limits(
            max_region_bytes=limits.max_region_bytes,
            max_regions=limits.max_regions,
            max_message_bytes=limits.max_message_bytes,
            max_call_seconds=limits.max_call_seconds,
            max_step_idle_seconds=limits.max_step_idle_seconds,
            max_silent_seconds=limits.max_silent_seconds,
        ),
    )


def _package_version() -> str:
    try:
        return version("hisparse-sidecar")
    except PackageNotFoundError:  # run from a source tree
        return core_version()
