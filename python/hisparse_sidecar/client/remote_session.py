"""A `Session` on a sidecar in another process: tensors go through a region, calls over gRPC."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from typing_extensions import Unpack

from hisparse_sidecar._core import TierState
from hisparse_sidecar._proto.hisparse.v1 import step_pb2, tensor_pb2
from hisparse_sidecar.client.calls import LayerStream
from hisparse_sidecar.client.messages import request
from hisparse_sidecar.client.sidecar_client import SidecarClient
from hisparse_sidecar.client.staging import Staging, tensor_bytes
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.config.sequence import OpenedPrompt, OpenOptions
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.stats import SidecarStats, TierBytes
from hisparse_sidecar.step.step import StepKind
from hisparse_sidecar.wire.configs import decode_config
from hisparse_sidecar.wire.tensor_refs import align

_INPUTS = ("query", "kv", "index_q", "index_weights", "index_k", "topk_indices", "sink")
_FIRST_REGION_BYTES = 1 << 20


class RemoteSession:
    """The methods and errors are those of `Session`; the server ends what it opened with it."""

    def __init__(
        self,
        socket_path: str | Path,
        *,
        region_bytes: int = _FIRST_REGION_BYTES,
        timeout_seconds: float = 60.0,
    ) -> None:
        """Connects to the server on a Unix socket.

        Args:
            socket_path: where the server listens.
            region_bytes: room for the tensors of a layer; more is made when a layer needs it.
            timeout_seconds: of each call but those of a layer.

        Raises:
            ServerUnavailable: no server listens there.
        """
        self.client = SidecarClient.connect(socket_path, timeout_seconds)
        try:
            info = self.client.server_info()
            self._config = decode_config(info.config)
            self._staging = Staging(self.client, region_bytes)
        except BaseException:
            self.client.close()
            raise
        self._stream: LayerStream | None = None
        self._step_id = 0  # no step has this id

    @property
    def config(self) -> SidecarConfig:
        """What the server's sidecar was built for."""
        return self._config

    def open(self, prompt_tokens: int, max_new_tokens: int, **options: Unpack[OpenOptions]) -> int:
        """See `Sidecar.open`."""
        return self.client.open_sequence(prompt_tokens, max_new_tokens, **options)

    def open_prompt(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        **options: Unpack[OpenOptions],
    ) -> OpenedPrompt:
        """See `Sidecar.open_prompt`."""
        return self.client.open_prompt(token_ids, max_new_tokens, tenant=tenant, **options)

    def fork(self, sequence: int, length: int, max_new_tokens: int) -> int:
        """See `Sidecar.fork`."""
        return self.client.fork_sequence(sequence, length, max_new_tokens)

    def truncate(self, sequence: int, length: int) -> None:
        """See `Sidecar.truncate`."""
        self.client.truncate_sequence(sequence, length)

    def preempt(self, sequence: int) -> None:
        """See `Sidecar.preempt`."""
        self.client.preempt_sequence(sequence)

    def resume(self, sequence: int) -> int:
        """See `Sidecar.resume`."""
        return self.client.resume_sequence(sequence)

    def close_sequence(self, sequence: int) -> None:
        """See `Sidecar.close_sequence`."""
        self.client.close_sequence(sequence)

    def begin_step(
        self,
        rows: Sequence[tuple[int, int]],
        kind: StepKind,
        *,
        padded_rows: int | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """See `Sidecar.begin_step`; waits while another client's step is open."""
        self._step_id = self.client.begin_step(rows, kind, padded_rows, token_ids)

    def run_layer(self, layer: int, inputs: LayerInputs) -> LayerOutputs:
        """See `Sidecar.run_layer`; the outputs are on the device of the query."""
        given = {name: tensor for name in _INPUTS if (tensor := getattr(inputs, name)) is not None}
        shapes = self._output_shapes(inputs.query)
        places = [*((t.shape, t.dtype) for t in given.values()), *shapes.values()]
        self._staging.clear(sum(align(tensor_bytes(*place)) for place in places))
        refs = {name: self._staging.place(tensor) for name, tensor in given.items()}
        outputs = {name: self._staging.reserve(*place) for name, place in shapes.items()}
        self._run(layer, refs, outputs)
        device = inputs.query.device
        return LayerOutputs(
            **{
                name: self._staging.tensor(ref).to(device, copy=True)
                for name, ref in outputs.items()
            }
        )

    def end_step(self) -> None:
        """See `Sidecar.commit_step`."""
        self.client.end_step(self._step_id, commit=True)

    def abort_step(self) -> None:
        """See `Sidecar.abort_step`."""
        self.client.end_step(self._step_id, commit=False)

    def stats(self) -> SidecarStats:
        """See `Sidecar.stats`: of the whole server, not of this session alone."""
        return self.client.stats()

    def lower_tiers(self) -> Sequence[TierState]:
        """See `Sidecar.lower_tiers`."""
        return self.client.server_stats().tiers

    def tier_bytes(self, sequence: int) -> TierBytes:
        """See `Sidecar.tier_bytes`."""
        return self.client.tier_bytes(sequence)

    def close(self) -> None:
        """Ends the session; the server has freed what it owned when this returns."""
        with ExitStack() as ends:  # last pushed runs first, and all run
            ends.callback(self.client.close)
            ends.callback(self._staging.close)
            if self._stream is not None:
                ends.callback(self._stream.close)

    def _output_shapes(self, query: torch.Tensor) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        # a query of another rank is for the server to refuse
        rows, heads = query.shape[:2] if query.dim() == 3 else (1, 1)
        return {
            "out": ((rows, heads, self._config.kv.latent_dim), query.dtype),
            "lse": ((rows, heads), torch.float32),
            "topk_indices": ((rows, self._config.model.topk), torch.int32),
        }

    def _run(
        self,
        layer: int,
        inputs: dict[str, tensor_pb2.TensorRef],
        outputs: dict[str, tensor_pb2.TensorRef],
    ) -> None:
        if self._stream is None or not self._stream.is_open():
            self._stream = self.client.layer_stream()
        self._stream.run(
            request(
                step_pb2.RunLayerRequest,
                step_id=self._step_id,
                layer=layer,
                inputs=step_pb2.LayerInputRefs(**inputs),
                outputs=step_pb2.LayerOutputRefs(**outputs),
            )
        )

    def __enter__(self) -> "RemoteSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
