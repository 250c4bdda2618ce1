"""The hardware's limits, and the spills that we know of and accept."""

MAX_SHARED_BYTES = 232_448  # a block's, on sm_90 and sm_100
MAX_TMEM_COLUMNS = 512
MAX_GRID = (2**31 - 1, 65_535, 65_535)
MIN_CODE_SHARE = 0.2  # machine instructions for each PTX instruction; usual is 0.7 to 2
MIN_WIDE_SHARE = 0.75  # of the bytes where a row holds its scales too

# (kernel, arch): bytes of spill stores and loads together, over all its configurations
PERMITTED_SPILLS: dict[tuple[str, int], int] = {
    # On an H100 the fastest tiles fill the registers: 64 heads with 64 keys of bf16 (1.3 times
    # faster than 32 keys), 16 heads of fp8 rows in four warps (1.6 times faster than in eight).
    ("sparse_mla._attend_kernel", 90): 112,
    ("sparse_mla._attend_kernel", 100): 84,
    ("resolve._resolve_kernel", 90): 44,  # of a block window, with Triton 3.6.0 alone
    ("resolve._resolve_kernel", 100): 20,  # of new rows' blocks, with Triton 3.9 alone
    # The loop over heads, beside a pipeline's own buffers: three to five words for a whole row.
    ("refine_logits._refine_kernel", 100): 20,
    ("select_blocks._select_blocks_kernel", 100): 8,
    # A row of 8192 scores is 32 registers of each thread, and stays there.
    ("topk._topk_positions_kernel", 90): 40,
    ("topk._topk_positions_kernel", 100): 40,
    ("topk_tree._best_of_runs_kernel", 90): 48,
    # more than half of a block kept of a long row; with Triton 3.6.0 alone
    ("topk._topk_kernel", 90): 32,
    ("topk._topk_kernel", 100): 32,
}

# (arch, Triton): compilers that give tf32 for input_precision="ieee" of widened e4m3 values
KNOWN_TF32 = {(100, "3.6.0"), (103, "3.6.0")}


def permitted_spill_bytes(kernel: str, arch: int) -> int:
    """How much the kernel may spill."""
    return PERMITTED_SPILLS.get((kernel, arch), 0)
