"""`BatchHiSparseMLAPagedAttentionWrapper`: sparse MLA in the form of FlashInfer's wrappers."""

from typing import cast, get_args

import torch
from typing_extensions import Unpack

from hisparse_kernels.paged_batch import PagedBatch
from hisparse_sidecar.attention.contract import FlashInferOptions, PlanContract, contract_of
from hisparse_sidecar.attention.inputs import Tensors, one_of, packed_query, paged_rows
from hisparse_sidecar.attention.list_attention import ListAttention
from hisparse_sidecar.attention.lists import given_lists, located_lists, require_one_list
from hisparse_sidecar.attention.metadata import BatchArrays
from hisparse_sidecar.attention.paged_selection import PagedSelection
from hisparse_sidecar.attention.results import result_places, to_base
from hisparse_sidecar.backends import ops_of, runs_on_its_device
from hisparse_sidecar.config import Backend, IndexSource, SelectionConfig, check_split_keys
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.requirements import require, require_one_of, required_int


class BatchHiSparseMLAPagedAttentionWrapper:
    """Multi-head latent attention (absorbed) to selected tokens of paged KV, prefill and decode.

    As with FlashInfer's `BatchMLAPagedAttentionWrapper`: made once with a workspace, `plan` before
    each step, `run` in each layer. What differs: each query row attends to its own list of tokens,
    which a run is given, or chooses by index keys (flat, HISA, MISA). Neither `plan` nor `run` ever
    looks at what the device holds, so both may run ahead of it, and a `run` may be captured in a
    CUDA graph. FlashInfer need not be installed.

    Attributes:
        device: the workspace's.
    """

    def __init__(  # noqa: PLR0913 - FlashInfer's arguments
        self,
        float_workspace_buffer: torch.Tensor,
        use_cuda_graph: bool = False,
        qo_indptr: torch.Tensor | None = None,
        kv_indptr: torch.Tensor | None = None,
        kv_indices: torch.Tensor | None = None,
        kv_len_arr: torch.Tensor | None = None,
        backend: str = "auto",
        *,
        block_tables: torch.Tensor | None = None,
        pooled_table: torch.Tensor | None = None,
        split_keys: int | None = None,
    ) -> None:
        """Makes a wrapper; nothing but the first plan that selects allocates.

        Args:
            float_workspace_buffer: contiguous memory, 128 MiB or so, for parts of results; its
                device is the wrapper's. Runs of wrappers that share it must not overlap.
            use_cuda_graph: plans copy their metadata to the arrays below, which never move, and
                nothing that a plan writes does: a captured run, replayed, does what the last plan
                says. Number of sequences, bounds and options must stay as they were.
            qo_indptr: [batch + 1] int32, reserved for the metadata of that name.
            kv_indptr: the same.
            kv_indices: [most pages of a plan] int32.
            kv_len_arr: [batch] int32.
            backend: "auto", "reference" (plain PyTorch) or "triton"; "gluon_sm100" is Triton with
                attention's body for Blackwell, which has never run. "flash_mla" is Triton with
                FlashMLA for attention, on sm_90, of bf16 queries with 64 or 128 heads: faster for
                large batches, but a row's last bits depend on the rows beside it. Its first run of
                a number of rows waits for the device; make it before one is captured.
            block_tables: [batch, max_pages] int32, reserved for dense metadata, beside `qo_indptr`
                and `kv_len_arr`, and in place of the others.
            pooled_table: [batch, n] int32, reserved for that argument of `plan`.
            split_keys: of plans that do not say: see `plan`.

        Raises:
            InvalidArgument: no such backend, or not here; or an array or a number does not fit.
        """
        require_one_of("backend", backend, get_args(Backend))
        if split_keys is not None:
            split_keys = required_int("split_keys", split_keys)
        check_split_keys(split_keys)
        self._split_keys = split_keys
        self.device = float_workspace_buffer.device
        self._ops = ops_of(cast(Backend, backend), str(self.device))
        memory = float_workspace_buffer
        self._attention = ListAttention(self._ops, backend, memory, split_keys)
        given = {
            "qo_indptr": qo_indptr,
            "kv_indptr": kv_indptr,
            "kv_indices": kv_indices,
            "kv_len_arr": kv_len_arr,
            "block_tables": block_tables,
            "pooled_table": pooled_table,
        }
        self._arrays = BatchArrays(self.device, given if use_cuda_graph else None)
        self._selection = PagedSelection(self._ops, self.device, is_fixed=use_cuda_graph)
        self._plan: tuple[PlanContract, PagedBatch | None] | None = None

    @runs_on_its_device
    def plan(  # noqa: PLR0913 - FlashInfer's arguments, and ours
        self,
        *,
        num_heads: int,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        metadata: object | None = None,
        head_dim_ckv: int = 512,
        head_dim_kpe: int = 64,
        page_size: int = 64,
        causal: bool = True,
        index_source: IndexSource | SelectionConfig = "given",
        topk: int = 2048,
        max_seq_len: int | None = None,
        max_rows: int | None = None,
        block_tokens: int = 128,
        pooled_table: torch.Tensor | None = None,
        split_keys: int | None = None,
        **options: Unpack[FlashInferOptions],
    ) -> None:
        """Says what the next runs are; reads nothing from the device.

        Until the plan's last run, its metadata must stay as they are. Copies are asynchronous, also
        from pinned memory of the host.

        Args:
            num_heads: query heads, 1 to 128.
            sm_scale: factor of the logits.
            q_data_type: bf16, fp16 or fp32; the output has it too.
            kv_data_type: bf16, fp32, or uint8 (or e4m3) for packed rows: 656 B with a rope part,
                528 B without one.
            metadata: `MLAPlanMetadata`, FlashInfer's or ours, packed (csr) or dense; None = runs
                are given row ids alone.
            head_dim_ckv: 512.
            head_dim_kpe: 64; 0 for rows of 528 B.
            page_size: tokens of a page; 64 for a plan that selects.
            causal: whether a row sees tokens up to its own alone: query rows are the last tokens
                of their sequence.
            index_source: where lists come from: "given", or a selection of that name, or one with
                all its settings.
            topk: tokens that a selection yields for a row.
            max_seq_len: for a selection: most tokens of a sequence. Rows that see more get no
                tokens.
            max_rows: for a selection: most rows of a run; None = max_q_len of the metadata for each
                sequence, or one.
            block_tokens: for a selection: tokens of a block, a multiple of 64.
            pooled_table: for HISA and MISA: [batch, n] int32, page of each 64 pooled keys.
            split_keys: keys of a split, a multiple of 64, 0 = all. A number pins the last bits: a
                row has them in any batch. None = the wrapper's, and if that is None, too, 256 (128
                up to 32 heads) where the rows of a run leave the GPU idle, else all. FlashMLA
                splits as it does, and needs None.
            options: further options of FlashInfer; see `FlashInferOptions`.

        Raises:
            InvalidArgument: something does not fit; says what was found and needed. The last plan
                stands.
        """
        split_keys = self._split_keys if split_keys is None else split_keys
        contract = contract_of(
            (num_heads, head_dim_ckv, head_dim_kpe, page_size),
            (q_data_type, kv_data_type),
            causal,
            sm_scale,
            index_source,
            (topk, max_seq_len, block_tokens, split_keys),
            tuple(options.items()),
        )
        self._attention.check(contract)
        if metadata is None:
            require(not contract.selects, "metadata is None, a selection needs metadata")
            self._plan = contract, None
            return
        checked = self._arrays.check(metadata)
        if not contract.selects:
            self._plan = contract, self._arrays.batch(checked, page_size, causal=causal)
            return
        if max_rows is None:
            most = required_int("max_q_len", getattr(metadata, "max_q_len", None) or 1)
            max_rows = max(1, checked.num_seqs * most)
        max_rows = required_int("max_rows", max_rows)
        batch = self._selection.plan(contract, self._arrays, checked, max_rows, pooled_table)
        self._plan = contract, batch

    @runs_on_its_device
    @torch.no_grad()
    def select(
        self,
        *,
        index_q: torch.Tensor | None = None,
        index_weights: torch.Tensor | None = None,
        index_k_cache: torch.Tensor | None = None,
        pooled_k_cache: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The planned selection alone: lists for several layers that share it. No gradients.

        Tokens of a page that is absent are never chosen: one that the metadata do not name, or by a
        number that is no page of `index_k_cache`. Only where `max_seq_len` is at most `topk`, and
        nothing is scored, are they listed with all others; a run passes over them.

        Args:
            index_q: [rows, index_heads, 128] fp32, bf16 or e4m3.
            index_weights: [rows, index_heads] fp32, all scales but the key's folded in.
            index_k_cache: [pages, page_bytes] uint8, or any shape of as many bytes, contiguous:
                pages of 64 keys, 64 x 128 e4m3 codes, then 64 fp32 scales (or 64 x 128 fp32),
                under the page ids of the metadata.
            pooled_k_cache: the same of pooled keys, by `pooled_table`; unused by "flat". Not looked
                at on the host: each id that a row's blocks need must be below its pages.

        Returns:
            [rows, topk] int32, token positions, ascending; -1 pads the tail.

        Raises:
            WrongState: before a plan, or with a plan of given lists.
            InvalidArgument: something is missing or does not fit.
        """
        contract, _ = self._planned()
        if not contract.selects:
            raise WrongState("index_source is 'given', a selection needs a plan with another")
        inputs = index_q, index_weights, index_k_cache, pooled_k_cache
        return self._selection.select(contract, *inputs)

    @runs_on_its_device
    @torch.no_grad()
    def run(  # noqa: PLR0913 - FlashInfer's arguments, and ours
        self,
        *,
        query: Tensors | None = None,
        kv_cache: Tensors | None = None,
        q_nope: torch.Tensor | None = None,
        q_pe: torch.Tensor | None = None,
        ckv_cache: torch.Tensor | None = None,
        kpe_cache: torch.Tensor | None = None,
        topk_indices: torch.Tensor | None = None,
        row_ids: torch.Tensor | None = None,
        valid_counts: torch.Tensor | None = None,
        index_q: torch.Tensor | None = None,
        index_weights: torch.Tensor | None = None,
        index_k_cache: torch.Tensor | None = None,
        pooled_k_cache: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
        return_lse_base_on_e: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attends, each row to its list: of the three kinds of lists a run has one. No gradients.

        The tokens of a list must be distinct: one that is listed twice counts twice. A row without
        a token to see, of a padding row for one, has output 0 and lse -inf.

        Args:
            query: [rows, num_heads, 576], or a pair of [.., 512] and [.., 64]. A pair that does not
                lie side by side is copied together.
            kv_cache: [pages, page_size, 576] bf16 or fp32, or [pages, page_size, 656 or 528] uint8
                or e4m3; or a pair of views of one such tensor, at 0 and 512. Pages may lie apart.
            q_nope: with `q_pe`, stands for a pair `query`.
            q_pe: see `q_nope`.
            ckv_cache: with `kpe_cache`, stands for a pair `kv_cache`.
            kpe_cache: see `ckv_cache`.
            topk_indices: [rows, any] int32, token positions, distinct; -1, anywhere, = nothing;
                those that the row does not see do not count.
            row_ids: [rows, any] int32, rows of the cache, distinct: page id * (rows from page to
                page) + place; -1, anywhere, = nothing. Not looked at on the host: the rows must
                exist.
            valid_counts: [rows] int32, only so many leading entries of a list count; None = all.
            index_q: index inputs: see `select`.
            index_weights: see `select`.
            index_k_cache: see `select`.
            pooled_k_cache: see `select`.
            sinks: [num_heads] fp32, an extra logit in the denominator alone; not part of `lse`.
            out: [rows, num_heads, 512], contiguous, to write to and return; None = allocate.
            lse: [rows, num_heads] fp32, contiguous, the same.
            return_lse: whether to return `lse`: log2 of the sum of exponentials.
            return_lse_base_on_e: its natural logarithm instead.

        Returns:
            `out`, or `out` and `lse`.

        Raises:
            WrongState: before a plan.
            InvalidArgument: something is missing, given twice, or does not fit the plan.
        """
        contract, batch = self._planned()
        pair = one_of("query", query, ("q_nope", "q_pe"), q_nope, q_pe)
        packed = packed_query(contract, pair, self.device)
        pages = one_of("kv_cache", kv_cache, ("ckv_cache", "kpe_cache"), ckv_cache, kpe_cache)
        cache = paged_rows(contract, pages, self.device)
        base = contract.lse_base(is_wanted=return_lse or lse is not None, is_e=return_lse_base_on_e)
        contract.check_sinks(sinks, self.device)
        require_one_list(topk_indices, row_ids, index_q)
        places = result_places(contract, packed, out, lse)
        if index_q is not None:
            require(valid_counts is None, "run has valid_counts, a selection needs none")
            topk_indices = self.select(
                index_q=index_q,
                index_weights=index_weights,
                index_k_cache=index_k_cache,
                pooled_k_cache=pooled_k_cache,
            )
        if topk_indices is not None:
            lists = located_lists(self._ops, batch, cache, len(packed), topk_indices, valid_counts)
        else:
            lists = given_lists(packed, row_ids, valid_counts)
        results = self._attention.attend(contract, packed, cache, lists, sinks, places)
        to_base(base, results[1])
        return results if return_lse else results[0]

    def _planned(self) -> tuple[PlanContract, PagedBatch | None]:
        if self._plan is None:
            raise WrongState("the wrapper has no plan, a run needs one: call plan first")
        return self._plan
