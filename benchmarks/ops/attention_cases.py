"""Sparse MLA over 2048 rows a query, prefill and decode, beside FlashMLA.

FlashMLA takes 64 or 128 heads: fewer are padded for it, with heads of zeros.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import ATTENTION, LSE, check_near
from benchmarks.ops.count import attention_work
from benchmarks.ops.inputs import (
    BF16_ROWS,
    FP8_ROWS,
    kv_rows,
    num_sets,
    positions,
    sample_rows,
    shared_positions,
)
from benchmarks.ops.ours import triton_op
from benchmarks.ops.peers import Peers
from benchmarks.ops.timing import Timed
from hisparse_kernels.kv_rows import unpack_kv_rows_ref
from hisparse_kernels.layouts import KvLayout
from hisparse_kernels.sparse_mla import (
    AttentionOptions,
    decode_split_keys,
    sparse_mla_ref,
    split_workspace_size,
)

_TOPK, _CONTEXT, _ROWS = 2048, 64 * 1024, 4096
_LATENT_DIM, _QUERY_DIM, _SCALE = 512, 576, 576**-0.5
_PEER_HEADS = 64
_SHARING_ROWS = 16
_SMALL_SPLITS, _FEW_ROWS = (64, 128), 8

_Attend = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def attention_cases(peers: Peers) -> Iterator[Case]:
    for heads, layout, lists in (
        (64, BF16_ROWS, "random"),
        (128, BF16_ROWS, "random"),
        (16, BF16_ROWS, "random"),
        (16, BF16_ROWS, "overlapping"),
        (16, FP8_ROWS, "random"),
        (64, FP8_ROWS, "random"),
        (128, FP8_ROWS, "random"),
    ):
        yield prefill_case(peers, heads, layout, lists)
    for heads in (64, 128, 16):
        for batch in (1, 8, 32, 128):
            yield decode_case(peers, batch, heads, FP8_ROWS)


def prefill_case(peers: Peers, heads: int, layout: KvLayout, lists: str = "random") -> Case:
    name = f"sparse_mla {_ROWS} rows, L=64K, {layout.name}, {heads} heads, {lists} lists"
    return Case(name, partial(_prefill, peers, heads, layout, lists))


def decode_case(
    peers: Peers, batch: int, heads: int, layout: KvLayout, split_keys: int | None = None
) -> Case:
    """In the splits of keys that are the default, or in other ones (0 = none): then without peers.

    The peers' times are in the rows of the default.
    """
    name = f"sparse_mla batch {batch}, L=64K, {layout.name}, {heads} heads"
    if split_keys is not None:
        name += f", {split_name(split_keys)}"
    return Case(name, partial(prepare_decode, peers, batch, heads, layout, split_keys))


def other_splits(heads: int, batch: int) -> list[int]:
    """Values of the setting `split_keys` that are timed beside the default of so many heads.

    Small ones only of the batches that they might be for: parts of many rows fill the memory.
    """
    splits = (*_SMALL_SPLITS, 256, 512, 1024, 0) if batch <= _FEW_ROWS else (256, 512, 1024, 0)
    return [split for split in splits if split != decode_split_keys(heads)]


def split_name(split_keys: int) -> str:
    """How a setting of splits is named in cases."""
    return f"splits of {split_keys}" if split_keys else "unsplit"


@dataclass(frozen=True)
class _Inputs:
    """Queries, rows, and one or more sets of lists over them."""

    query: torch.Tensor
    rows: torch.Tensor
    lists: list[torch.Tensor]
    layout: KvLayout
    split_keys: int | None

    def contender(self) -> tuple[Contender, tuple[torch.Tensor, torch.Tensor], _Attend]:
        """Ours, the tensors that it writes, and the call for one set."""
        sparse_mla = triton_op("sparse_mla")
        rows, heads, _ = self.query.shape
        size = split_workspace_size(rows, heads, _TOPK, self.layout, self.split_keys)
        workspace = torch.empty(size, device="cuda")
        out = (
            torch.empty(rows, heads, _LATENT_DIM, dtype=torch.bfloat16, device="cuda"),
            torch.empty(rows, heads, device="cuda"),
        )

        def attend(query: torch.Tensor, row_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            sparse_mla(
                query,
                self.rows,
                row_ids,
                self.layout,
                _SCALE,
                AttentionOptions(split_keys=self.split_keys, out=out, workspace=workspace),
            )
            return out

        def check() -> None:
            attend(self.query, self.lists[0])
            some = sample_rows(rows)
            listed = self.query[some], self.rows, self.lists[0][some]
            expected = sparse_mla_ref(*listed, self.layout, _SCALE)
            check_near("out", out[0][some], expected[0], ATTENTION)
            check_near("lse", out[1][some], expected[1], LSE)

        return Contender(check, self._timed(partial(attend, self.query))), out, attend

    def peer(
        self, attend: _Attend, ours: _Attend, out: tuple[torch.Tensor, torch.Tensor]
    ) -> Contender:
        """A peer, with as many heads as it takes; its first ones must equal ours."""
        heads = self.query.shape[1]
        query = self.query
        if heads < _PEER_HEADS:
            query = torch.nn.functional.pad(query, (0, 0, 0, _PEER_HEADS - heads))

        def check() -> None:
            ours(self.query, self.lists[0])
            found = attend(query, self.lists[0])
            check_near("out", found[0][:, :heads], out[0], ATTENTION)
            check_near("lse", found[1][:, :heads], out[1], LSE)

        return Contender(check, self._timed(partial(attend, query)))

    def _timed(self, attend: Callable[[torch.Tensor], object]) -> Timed:
        return Timed([partial(attend, ids) for ids in self.lists], long=self.split_keys is None)


def _prefill(peers: Peers, heads: int, layout: KvLayout, lists: str) -> Prepared:
    if lists == "random":
        row_ids = positions(_ROWS, _TOPK, _CONTEXT - _ROWS)
    else:
        row_ids = shared_positions(_ROWS, _TOPK, _CONTEXT - _ROWS, _SHARING_ROWS)
    rows = kv_rows(_CONTEXT, layout)
    inputs = _Inputs(_queries(_ROWS, heads), rows, [row_ids], layout, None)
    ours, out, attend = inputs.contender()

    def flash_mla() -> Contender:
        values = unpack_kv_rows_ref(rows, layout).bfloat16()  # exact, whatever the layout
        return inputs.peer(peers.flash_mla().prefill(values, _SCALE), attend, out)

    work = attention_work(_ROWS, heads, _TOPK, _CONTEXT - _ROWS, layout)
    return Prepared(work, ours, {_peer_name(heads): flash_mla})


def prepare_decode(
    peers: Peers, batch: int, heads: int, layout: KvLayout, split_keys: int | None = None
) -> Prepared:
    sets = num_sets(batch * _TOPK * layout.row_bytes)
    sequences = sets * batch
    rows = kv_rows(sequences * _CONTEXT, layout)
    first = torch.arange(sequences, device="cuda")[:, None] * _CONTEXT
    lists = list((positions(sequences, _TOPK, _CONTEXT) + first).int().view(sets, batch, _TOPK))
    split = decode_split_keys(heads) if split_keys is None else split_keys or _TOPK
    inputs = _Inputs(_queries(batch, heads), rows, lists, layout, split)
    ours, out, attend = inputs.contender()

    def flash_mla() -> Contender:
        return inputs.peer(_decode_peer(peers, rows, layout), attend, out)

    work = attention_work(batch, heads, _TOPK, batch * _TOPK, layout)
    if split_keys is not None:
        return Prepared(work, ours)
    kernel = "FlashMLA" if layout == FP8_ROWS else "FlashMLA's prefill kernel"
    return Prepared(work, ours, {_peer_name(heads, kernel): flash_mla})


def _decode_peer(peers: Peers, rows: torch.Tensor, layout: KvLayout) -> _Attend:
    """FlashMLA's decode kernel lists fp8 rows only: bf16 ones go to the one for prefill."""
    if layout == FP8_ROWS:
        return peers.flash_mla().decode(rows, _SCALE)
    return peers.flash_mla().prefill(rows.view(torch.bfloat16), _SCALE)


def _queries(rows: int, heads: int) -> torch.Tensor:
    return torch.randn(rows, heads, _QUERY_DIM, device="cuda", dtype=torch.bfloat16)


def _peer_name(heads: int, kernel: str = "FlashMLA") -> str:
    return kernel if heads >= _PEER_HEADS else f"{kernel}, padded to {_PEER_HEADS} heads"
