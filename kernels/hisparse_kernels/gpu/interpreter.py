"""Whether Triton kernels are interpreted on the CPU, as in tests without a GPU."""

import triton


def interpreting() -> bool:
    """True where TRITON_INTERPRET=1 was set before Triton was imported.

    The interpreter multiplies the raw bits of bf16 operands and rounds fp32 to e4m3 wrongly
    (triton-lang/triton issue 11584), so kernels widen or round by hand under this flag.
    """
    return bool(triton.knobs.runtime.interpret)
