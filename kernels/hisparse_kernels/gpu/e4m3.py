"""Device functions between fp32 values and e4m3 codes, with the bits of `hisparse_kernels.e4m3`."""

import triton
import triton.language as tl

from hisparse_kernels.gpu.interpreter import interpreting

_INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def to_e4m3(values) -> tl.tensor:
    """uint8 codes of fp32 values: to nearest even; beyond +-448 they saturate, NaN stays NaN.

    By integers: Triton's interpreter rounds its own cast wrongly.
    """
    bits = values.to(tl.int32, bitcast=True)
    unsigned = bits & 0x7FFFFFFF
    held = tl.minimum(unsigned, 0x43E00000)  # 448.0
    normal = ((held + 0x7FFFF + ((held >> 20) & 1)) >> 20) - (127 - 7) * 8
    mantissa = (held & 0x7FFFFF) | 0x800000
    shift = tl.minimum(127 + 23 - 9 - (held >> 23), 25)  # codes below 2**-6 count steps of 2**-9
    rounding = (1 << (shift - 1)) - 1 + ((mantissa >> shift) & 1)
    code = tl.where(held < 0x3C800000, (mantissa + rounding) >> shift, normal)  # 2**-6
    code = tl.where(unsigned > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def from_e4m3(codes) -> tl.tensor:
    """fp32 values of uint8 codes, exact."""
    values = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    if _INTERPRETED:  # where the two NaN codes come out as +-480
        values = tl.where((codes & 0x7F) == 0x7F, float("nan"), values)
    return values


@triton.jit
def quotient(values, scale) -> tl.tensor:
    """IEEE `values / scale`; a NaN value keeps its sign, which decides its code."""
    return tl.where(values != values, values, tl.div_rn(values, scale))


@triton.jit
def amax_or_nan(values, AXIS: tl.constexpr) -> tl.tensor:
    """Largest magnitude along an axis; NaN if any of them is NaN, as in torch."""
    has_nan = tl.max((values != values).to(tl.int32), AXIS)
    return tl.where(has_nan != 0, float("nan"), tl.max(tl.abs(values), AXIS))
