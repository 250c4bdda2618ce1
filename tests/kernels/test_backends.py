import dataclasses
import importlib
import inspect

import pytest

import hisparse_kernels
from hisparse_kernels.backends import Ops, reference_ops

MODULE_OF = {
    "pack_kv_rows": "kv_rows",
    "unpack_kv_rows": "kv_rows",
    "pack_index_rows": "index_rows",
    "unpack_index_rows": "index_rows",
    "write_index_rows": "index_rows",
    "read_index_rows": "index_rows",
    "quantize_index_q": "index_rows",
    "append_index_rows": "pool_keys",
    "rebuild_pooled_keys": "pool_keys",
    "resum_open_blocks": "pool_keys",
    "pool_full_pages": "pool_pages",
    "paged_index_logits": "index_logits",
    "lay_out_batch": "paged_batch",
    "candidate_positions": "topk",
    "release_items": "resolve",
    "swap_in_blocks": "swap_in",
}
OPS = [field.name for field in dataclasses.fields(Ops)]


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_its_twin_with_the_public_functions_signature(op: str) -> None:
    module = importlib.import_module(f"{hisparse_kernels.__name__}.{MODULE_OF.get(op, op)}")
    public, twin = getattr(module, op), getattr(module, f"{op}_ref")

    assert getattr(reference_ops(), op) is twin
    assert inspect.signature(public) == inspect.signature(twin)
    assert public.__doc__


def test_ops_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        reference_ops().topk = None  # type: ignore[misc]
