"""Compile-time values that all pipelines share."""

import triton


def pipeline_options() -> dict[str, object]:
    """For the current GPU."""
    arch = int(triton.runtime.driver.active.get_current_target().arch)
    return {
        "ARCH": arch,
        # a product runs on while the loop turns: of registers the compiler then makes no overlap
        "ACROSS": arch >= 100,
        "num_warps": 4,
        # which product fuses with which sum would differ from op to op: `head_sum` says it
        "enable_fp_fusion": False,
    }
