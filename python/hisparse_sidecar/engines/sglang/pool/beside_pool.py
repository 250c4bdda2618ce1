"""What is kept beside a pool of SGLang's, for the hooks of its writers."""

from hisparse_sidecar.engines.sglang.pool.offloaded_keys import OffloadedKeys
from hisparse_sidecar.engines.sglang.pool.pooled_pages import PooledPages
from hisparse_sidecar.engines.sglang.pool.written_rows import WrittenRows

_POOLED = "_hisparse_pooled_pages"
_OFFLOADED = "_hisparse_offloaded_keys"
_WRITTEN = "_hisparse_written_rows"


def pooled_pages_of(pool: object) -> PooledPages | None:
    """The pooled keys that are kept beside a pool; None = none are."""
    found = getattr(pool, _POOLED, None)
    assert found is None or isinstance(found, PooledPages)
    return found


def offloaded_keys_of(pool: object) -> OffloadedKeys | None:
    """Where index keys of a pool go if they do not stay there; None = they do."""
    found = getattr(pool, _OFFLOADED, None)
    assert found is None or isinstance(found, OffloadedKeys)
    return found


def written_rows_of(pool: object) -> WrittenRows | None:
    """The rows that passes write of a pool whose rows we offload; None = we do not."""
    found = getattr(pool, _WRITTEN, None)
    assert found is None or isinstance(found, WrittenRows)
    return found


def keep_written_rows(pool: object) -> None:
    """From now on the pool's writer of KV rows finds these once a pass."""
    setattr(pool, _WRITTEN, WrittenRows())


def keep_beside(pool: object, pooled: PooledPages, offloaded: OffloadedKeys | None) -> None:
    """From now on the pool's writers keep these up to date."""
    setattr(pool, _POOLED, pooled)
    setattr(pool, _OFFLOADED, offloaded)
