"""An engine's pages of index keys, its sequences' keys, and what their selections should be."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cases import queries
from hisparse_kernels.index_rows import (
    pack_index_rows,
    quantize_index_q,
    unpack_index_rows,
    write_index_rows,
)
from hisparse_sidecar import SelectionConfig
from hisparse_sidecar.backends import find_device, ops_of
from hisparse_sidecar.engine_rows import EngineRowsConfig, EngineRowTier
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT, IndexPart
from hisparse_sidecar.ranks import RankPlace
from hisparse_sidecar.selection import SelectionQuery, selector_for
from hisparse_sidecar.tuning.resident_keys import ResidentKeys, store_keys
from tests.pipeline import world

TOPK, HEADS, SEQUENCES, PAGE, MAX_PAGES = 96, 4, 3, 64, 20
GROUPS = (0, 0, 1)
WINDOW, SHIFT = 6, 512
FIRST_PAGE = 1 + 32  # behind the prompts' pages
PART = IndexPart(FIRST_PAGE, SEQUENCES * (WINDOW + 1), WINDOW, row_shift=SHIFT)
CONFIG = EngineRowsConfig(
    groups=GROUPS,
    row_bytes=656,
    topk=TOPK,
    host_pages=SEQUENCES * MAX_PAGES,
    max_sequences=SEQUENCES,
    max_tokens=MAX_PAGES * PAGE,
    hot_slots=TOPK,
    first_row=PAGE,
    num_rows=SEQUENCES * (TOPK + 1),
    index=PART,
)
SELECTIONS = {
    "hisa": SelectionConfig("hisa", num_kept_blocks=4, gate="off"),
    "routed": SelectionConfig(
        "hisa", num_kept_blocks=5, routed_heads=2, routed_stages="both", gate="off"
    ),
    "ratio": SelectionConfig("hisa", num_kept_blocks=2, budget="ratio", max_blocks=8, gate="off"),
    "adaptive": SelectionConfig(
        "hisa", num_kept_blocks=4, budget="adaptive", max_blocks=12, tail_share=0.01, gate="off"
    ),
}


class IndexEngine:
    """Memory of an engine and the tier over it; its indexer's calls in the order of a pass."""

    def __init__(self, config: EngineRowsConfig = CONFIG, place: RankPlace | None = None) -> None:
        assert config.index is not None
        self.config, self.device = config, find_device(world.PLACE.device)
        self.ops = ops_of(world.PLACE.backend, world.PLACE.device)
        self.random = torch.Generator().manual_seed(3)
        prompt_rows = FIRST_PAGE * PAGE + SHIFT
        self.memory = [self._bytes(prompt_rows, config.row_bytes) for _ in config.groups]
        ends = [config.index.end_page if layer in config.anchors else 0 for layer in range(3)]
        self.pages = [self._bytes(end, INDEX_LAYOUT.page_bytes) for end in ends]
        self.tier = EngineRowTier(config, self.memory, self.ops, self.pages, place)
        assert self.tier.index is not None
        self.index = self.tier.index
        self.num_real = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.keys: dict[int, list[torch.Tensor]] = {}

    def _bytes(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def some_keys(self, count: int) -> torch.Tensor:
        """[groups, count, row_bytes] uint8, stored index rows; neighbours are alike."""
        made = torch.randn(len(self.index.pages), count, 128, generator=self.random)
        steps = torch.randn(len(made), count // 40 + 1, 128, generator=self.random)
        made += 2 * steps.repeat_interleave(40, 1)[:, :count]
        rows = pack_index_rows(made.flatten(0, 1), INDEX_LAYOUT)
        return rows.unflatten(0, (len(made), count)).to(self.device)

    def write(self, rows: torch.Tensor, keys: torch.Tensor) -> None:
        """As the engine's writer: index rows [groups, n] at `rows` [n] of its pages."""
        for pages, stored in zip(self.index.pages, keys, strict=True):
            write_index_rows(pages, rows, stored.contiguous(), INDEX_LAYOUT)

    def open(self, tokens: int, new_tokens: int = 200) -> int:
        """A sequence whose prompt lay in pages that are in no order, and are the engine's again."""
        sequence = self.tier.open(tokens, new_tokens)
        count = -(-tokens // PAGE)
        page = torch.randperm(FIRST_PAGE - 1, generator=self.random)[:count] + 1
        pos = torch.arange(tokens)
        rows = (page[pos // PAGE] * PAGE + pos % PAGE).to(self.device)
        keys = self.some_keys(tokens)
        self.write(rows, keys)
        self.tier.take_prompt(sequence, rows + SHIFT)
        self.keys[sequence] = list(keys)
        for pages in self.index.pages:
            pages[:FIRST_PAGE] = 255
        return sequence

    def plan(self, sequences: Sequence[int]) -> None:
        """The next token of each."""
        self.tier.append(sequences)
        self.tier.load_step()
        self.num_real.fill_(len(sequences))

    def new_keys(self, sequences: Sequence[int], rows: int) -> torch.Tensor:
        """[groups, rows, row_bytes], appended to what the sequences should have."""
        made = self.some_keys(rows)
        for row, sequence in enumerate(sequences):
            old = self.keys[sequence]
            self.keys[sequence] = [
                torch.cat([before, new[row : row + 1]])
                for before, new in zip(old, made, strict=True)
            ]
        return made

    def layer(self, group: int, keys: torch.Tensor, query: Any, name: str) -> torch.Tensor:
        """What runs in an anchor layer of a pass: positions [rows, topk]."""
        self.append(group, keys)
        selector = selector_for(SELECTIONS[name])
        return self.index.select(group, selector, *query, TOPK, MAX_PAGES)

    def append(self, group: int, keys: torch.Tensor) -> None:
        """The first half of it."""
        rows = keys.shape[1]
        if group == 0:
            self.tier.begin_step(self.num_real)
        at = self.index.new_rows(rows)
        write_index_rows(self.index.pages[group], at, keys[group].contiguous(), INDEX_LAYOUT)
        self.index.append(group, rows)

    def queries(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Index queries [rows, HEADS, 128] e4m3 and weights [rows, HEADS]."""
        index_q, weights = queries(rows, HEADS)
        noise = torch.randn(index_q.shape, generator=self.random)
        index_q, weights = quantize_index_q(index_q + noise, weights)
        return index_q.to(self.device), weights.to(self.device)

    def step(self, sequences: Sequence[int], name: str = "hisa", padding: int = 0) -> None:
        """A decode step, whose lists are looked at in every group."""
        self.plan(sequences)
        keys = self.new_keys(sequences, len(sequences) + padding)
        for group in range(len(self.index.pages)):
            query = self.queries(len(sequences) + padding)
            found = self.layer(group, keys, query, name)
            self.check(sequences, group, query, found, name)

    def check(
        self, sequences: Sequence[int], group: int, query: Any, found: torch.Tensor, name: str
    ) -> None:
        """The lists are those of sequences whose keys lie side by side; of padding rows none."""
        assert (found[len(sequences) :] == -1).all()
        for row, sequence in enumerate(sequences):
            stored = self.keys[sequence][group]
            keys = unpack_index_rows(stored, INDEX_LAYOUT)
            store = store_keys(self.ops, keys, 1, PAGE, INDEX_LAYOUT)
            resident = ResidentKeys(self.ops, INDEX_LAYOUT, store, len(stored), PAGE)
            lists = torch.tensor([[0], [len(stored) - 1]], dtype=torch.int32, device=self.device)
            one = [part[row : row + 1] for part in query]
            asked = SelectionQuery(*one, *lists, TOPK)
            if len(stored) <= TOPK:
                wanted = resident.all_positions(asked)
            else:
                wanted = selector_for(SELECTIONS[name]).select(asked, resident)
            assert torch.equal(found[row], wanted[0])


def config_with(**changed: Any) -> EngineRowsConfig:
    """The usual sizes with another index part."""
    return replace(CONFIG, index=replace(PART, **changed))
