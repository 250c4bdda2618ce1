"""The names that prompts lead to, made from the texts alone: a hash keyed by tenant, page by page.

The tier knows a page by such a name, or by one that the server made up for a sequence that rests.
A prompt finds the first kind only, so nothing is promised about the second. The rule is that of
rust/core/src/tier/identity.rs; BLAKE3 is written out for one chunk, which every input fits.
"""

import struct
from collections.abc import Sequence

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.config import SidecarConfig

_BLOCK_BYTES, _CHUNK_BYTES = 64, 1024
_CHUNK_START, _CHUNK_END, _ROOT, _KEYED = 1, 2, 8, 16
_WORDS = struct.Struct("<16I")
_MASK = 0xFFFFFFFF
_START = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A)
_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_NUM_ROUNDS = 7
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


class PageNames:
    """Names of the pages of one server's prompts."""

    def __init__(self, config: SidecarConfig, secret: bytes) -> None:
        """Names with the server's secret of 32 bytes."""
        self._config = config
        self._secret = secret
        self._tenants: dict[str, tuple[bytes, bytes]] = {}

    def after(self, tenant: str, parent: bytes | None, tokens: Sequence[int]) -> bytes:
        """[32] bytes, the name of a full page that follows `parent`; None = it is the first."""
        key, root = self._tenant(tenant)
        return keyed_hash(key, (parent or root) + struct.pack(f"<{len(tokens)}I", *tokens))

    def _tenant(self, tenant: str) -> tuple[bytes, bytes]:
        if tenant not in self._tenants:
            key = keyed_hash(self._secret, tenant.encode())
            parts = (self._config.tiers.model_name, _layout(self._config))
            counted = (struct.pack("<Q", len(part)) + part.encode() for part in parts)
            self._tenants[tenant] = key, keyed_hash(key, b"".join(counted))
        return self._tenants[tenant]


def _layout(config: SidecarConfig) -> str:
    model, anchors = config.model, len(config.model.anchors)
    layers = f"1: {model.num_layers} layers of {config.kv.row_bytes} bytes a row"
    anchored = f"{anchors} anchors of {config.index.row_bytes}"
    return f"{layers}, {anchored}, {PAGE_TOKENS} tokens a page, {config.block_tokens} a block"


def keyed_hash(key: bytes, text: bytes) -> bytes:
    """[32] bytes, BLAKE3 of up to 1024 bytes under a key of 32."""
    assert len(text) <= _CHUNK_BYTES, f"{len(text)} bytes are more than a chunk has"
    chain = list(struct.unpack("<8I", key))
    starts = range(0, max(1, len(text)), _BLOCK_BYTES)
    for start in starts:
        block = text[start : start + _BLOCK_BYTES]
        flags = _KEYED | (_CHUNK_START if start == 0 else 0)
        flags |= _CHUNK_END | _ROOT if start == starts[-1] else 0
        chain = _compress(chain, block, flags)
    return struct.pack("<8I", *chain)


def _compress(chain: list[int], block: bytes, flags: int) -> list[int]:
    words = list(_WORDS.unpack(block.ljust(_BLOCK_BYTES, b"\0")))
    state = [*chain, *_START, 0, 0, len(block), flags]  # a single chunk has the number 0
    for _ in range(_NUM_ROUNDS):
        for number, quarter in enumerate(_COLUMNS + _DIAGONALS):
            _mix(state, quarter, words[2 * number], words[2 * number + 1])
        words = [words[at] for at in _ORDER]
    return [low ^ high for low, high in zip(state[:8], state[8:], strict=True)]


def _mix(state: list[int], quarter: tuple[int, ...], first: int, second: int) -> None:
    a, b, c, d = (state[at] for at in quarter)
    for word, (left, right) in ((first, (16, 12)), (second, (8, 7))):
        a = (a + b + word) & _MASK
        d = _rotated(d ^ a, left)
        c = (c + d) & _MASK
        b = _rotated(b ^ c, right)
    for at, value in zip(quarter, (a, b, c, d), strict=True):
        state[at] = value


def _rotated(word: int, count: int) -> int:
    return (word >> count) | (word << (32 - count)) & _MASK
