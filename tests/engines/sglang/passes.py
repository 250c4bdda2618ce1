"""Forward batches of SGLang's, their index queries, and the lists that a selection should give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cases import queries_of
from hisparse_kernels.backends import reference_ops
from hisparse_sidecar import SelectionConfig
from hisparse_sidecar.selection import SelectionQuery, selector_for
from hisparse_sidecar.tuning.resident_keys import ResidentKeys, store_keys
from tests.engines.sglang.world import HEADS, LAYOUT, PAGE, TOPK, World


@dataclass
class Pass:
    """One forward pass: (sequence, position) of each row, in the order of the batch."""

    batch: Any
    rows: list[tuple[int, int]]
    query: torch.Tensor
    weights: torch.Tensor

    def select(self, world: World, layer: int, **named: Any) -> torch.Tensor:
        """What SGLang's indexer now gives in a layer."""
        with world.context():
            metadata = world.backend.get_indexer_metadata(layer, self.batch)
            inputs = self.query, self.weights, metadata
            if self.batch.forward_mode.is_extend_without_speculative():
                return world.indexer._get_topk_ragged(False, self.batch, layer, *inputs, **named)
            return world.indexer._get_topk_paged(self.batch, layer, *inputs)


def decode_pass(world: World, lengths: Sequence[int]) -> Pass:
    """One new token of each sequence, which has `lengths` tokens with it."""
    return _pass(world, "DECODE", [(seq, n - 1, n) for seq, n in enumerate(lengths)])


def extend_pass(world: World, spans: Sequence[tuple[int, int]]) -> Pass:
    """Tokens [first, end) of each sequence."""
    return _pass(world, "EXTEND", [(seq, *span) for seq, span in enumerate(spans)])


def decode_rows_pass(world: Any, lengths: Sequence[tuple[int, int]]) -> Pass:
    """As `decode_pass`, of (sequence, tokens with the new one)."""
    return _pass(world, "DECODE", [(seq, n - 1, n) for seq, n in lengths])


def extend_rows_pass(world: Any, spans: Sequence[tuple[int, int, int]]) -> Pass:
    """As `extend_pass`, of (sequence, first, end)."""
    return _pass(world, "EXTEND", list(spans))


def verify_pass(world: World, lengths: Sequence[int], drafts: int) -> Pass:
    """`drafts` tokens of each sequence, which has `lengths` tokens without them."""
    return _pass(world, "TARGET_VERIFY", [(seq, n, n + drafts) for seq, n in enumerate(lengths)])


def _pass(world: World, mode: str, spans: Sequence[tuple[int, int, int]]) -> Pass:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

    rows = [(seq, pos) for seq, first, end in spans for pos in range(first, end)]
    lens = [first if mode == "TARGET_VERIFY" else end for _, first, end in spans]
    new = [end - first for _, first, end in spans]
    batch = ForwardBatch(
        forward_mode=ForwardMode[mode],
        batch_size=len(spans),
        input_ids=torch.zeros(len(rows), dtype=torch.int64),
        req_pool_indices=torch.tensor([seq for seq, _, _ in spans]),
        seq_lens=torch.tensor(lens),
        out_cache_loc=torch.cat([world.slots(seq, pos, pos + 1) for seq, pos in rows]),
        seq_lens_sum=sum(lens),
        seq_lens_cpu=torch.tensor(lens),
        extend_seq_lens=torch.tensor(new),
        extend_seq_lens_cpu=new,
        extend_prefix_lens_cpu=[first for _, first, _ in spans],
        extend_num_tokens=len(rows),
    )
    with world.context():
        world.backend.init_forward_metadata(batch)
    query, weights = queries_of(torch.float8_e4m3fn, len(rows), HEADS)
    return Pass(batch, rows, query, weights[..., None])


def expected(world: World, made: Pass, layer: int, selection: SelectionConfig) -> list[list[int]]:
    """Positions of each row, its sequence's keys alone and side by side."""
    ops, selector, found = reference_ops(), selector_for(selection), []
    for row, (seq, pos) in enumerate(made.rows):
        stored = world.keys[seq, layer][: pos + 1]
        store = store_keys(ops, stored, 1, PAGE, LAYOUT)
        keys = ResidentKeys(ops, LAYOUT, store, pos + 1, PAGE)
        lists = torch.tensor([[0], [pos]], dtype=torch.int32)
        one = made.query[row : row + 1], made.weights[row : row + 1, :, 0]
        query = SelectionQuery(*one, *lists, TOPK)
        chosen = keys.all_positions(query) if pos < TOPK else selector.select(query, keys)
        found.append(chosen[0].tolist())
    return found


def slots_of(world: World, made: Pass, positions: list[list[int]]) -> list[list[int]]:
    """The same lists as slots of the pool."""
    return [
        [int(world.slots(seq, pos, pos + 1)) if pos >= 0 else -1 for pos in listed]
        for (seq, _), listed in zip(made.rows, positions, strict=True)
    ]
