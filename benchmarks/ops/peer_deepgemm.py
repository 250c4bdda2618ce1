"""DeepGEMM's index logits, from the wheel `sgl-deep-gemm`."""

from collections.abc import Callable, Sequence

import torch

from benchmarks.ops.inputs import index_queries
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS

_HEADS = (64, 32)
_BATCHES = (1, 64)  # the schedule's kernel is compiled for each 32 sequences
_PAGES = 8


class DeepGemm:
    """Compiles with nvcc what it is called for first."""

    def __init__(self) -> None:
        import deep_gemm

        self._module = deep_gemm

    def compile_jobs(self) -> Sequence[Callable[[], object]]:
        """One job: its table of compiled kernels is not made for threads."""
        return (self._compile,)

    def prefill(
        self,
        query: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        weights: torch.Tensor,
        start: torch.Tensor,
        end: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [rows, >= keys]; anything outside of [start, end)."""
        return _as_torch(self._module.fp8_mqa_logits(query, (codes, scales), weights, start, end))

    def paged(
        self,
        query: torch.Tensor,
        index_pages: torch.Tensor,
        weights: torch.Tensor,
        lengths: torch.Tensor,
        max_length: int,
        next_n: int = 1,
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """What scores the pages of a table; its schedule is made once, as an engine's step does.

        With `next_n` adjacent rows for each sequence a table has one row for all of them; beyond a
        row's own length its logits are then anything.
        """
        pages = index_pages.view(-1, PAGE_TOKENS, 1, INDEX_DIM + 4)
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        queries = query.view(-1, next_n, *query.shape[1:])
        if next_n > 1:
            lengths = lengths.view(-1, next_n)
        lengths, schedule = self._schedule(lengths, processors)

        def score(page_table: torch.Tensor) -> torch.Tensor:
            logits = self._module.fp8_paged_mqa_logits(
                queries, pages, weights, lengths, page_table, schedule, max_length, False
            )
            return _as_torch(logits)

        return score

    def _compile(self) -> None:
        keys = _PAGES * PAGE_TOKENS
        pages = torch.zeros(_PAGES, PAGE_TOKENS * (INDEX_DIM + 4), dtype=torch.uint8, device="cuda")
        for heads in _HEADS:
            query, weights = index_queries(1, heads)
            codes = pages.view(-1)[: keys * INDEX_DIM].view(torch.float8_e4m3fn).view(keys, -1)
            start = torch.zeros(1, dtype=torch.int32, device="cuda")
            scales = torch.ones(keys, device="cuda")
            self.prefill(query, codes, scales, weights, start, start + keys)
        for batch in _BATCHES:
            query, weights = index_queries(batch, _HEADS[0])
            lengths = torch.full((batch,), keys, dtype=torch.int32, device="cuda")
            table = torch.arange(_PAGES, dtype=torch.int32, device="cuda").repeat(batch, 1)
            self.paged(query, pages, weights, lengths, keys)(table)

    def _schedule(
        self, lengths: torch.Tensor, processors: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lengths as this version takes them, [batch] or [batch, next_n], and the schedule."""
        plan = self._module.get_paged_mqa_logits_metadata
        try:
            return lengths, _as_torch(plan(lengths, PAGE_TOKENS, processors))
        except Exception:  # its C++ assertions have a type of their own
            if lengths.dim() == 2:
                raise
            return lengths[:, None], _as_torch(plan(lengths[:, None], PAGE_TOKENS, processors))


def _as_torch(tensor: object) -> torch.Tensor:
    return tensor if isinstance(tensor, torch.Tensor) else torch.utils.dlpack.from_dlpack(tensor)
