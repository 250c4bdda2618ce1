"""Pack latent and rope values into stored KV rows, and unpack them."""

import torch

from hisparse_kernels.e4m3 import E4M3_MAX, from_e4m3, to_e4m3
from hisparse_kernels.layouts import SCALE_DIM, KvLayout
from hisparse_kernels.shapes import FLOATS, Shapes, placed

_MIN_AMAX = 1e-4  # keeps the scale of an all-zero group away from zero
_CHUNK_ROWS = 1024


def pack_kv_rows(
    values: torch.Tensor, layout: KvLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Stored rows of new tokens. fp8 layouts round each scale up to a power of two.

    Args:
        values: [n, query_dim] float, latent then rope; must be finite (e4m3 has no inf, which
            saturates; a NaN makes its group of 128 NaN: codes 0x7f and 0xff).
        layout: how a row is stored.
        out: [n, row_bytes] uint8, overwritten; None = allocate it.

    Returns:
        `out`.
    """
    shapes = Shapes(query_dim=layout.query_dim, row_bytes=layout.row_bytes)
    shapes.check("values", values, "n query_dim", *FLOATS)
    shapes.check_out(out, "n row_bytes", torch.uint8)
    if values.is_cuda:
        from hisparse_kernels.gpu.kv_rows import pack_kv_rows_triton

        return pack_kv_rows_triton(values, layout, out)
    return pack_kv_rows_ref(values, layout, out)


def pack_kv_rows_ref(
    values: torch.Tensor, layout: KvLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    if layout.name in ("bf16", "fp32"):
        dtype = torch.bfloat16 if layout.name == "bf16" else torch.float32
        return placed(values.to(dtype).contiguous().view(torch.uint8), out)
    groups = values[:, : layout.latent_dim].float().unflatten(1, (-1, SCALE_DIM))
    scale = _power_of_two_scale(groups.abs().amax(-1))  # [n, 4]
    codes = to_e4m3(groups / scale[:, :, None])
    rope = values[:, layout.latent_dim :].to(torch.bfloat16).contiguous()
    return placed(torch.cat([_bytes(codes.flatten(1)), _bytes(scale), _bytes(rope)], dim=1), out)


def unpack_kv_rows(
    rows: torch.Tensor, layout: KvLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Values of stored rows: the exact numbers that attention computes with.

    Args:
        rows: [n, row_bytes] uint8.
        layout: how a row is stored.
        out: [n, query_dim] fp32, overwritten; None = allocate it.

    Returns:
        `out`: latent, then rope.
    """
    shapes = Shapes(query_dim=layout.query_dim, row_bytes=layout.row_bytes)
    shapes.check("rows", rows, "n row_bytes", torch.uint8)
    shapes.check_out(out, "n query_dim", torch.float32)
    if rows.is_cuda:
        from hisparse_kernels.gpu.kv_rows import unpack_kv_rows_triton

        return unpack_kv_rows_triton(rows, layout, out)
    return unpack_kv_rows_ref(rows, layout, out)


def unpack_kv_rows_ref(
    rows: torch.Tensor, layout: KvLayout, out: torch.Tensor | None = None
) -> torch.Tensor:
    if out is None:
        out = rows.new_empty(rows.shape[0], layout.query_dim, dtype=torch.float32)
    for start in range(0, rows.shape[0], _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        _unpack_into(out[chunk], rows[chunk], layout)
    return out


def _unpack_into(values: torch.Tensor, rows: torch.Tensor, layout: KvLayout) -> None:
    if layout.name in ("bf16", "fp32"):
        dtype = torch.bfloat16 if layout.name == "bf16" else torch.float32
        values.copy_(rows.contiguous().view(dtype))
        return
    num_scales = layout.latent_dim // SCALE_DIM
    scale_end = layout.latent_dim + 4 * num_scales
    codes = rows[:, : layout.latent_dim].unflatten(1, (num_scales, SCALE_DIM))
    scale = rows[:, layout.latent_dim : scale_end].contiguous().view(torch.float32)  # [n, 4]
    values[:, : layout.latent_dim] = from_e4m3(codes).mul_(scale[:, :, None]).flatten(1)
    values[:, layout.latent_dim :] = rows[:, scale_end:].contiguous().view(torch.bfloat16)


def _power_of_two_scale(amax: torch.Tensor) -> torch.Tensor:
    # exact: amax / 448 = mantissa * 2**exponent with the mantissa in [0.5, 1)
    mantissa, exponent = torch.frexp(amax.clamp(min=_MIN_AMAX) / E4M3_MAX)
    scale = torch.ldexp(torch.ones_like(amax), exponent - (mantissa == 0.5).int())
    return scale.masked_fill(amax.isnan(), torch.nan)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    # `contiguous` would leave an empty tensor's strides alone, which `view` refuses
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8)
