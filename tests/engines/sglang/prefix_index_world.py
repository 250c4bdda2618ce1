"""SGLang's requests and tree with our prefix cache, whose index keys are in the host pool, too.

As KV rows do, index keys follow from the tokens up to theirs; what a pass selects is looked at in
every layer, against keys that lie side by side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hisparse_kernels.index_rows import read_index_rows, unpack_index_rows
from hisparse_sidecar.engines.sglang.pool.beside_pool import pooled_pages_of
from tests.engines.sglang.index_offload_world import HISA, OFFLOAD, IndexWorld, stored_rows
from tests.engines.sglang.offload_world import LAYERS, PAGE
from tests.engines.sglang.passes import expected, extend_rows_pass, slots_of
from tests.engines.sglang.prefix_world import CachingEngine, prefix_hashes
from tests.engines.sglang.world import LAYOUT, TOPK

_JUNK = 0x60  # large, and still finite where 64 rows of it are pooled
_ALIKE = 40  # neighbours, so that pages differ


class CachingIndexWorld(CachingEngine, IndexWorld):
    """A `CachingEngine` with a backend and an indexer.

    Attributes:
        lists: what the passes selected, in order.
        num_found: tokens that prefill passes had before theirs.
        looks: whether lists are looked at.
        selects_prompts: whether prompts select.
    """

    launch_options = (*OFFLOAD, "--radix-cache-backend", "hisparse")

    def __init__(self, folder: Any, options: dict[str, Any] | None = None, **changed: Any) -> None:
        self.lists: list[list[list[int]]] = []
        self.looks = self.selects_prompts = True
        self.num_found = 0
        self.tokens_of: dict[int, list[int]] = {}
        odd = np.random.default_rng(1).integers(1 << 62, size=(LAYERS, 128))
        self.index_multipliers = (2 * odd + 1).astype(np.uint64)
        super().__init__(folder=folder, options=options, **changed)

    # -- what a model would compute -----------------------------------------------------------

    def keys_for(self, tokens: Sequence[int], layer: int) -> torch.Tensor:
        """[tokens, 128] fp32, before they are stored."""
        hashes = prefix_hashes(tokens)
        own, shared = hashes, hashes[np.arange(len(hashes)) // _ALIKE * _ALIKE]
        both = [self._floats(one, layer) for one in (own, shared)]
        return torch.from_numpy(both[0] + 2 * both[1])

    def _floats(self, hashes: np.ndarray, layer: int) -> np.ndarray:
        made = (hashes[:, None] * self.index_multipliers[layer]) >> np.uint64(40)
        return (made % np.uint64(257)).astype(np.float32) / 128 - 1

    def key_values(self, row: int, layer: int, tokens: int) -> torch.Tensor:
        return self.keys_for(self.tokens_of[row][:tokens], layer)

    # -- passes -------------------------------------------------------------------------------

    def compute(self, req: Any) -> None:
        """Writes the index keys of a prefill's own tokens, and selects among all."""
        super().compute(req)
        begin, end = self.extent(req)
        self.num_found += begin
        self.tokens_of[req.row] = self.computed(req)
        for layer in self.anchors:
            before = stored_rows(self.keys_for(self.tokens_of[req.row][:begin], layer))
            self.keys[req.row, layer] = unpack_index_rows(before, LAYOUT)
        self.write(extend_rows_pass(self, [(req.row, begin, end)]))
        self.select_some(req, begin, end)

    def select_some(self, req: Any, begin: int, end: int) -> None:
        """What the first rows of a prefill pass select, and the last ones."""
        if not self.selects_prompts:
            return
        both = (begin, min(begin + 2, end)), (max(begin, end - 2), end)
        for first, last in [some for some in both if some[1] > TOPK]:  # else there is no choice
            made = extend_rows_pass(self, [(req.row, first, last)])
            for layer in self.anchors:
                self.lists.append(made.select(self, layer).tolist())
                if self.looks:
                    wanted = slots_of(self, made, expected(self, made, layer, HISA))
                    assert self.lists[-1] == wanted

    def decode(self, steps: int = 1, padding: int = 0) -> None:
        """The lists of the last step are looked at; those of the others choose KV rows."""
        assert not padding
        for step in range(steps):
            for req in self.running:
                req.slots = self.table.req_to_token[req.row, : self.allocated(req)].tolist()
            slots = self.prepare()
            for req in self.running:
                self.tokens_of[req.row] = self.computed(req)
            is_looked_at = self.looks and step == steps - 1
            self.run_step(slots, HISA if is_looked_at else None)
            self.lists += [found.tolist() for found in self.selected]
            for req in self.running:
                self.set_lengths(req, self.allocated(req))
                req.output_ids.append(self.next_token(req))

    # -- what is held -------------------------------------------------------------------------

    def leave(self, tokens: Sequence[int], new_tokens: int = 100) -> None:
        """A request ends, and what lay in the pool of index keys and pooled ones is gone."""
        self.finish(*self.start_tokens(tokens, new_tokens=new_tokens))
        self.spoil()

    def spoil(self) -> None:
        """Overwrites what is nobody's of offloaded keys in pages of prompts, and of pooled ones."""
        part, pooled = self.coordinator.tier.config.index, pooled_pages_of(self.pool)
        if part is None:
            return
        assert pooled is not None
        mapped = self.allocator.full_to_hisparse_device_index_mapping[:-1]
        used = torch.div(mapped - part.row_shift, PAGE, rounding_mode="floor").clamp(min=0)
        is_free = torch.ones(part.first_page, dtype=torch.bool)
        is_free[used] = False
        is_free[0] = False
        pages = is_free.nonzero()[:, 0]
        for layer in self.anchors:
            self.pool.index_k_with_scale_buffer[layer][pages] = _JUNK
        pooled.rows_written_in_all_layers(pages * PAGE + PAGE - 1)

    def check_pages(
        self, pages: torch.Tensor, tokens: Sequence[int], first: int, host: Any
    ) -> None:
        """Of KV rows, and of index rows where they are there."""
        super().check_pages(pages, tokens, first, host)
        ids = (pages[:, None] * PAGE + torch.arange(PAGE)).flatten()
        for layer, of_host in zip(self.anchors, host.index_pages, strict=False):  # none without
            wanted = stored_rows(self.keys_for(tokens, layer)[first:])
            assert torch.equal(read_index_rows(of_host, ids, LAYOUT), wanted)
