"""Scattered reads and writes by the threads that hold the addresses.

`tl.load` and `tl.store` choose threads by how addresses follow each other, and move a tensor to
them first: where they follow in no way, that costs more than the access.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.interpreter import interpreting

_INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def load_in_place(ptr, mask, other) -> tl.tensor:
    """`tl.load` of fp32."""
    if _INTERPRETED:
        value = tl.load(ptr, mask=mask, other=other)
    else:
        value = tl.inline_asm_elementwise(
            """{
            .reg .pred is_loaded;
            setp.ne.s32 is_loaded, $2, 0;
            mov.f32 $0, 0f00000000;
            @is_loaded ld.global.f32 $0, [$1];
            }""",
            "=&f,l,r",
            [ptr, mask.to(tl.int32)],
            dtype=tl.float32,
            is_pure=False,
            pack=1,
        )
        value = tl.where(mask, value, other)
    return value


@triton.jit
def store_in_place(ptr, value, mask) -> None:
    """`tl.store` of 32-bit values."""
    if _INTERPRETED:
        tl.store(ptr, value, mask=mask)
    else:
        tl.inline_asm_elementwise(
            """{
            .reg .pred is_stored;
            setp.ne.s32 is_stored, $3, 0;
            @is_stored st.global.b32 [$1], $2;
            mov.b32 $0, 0;
            }""",
            "=r,l,r,r",
            [ptr, value, mask.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
