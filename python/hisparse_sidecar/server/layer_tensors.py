"""A RunLayer message as tensors over the caller's regions. Used by the worker thread only."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from hisparse_sidecar._proto.hisparse.v1 import step_pb2, tensor_pb2
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.server.clients import Client, Clients
from hisparse_sidecar.server.shared_sidecar import SharedSidecar

_REQUIRED = ("query", "kv")
_OPTIONAL = ("index_q", "index_weights", "index_k", "topk_indices", "sink")
_OUTPUTS = ("out", "lse", "topk_indices")


@dataclass(frozen=True)
class OutputPlaces:
    """Where the outputs of one layer go; checked before the layer runs.

    Attributes:
        out: [rows, heads, latent_dim] dtype of the query.
        lse: [rows, heads] fp32.
        topk_indices: [rows, topk] int32.
    """

    out: torch.Tensor
    lse: torch.Tensor
    topk_indices: torch.Tensor

    def write(self, outputs: LayerOutputs) -> None:
        """Copies the results to their places."""
        self.out.copy_(outputs.out)
        self.lse.copy_(outputs.lse)
        self.topk_indices.copy_(outputs.topk_indices)


def run_layer(shared: SharedSidecar, client: Client, request: step_pb2.RunLayerRequest) -> None:
    """Runs one layer of the client's step from region to region; refused, it changes nothing."""
    shared.open_step(client, request.step_id)
    config, inputs = shared.sidecar.config, layer_inputs(shared.clients, client, request.inputs)
    if inputs.query.dim() != 3:  # no shape to ask of the outputs: the sidecar refuses the query
        shared.run_layer(client, request.step_id, request.layer, inputs)
        return
    places = output_places(
        shared.clients,
        client,
        request.outputs,
        inputs.query,
        config.kv.latent_dim,
        config.model.topk,
    )
    places.write(shared.run_layer(client, request.step_id, request.layer, inputs))


def layer_inputs(clients: Clients, client: Client, refs: step_pb2.LayerInputRefs) -> LayerInputs:
    """The inputs, checked to lie in regions of the client.

    Raises:
        InvalidArgument, UnknownRegion, NotOwner: a reference is not legal.
    """
    found = {name: _view(clients, client, refs, name, "input") for name in _REQUIRED}
    given = {
        name: _view(clients, client, refs, name, "input")
        for name in _OPTIONAL
        if refs.HasField(name)
    }
    if "topk_indices" in given:
        # checked, then used as addresses: the client must not change it in between
        given["topk_indices"] = given["topk_indices"].clone()
    return LayerInputs(**found, **given)


def output_places(
    clients: Clients,
    client: Client,
    refs: step_pb2.LayerOutputRefs,
    query: torch.Tensor,
    latent_dim: int,
    topk: int,
) -> OutputPlaces:
    """The places of the outputs of a layer with this `query` [rows, heads, query_dim].

    Raises:
        InvalidArgument: a place is missing, has the wrong shape or dtype, or lies on another.
        UnknownRegion, NotOwner: it is in no region of the client.
    """
    rows, heads = query.shape[:2]
    places = {name: _view(clients, client, refs, name, "output") for name in _OUTPUTS}
    _require("out", places["out"], (rows, heads, latent_dim), query.dtype)
    _require("lse", places["lse"], (rows, heads), torch.float32)
    _require("topk_indices", places["topk_indices"], (rows, topk), torch.int32)
    _require_apart(places)
    return OutputPlaces(**places)


def _view(
    clients: Clients,
    client: Client,
    refs: step_pb2.LayerInputRefs | step_pb2.LayerOutputRefs,
    name: str,
    role: str,
) -> torch.Tensor:
    if not refs.HasField(name):
        raise InvalidArgument(f"{role} {name} is unset, needs a tensor")
    ref: tensor_pb2.TensorRef = getattr(refs, name)
    return clients.tensor(client, f"{role} {name}", ref)


def _require(name: str, place: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = tuple(place.shape)
    if found != shape:
        raise InvalidArgument(f"output {name} has shape {found}, needs {shape}")
    if place.dtype != dtype:
        raise InvalidArgument(f"output {name} is {place.dtype}, needs {dtype}")


def _require_apart(places: dict[str, torch.Tensor]) -> None:
    ranges = sorted(
        (place.data_ptr(), place.data_ptr() + place.nbytes, name) for name, place in places.items()
    )
    for (_, end, name), (start, other_end, other) in pairwise(ranges):
        shared_bytes = min(end, other_end) - start
        if shared_bytes > 0:
            raise InvalidArgument(f"outputs {name} and {other} share {shared_bytes} bytes, need 0")
