"""A small DSA world for pipeline tests: random layers of sequences, and the plain computation.

`PlainDsa` keeps every row in memory and knows neither pages, slots nor windows.
"""

from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import pack_index_rows, unpack_index_rows
from hisparse_kernels.kv_rows import pack_kv_rows, unpack_kv_rows
from hisparse_sidecar import LayerInputs, LayerOutputs, ModelShape, Sidecar, SidecarConfig
from hisparse_sidecar.config import SelectionConfig


@dataclass(frozen=True)
class Place:
    """Where a test's sidecar runs, and with which ops."""

    device: str
    backend: str


PLACE = Place("cpu", "reference")
HEADS, INDEX_HEADS, TOPK = 3, 4, 48
FLAT = SelectionConfig("flat")
HISA = SelectionConfig("hisa", num_kept_blocks=4)


def small_config(**changes: object) -> SidecarConfig:
    """Two anchor layers and one that shares; 64-token blocks, a window and buffer to overflow."""
    model = ModelShape(3, (0, 0, 2), INDEX_HEADS, TOPK, 0.07)
    settings: dict[str, object] = {
        "model": model,
        "device": PLACE.device,
        "backend": PLACE.backend,
        "host_pages": 64,
        "max_sequences": 4,
        "hot_slots": 64,
        "window_blocks": 5,
        "stage_rows": 4096,
        "block_tokens": 64,
        "selection": FLAT,
    }
    return SidecarConfig(**(settings | changes))  # type: ignore[arg-type]


def random_rows(config: SidecarConfig, layer: int, rows: int, seed: int) -> LayerInputs:
    """Inputs of `rows` rows; the same seed gives the same rows."""
    made = torch.Generator().manual_seed(seed * 1000 + layer)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    query, kv = normal(rows, HEADS, config.kv.query_dim), normal(rows, config.kv.query_dim)
    if not config.model.is_anchor(layer):
        return LayerInputs(query, kv)
    index_q, index_k = normal(rows, INDEX_HEADS, 128), normal(rows, 128)
    return LayerInputs(query, kv, index_q, normal(rows, INDEX_HEADS), index_k)


def pack_rows(parts: list[LayerInputs]) -> LayerInputs:
    """Rows of several sequences, one after the other."""

    def joined(name: str) -> torch.Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    names = ("query", "kv", "index_q", "index_weights", "index_k", "topk_indices")
    return LayerInputs(**{name: joined(name) for name in names})  # type: ignore[arg-type]


@dataclass
class Rows:
    """What one sequence appends in a step: `count` rows made from `seed`."""

    sequence: int
    count: int
    seed: int


def run_step(sidecar: Sidecar, rows: list[Rows], kind: str, **options: int) -> list[LayerOutputs]:
    """One committed step of random rows through every layer; the outputs come to the CPU."""
    sidecar.begin_step([(part.sequence, part.count) for part in rows], kind, **options)  # type: ignore[arg-type]
    outputs = []
    for layer in range(sidecar.config.model.num_layers):
        made = [random_rows(sidecar.config, layer, part.count, part.seed) for part in rows]
        outputs.append(on_cpu(sidecar.run_layer(layer, pack_rows(made))))
    sidecar.commit_step()
    return outputs


def on_cpu(outputs: LayerOutputs) -> LayerOutputs:
    """The same outputs as CPU tensors."""
    return LayerOutputs(**{name: tensor.cpu() for name, tensor in vars(outputs).items()})


def prefill(sidecar: Sidecar, sequence: int, length: int, seed: int) -> list[LayerOutputs]:
    """Prefills a sequence in one chunk."""
    return run_step(sidecar, [Rows(sequence, length, seed)], "prefill")


def assert_same_bits(found: list[LayerOutputs], wanted: list[LayerOutputs]) -> None:
    """Every tensor of every layer is equal, bit for bit."""
    for layer, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name in ("topk_indices", "out", "lse"):
            same = torch.equal(getattr(one, name), getattr(other, name))
            assert same, f"{name} of layer {layer} differs"


class PlainDsa:
    """The same sequences, all in memory: append rows, then ask what DSA gives."""

    def __init__(self, config: SidecarConfig) -> None:
        self.config = config
        self.kv: dict[tuple[int, int], torch.Tensor] = {}
        self.keys: dict[tuple[int, int], torch.Tensor] = {}

    def append(self, sequence: int, count: int, seed: int) -> list[LayerOutputs]:
        """Appends the rows that `run_step` would and returns flat DSA's outputs for them."""
        outputs, topk = [], torch.empty(0)
        for layer in range(self.config.model.num_layers):
            inputs = random_rows(self.config, layer, count, seed)
            kv = self._grow(self.kv, sequence, layer, self._stored_kv(inputs.kv))
            if self.config.model.is_anchor(layer):
                assert inputs.index_k is not None
                keys = self._stored_keys(inputs.index_k)
                topk = self._topk(inputs, self._grow(self.keys, sequence, layer, keys))
            outputs.append(self._attend(inputs, kv, topk))
        return outputs

    def truncate(self, sequence: int, length: int) -> None:
        """Drops the rows from `length` on."""
        for rows in (self.kv, self.keys):
            for key in [key for key in rows if key[0] == sequence]:
                rows[key] = rows[key][:length]

    def fork(self, sequence: int, child: int, length: int) -> None:
        """Copies the first `length` rows to another sequence."""
        for rows in (self.kv, self.keys):
            for key in [key for key in rows if key[0] == sequence]:
                rows[(child, key[1])] = rows[key][:length]

    def _stored_kv(self, kv: torch.Tensor) -> torch.Tensor:
        return unpack_kv_rows(pack_kv_rows(kv, self.config.kv), self.config.kv)

    def _stored_keys(self, keys: torch.Tensor) -> torch.Tensor:
        return unpack_index_rows(pack_index_rows(keys, self.config.index), self.config.index)

    @staticmethod
    def _grow(
        held: dict[tuple[int, int], torch.Tensor], sequence: int, layer: int, rows: torch.Tensor
    ) -> torch.Tensor:
        before = held.get((sequence, layer))
        held[(sequence, layer)] = rows if before is None else torch.cat([before, rows])
        return held[(sequence, layer)]

    def _topk(self, inputs: LayerInputs, keys: torch.Tensor) -> torch.Tensor:
        assert inputs.index_q is not None
        assert inputs.index_weights is not None
        dots = torch.einsum("rhd,td->rht", inputs.index_q.double(), keys.double()).relu()
        scores = torch.einsum("rht,rh->rt", dots, inputs.index_weights.double())
        rows, length = scores.shape
        positions = torch.full((rows, self.config.model.topk), -1, dtype=torch.int32)
        for row in range(rows):
            visible = scores[row, : length - rows + row + 1]
            count = min(self.config.model.topk, visible.numel())
            positions[row, :count] = _best(visible, count)
        return positions

    def _attend(self, inputs: LayerInputs, kv: torch.Tensor, topk: torch.Tensor) -> LayerOutputs:
        out, lse = [], []
        for row, positions in enumerate(topk):
            keys = kv[positions[positions >= 0].long()].double()
            logits = inputs.query[row].double() @ keys.T * self.config.model.softmax_scale
            lse.append(logits.logsumexp(-1))
            out.append(logits.softmax(-1) @ keys[:, : self.config.kv.latent_dim])
        return LayerOutputs(torch.stack(out).float(), torch.stack(lse).float(), topk)


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the `count` largest, ascending; ReLU makes ties, of which the lowest win."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values.int()
