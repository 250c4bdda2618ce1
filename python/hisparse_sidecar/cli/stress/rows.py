"""What every row has to be: a pure function of the tenant, the tokens up to it, and the layer.

All values are integers of 4 bits, so bf16 holds them and fp32 sums of 64 are exact: the bytes of a
page follow without any code of the sidecar.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.cli.stress.world import HEADS
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.layer_io import LayerInputs

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_KEY, _QUERY, _INDEX_QUERY, _WEIGHT = 1000, 2000, 3000, 4000  # salts of a layer's kinds of rows

Links = npt.NDArray[np.uint64]
Values = npt.NDArray[np.float32]


def mix(number: int) -> int:
    """SplitMix64's finalizer: 64 bits that look random."""
    number = (number + _STEP) & _MASK
    number = ((number ^ (number >> 30)) * _FACTORS[0]) & _MASK
    number = ((number ^ (number >> 27)) * _FACTORS[1]) & _MASK
    return number ^ (number >> 31)


def first_link(tenant: str) -> int:
    """What stands before the first token of a tenant's sequences."""
    return int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=8).digest(), "little")


def next_link(link: int, token: int) -> int:
    """Names a token by itself and all tokens before it."""
    return mix(link ^ (token * _STEP & _MASK))


def layer_inputs(config: SidecarConfig, links: list[int], layer: int) -> LayerInputs:
    """Inputs of `run_layer` for the rows of these links."""
    rows, at = len(links), np.array(links, dtype=np.uint64)
    query = _tensor(_values(at, _QUERY + layer, HEADS * config.kv.query_dim))
    kv = _tensor(_values(at, layer, config.kv.query_dim))
    shaped = query.view(rows, HEADS, config.kv.query_dim)
    if not config.model.is_anchor(layer):
        return LayerInputs(shaped, kv)
    heads, dim = config.model.index_heads, config.index.head_dim
    index_q = _tensor(_values(at, _INDEX_QUERY + layer, heads * dim)).view(rows, heads, dim)
    weights = _tensor(_values(at, _WEIGHT + layer, 8)[:, :heads])
    return LayerInputs(shaped, kv, index_q, weights, _tensor(_values(at, _KEY + layer, dim)))


def page_bytes(config: SidecarConfig, links: list[int]) -> bytes:
    """The bytes of a page with the rows of these links, 1 to 64, in the order of a stored page.

    Rows of every layer, index rows of every anchor and, if it is full, its pooled keys.
    """
    at, dim = np.array(links, dtype=np.uint64), config.index.head_dim
    rows = [_values(at, layer, config.kv.query_dim) for layer in range(config.model.num_layers)]
    keys = [_values(at, _KEY + layer, dim) for layer in config.model.anchors]
    parts = [_bf16(one) for one in rows] + [one.tobytes() for one in keys]
    if len(links) == PAGE_TOKENS:
        parts += [one.mean(axis=0, dtype=np.float32).tobytes() for one in keys]
    return b"".join(parts)


def digest(payload: bytes) -> str:
    """Names bytes."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


def _values(links: Links, salt: int, width: int) -> Values:
    """[links, width] fp32, integers -8 to 7; `width` is a multiple of 8."""
    columns = np.arange(width // 8, dtype=np.uint64) + np.uint64(salt << 32)
    bits = links[:, None] ^ (columns * np.uint64(_STEP))
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    nibbles = bits.view(np.uint8) & 15
    return nibbles.astype(np.float32) - np.float32(8)


def _bf16(values: Values) -> bytes:
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes()


def _tensor(values: Values) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
