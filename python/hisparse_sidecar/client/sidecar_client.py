"""A typed client of the four services: every method is build the request, call, unwrap."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import grpc
from typing_extensions import Unpack

from hisparse_sidecar._proto.hisparse.v1 import (
    region_pb2,
    region_pb2_grpc,
    sequence_pb2,
    sequence_pb2_grpc,
    sidecar_pb2,
    sidecar_pb2_grpc,
    step_pb2,
    step_pb2_grpc,
)
from hisparse_sidecar.client.calls import LayerStream, Metadata, call
from hisparse_sidecar.client.messages import request
from hisparse_sidecar.client.side_connection import SideConnection
from hisparse_sidecar.config.sequence import OpenedPrompt, OpenOptions
from hisparse_sidecar.requirements import require_one_of
from hisparse_sidecar.stats import SidecarStats, TierBytes
from hisparse_sidecar.step.step import StepKind
from hisparse_sidecar.wire.names import AUTHORIZATION_KEY, CLIENT_KEY, MAX_MESSAGE_BYTES
from hisparse_sidecar.wire.selections import encode_selection
from hisparse_sidecar.wire.stats import ServerStats, decode_stats, decode_tier_bytes

_Response = TypeVar("_Response")
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a restarted server is not met with another's backoff
)
_KINDS: dict[str, step_pb2.StepKind] = {
    "decode": step_pb2.STEP_KIND_DECODE,
    "prefill": step_pb2.STEP_KIND_PREFILL,
}


def _encode_options(options: OpenOptions) -> dict[str, object]:
    selection = options.get("selection")
    return {**options, "selection": encode_selection(selection) if selection else None}


class SidecarClient:
    """A connection to a server. The methods raise what the call raises in process.

    Without a side connection the client is connectionless: its sequences belong to nobody, and
    regions and steps are refused.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        metadata: Metadata = (),
        side: SideConnection | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self._channel = channel
        self._metadata = metadata
        self._side = side
        self._timeout = timeout_seconds
        self._regions = region_pb2_grpc.RegionServiceStub(channel)
        self._sequences = sequence_pb2_grpc.SequenceServiceStub(channel)
        self._steps = step_pb2_grpc.StepServiceStub(channel)
        self._sidecar = sidecar_pb2_grpc.SidecarServiceStub(channel)

    @classmethod
    def connect(cls, socket_path: str | Path, timeout_seconds: float = 60.0) -> "SidecarClient":
        """A client of the server on a Unix socket.

        Raises:
            ServerUnavailable: none listens there.
        """
        path = Path(socket_path).absolute()
        side = SideConnection(path, timeout_seconds)
        channel = grpc.insecure_channel(f"unix:{path}", options=_OPTIONS)
        return cls(channel, ((CLIENT_KEY, side.client_token),), side, timeout_seconds)

    @classmethod
    def connect_unattached(
        cls, socket_path: str | Path, timeout_seconds: float = 60.0
    ) -> "SidecarClient":
        """A connectionless client of the server on a Unix socket, which need not have a sidecar."""
        channel = grpc.insecure_channel(f"unix:{Path(socket_path).absolute()}", options=_OPTIONS)
        return cls(channel, (), None, timeout_seconds)

    @classmethod
    def connect_tcp(
        cls,
        address: str,
        token: str | None,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_seconds: float = 60.0,
    ) -> "SidecarClient":
        """A connectionless client over TCP, with TLS where `credentials` are given."""
        metadata: Metadata = ()
        if token is not None:
            metadata = ((AUTHORIZATION_KEY, f"Bearer {token}"),)
        if credentials is None:
            return cls(grpc.insecure_channel(address, _OPTIONS), metadata, None, timeout_seconds)
        channel = grpc.secure_channel(address, credentials, _OPTIONS)
        return cls(channel, metadata, None, timeout_seconds)

    def server_info(self) -> sidecar_pb2.GetServerInfoResponse:
        """What the server is; see sidecar.proto."""
        message = sidecar_pb2.GetServerInfoRequest()
        return self._call(self._sidecar.GetServerInfo, message)

    def stats(self) -> SidecarStats:
        """A snapshot of the counters of the server's sidecar."""
        return self.server_stats().sidecar

    def server_stats(self) -> ServerStats:
        """The same, with the lower tiers, the tenants, and what the server counts itself."""
        message = sidecar_pb2.GetStatsRequest()
        return decode_stats(self._call(self._sidecar.GetStats, message))

    def create_region(
        self, num_bytes: int, huge_pages: bool = False
    ) -> region_pb2.CreateRegionResponse:
        """A new region of this client; `fetch_region` gets its descriptor."""
        message = request(
            region_pb2.CreateRegionRequest, num_bytes=num_bytes, huge_pages=huge_pages
        )
        return self._call(self._regions.CreateRegion, message)

    def fetch_region(self, region_token: str) -> int:
        """The descriptor of a new region, once; the caller closes it."""
        assert self._side is not None, "a connectionless client has no region to fetch"
        return self._side.fetch(region_token)

    def close_region(self, region_id: int) -> None:
        """Ends a region; a mapping of it stays valid until it is dropped."""
        message = request(region_pb2.CloseRegionRequest, region_id=region_id)
        self._call(self._regions.CloseRegion, message)

    def open_sequence(
        self, prompt_tokens: int, max_new_tokens: int, **options: Unpack[OpenOptions]
    ) -> int:
        """See `Sidecar.open`."""
        message = request(
            sequence_pb2.OpenSequenceRequest,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
            **_encode_options(options),
        )
        return self._open(message).sequence_id

    def open_prompt(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        **options: Unpack[OpenOptions],
    ) -> OpenedPrompt:
        """See `Sidecar.open_prompt`."""
        message = request(
            sequence_pb2.OpenSequenceRequest,
            token_ids=list(token_ids),
            max_new_tokens=max_new_tokens,
            tenant=tenant,
            **_encode_options(options),
        )
        opened = self._open(message)
        return OpenedPrompt(opened.sequence_id, opened.cached_tokens)

    def _open(self, message: sequence_pb2.OpenSequenceRequest) -> sequence_pb2.OpenSequenceResponse:
        return self._call(self._sequences.OpenSequence, message)

    def fork_sequence(self, sequence: int, length: int, max_new_tokens: int) -> int:
        """See `Sidecar.fork`."""
        message = request(
            sequence_pb2.ForkSequenceRequest,
            sequence_id=sequence,
            length_tokens=length,
            max_new_tokens=max_new_tokens,
        )
        return self._call(self._sequences.ForkSequence, message).sequence_id

    def truncate_sequence(self, sequence: int, length: int) -> None:
        """See `Sidecar.truncate`."""
        message = request(
            sequence_pb2.TruncateSequenceRequest, sequence_id=sequence, length_tokens=length
        )
        self._call(self._sequences.TruncateSequence, message)

    def tier_bytes(self, sequence: int) -> TierBytes:
        """See `Sidecar.tier_bytes`."""
        message = request(sequence_pb2.GetSequenceBytesRequest, sequence_id=sequence)
        return decode_tier_bytes(self._call(self._sequences.GetSequenceBytes, message).held)

    def preempt_sequence(self, sequence: int) -> None:
        """See `Sidecar.preempt`."""
        message = request(sequence_pb2.PreemptSequenceRequest, sequence_id=sequence)
        self._call(self._sequences.PreemptSequence, message)

    def resume_sequence(self, sequence: int) -> int:
        """See `Sidecar.resume`."""
        message = request(sequence_pb2.ResumeSequenceRequest, sequence_id=sequence)
        return self._call(self._sequences.ResumeSequence, message).length_tokens

    def close_sequence(self, sequence: int) -> None:
        """See `Sidecar.close_sequence`."""
        message = request(sequence_pb2.CloseSequenceRequest, sequence_id=sequence)
        self._call(self._sequences.CloseSequence, message)

    def begin_step(
        self,
        rows: Sequence[tuple[int, int]],
        kind: StepKind,
        padded_rows: int | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> int:
        """See `Sidecar.begin_step`; returns the step's id."""
        require_one_of("kind", kind, tuple(_KINDS))
        members = [
            request(step_pb2.SequenceRows, sequence_id=sequence, num_rows=count)
            for sequence, count in rows
        ]
        message = request(
            step_pb2.BeginStepRequest,
            rows=members,
            kind=_KINDS[kind],
            padded_rows=padded_rows,
            token_ids=None if token_ids is None else list(token_ids),
        )
        return self._call(self._steps.BeginStep, message).step_id

    def run_layer(self, message: step_pb2.RunLayerRequest) -> None:
        """Runs one layer, from region to region; see step.proto."""
        self._call(self._steps.RunLayer, message)

    def layer_stream(self) -> LayerStream:
        """A stream for many layers, faster than `run_layer` for each."""
        return LayerStream(self._steps, self._metadata)

    def end_step(self, step_id: int, *, commit: bool) -> None:
        """Commits the step or aborts it."""
        outcome = step_pb2.STEP_OUTCOME_COMMIT if commit else step_pb2.STEP_OUTCOME_ABORT
        message = request(step_pb2.EndStepRequest, step_id=step_id, outcome=outcome)
        self._call(self._steps.EndStep, message)

    def _call(self, method: Callable[..., _Response], message: object) -> _Response:
        return call(lambda: method(message, self._timeout, self._metadata))

    def close(self) -> None:
        """Ends the client and everything that it owns."""
        if self._side is not None:
            self._side.close()
        self._channel.close()

    def __enter__(self) -> "SidecarClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
