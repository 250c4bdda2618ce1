"""What FlashMLA does not do is refused with what was found and what is needed."""

from typing import Any

import pytest
import torch

from hisparse_kernels.flash_mla_limits import check_flash_mla
from hisparse_kernels.layouts import kv_layout

FP8, BF16 = kv_layout("fp8_ds_mla"), kv_layout("bf16")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"layout": kv_layout("fp8")}, "KV rows are fp8, 528 B, flash_mla needs fp8_ds_mla"),
        ({"layout": kv_layout("fp32")}, "KV rows are fp32, 2304 B, flash_mla needs"),
        ({"num_heads": 16}, "queries have 16 heads, flash_mla needs 64 or 128"),
        ({"num_heads": 96}, "queries have 96 heads"),
        ({"query_dtype": torch.float16}, "queries are torch.float16, flash_mla needs torch.bf"),
        ({"split_keys": 256}, "split_keys is 256, flash_mla splits by the batch: needs None"),
        ({"split_keys": 0}, "split_keys is 0"),
        ({"layout": FP8, "topk": 96}, "lists have 96 ids, .* a multiple of 64 over fp8_ds_mla"),
        ({"layout": BF16, "topk": 192}, "lists have 192 ids, .* a multiple of 128 over bf16 rows"),
    ],
)
def test_what_flash_mla_does_not_do_is_refused(found: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_flash_mla(**found)


@pytest.mark.parametrize("num_heads", [64, 128])
@pytest.mark.parametrize(("layout", "topk"), [(FP8, 64), (FP8, 192), (BF16, 128), (None, 96)])
def test_what_flash_mla_does_passes(num_heads: int, layout: Any, topk: int) -> None:
    check_flash_mla(layout=layout, num_heads=num_heads, query_dtype=torch.bfloat16, topk=topk)
