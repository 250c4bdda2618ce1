"""Pages as callers hand them to the remote tier, and what it counts of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import InvalidArgument
from hisparse_sidecar.remote.frame import IDENTITY_BYTES

WritableBytes: TypeAlias = bytearray | memoryview
Bytes: TypeAlias = bytes | WritableBytes


class Page(NamedTuple):
    """A page to put: 32 bytes that name it, its bytes, its tokens."""

    identity: bytes
    content: Bytes
    num_tokens: int


@dataclass(frozen=True)
class RemoteUsage:
    """What a tier has done since it was made."""

    puts: int = 0
    hits: int = 0
    misses: int = 0
    corrupt: int = 0  # misses whose bytes were not those that had been put
    unreadable: int = 0  # misses that the store lists, but whose owner does not answer
    full: int = 0  # answers of a full store; each is waited out and tried again
    failures: int = 0  # calls that raised TierDown or DeadlinePassed


def bytes_of(page: Bytes) -> memoryview:
    """A page's bytes, whatever its items are."""
    return memoryview(page).cast("B")


def check_names(identities: Sequence[bytes]) -> None:
    """Refuses names of another length, and none at all."""
    for identity in identities:
        if len(identity) != IDENTITY_BYTES:
            found = f"identity: found {len(identity)} bytes"
            raise InvalidArgument(f"{found}, needed {IDENTITY_BYTES}")
    if not identities:
        raise InvalidArgument("pages: found 0 pages, needed 1 or more")


def check_tokens(num_tokens: int) -> None:
    """Refuses more tokens than a page has, and none."""
    if not 1 <= num_tokens <= PAGE_TOKENS:
        raise InvalidArgument(f"num_tokens: found {num_tokens}, needed 1 to {PAGE_TOKENS}")
