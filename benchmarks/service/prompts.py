"""Prompts whose pages the server is to have: texts by number, prefilled with rows of noise."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.service.callers import PAGE_TOKENS
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.layer_io import LayerInputs

_STEP_ROWS = 4096


def text(number: int, pages: int) -> list[int]:
    """Token ids that begin with so many pages that others may share; no two numbers share any."""
    return [number << 16 | at for at in range(pages * PAGE_TOKENS + 1)]


def prefill(socket_path: Path, numbers: Iterable[int], pages: int, tenant: str = "") -> None:
    """Lets the server have the pages of these texts, in sequences that are closed again."""
    with RemoteSession(socket_path) as session:
        waiting = list(numbers)
        at_a_time = max(1, _STEP_ROWS // (pages * PAGE_TOKENS + 1))
        while waiting:
            _prefill_together(session, waiting[:at_a_time], pages, tenant)
            del waiting[:at_a_time]


def _prefill_together(
    session: RemoteSession, numbers: Sequence[int], pages: int, tenant: str
) -> None:
    texts = [text(number, pages) for number in numbers]
    opened = [session.open_prompt(token_ids, 0, tenant=tenant) for token_ids in texts]
    told = [ids[one.cached_tokens :] for ids, one in zip(texts, opened, strict=True)]
    rows = [(one.sequence, len(ids)) for one, ids in zip(opened, told, strict=True)]
    session.begin_step(rows, "prefill", token_ids=[token for ids in told for token in ids])
    for layer in range(session.config.model.num_layers):
        session.run_layer(layer, _noise(session, layer, sum(count for _, count in rows)))
    session.end_step()
    for one in opened:
        session.close_sequence(one.sequence)


def _noise(session: RemoteSession, layer: int, rows: int) -> LayerInputs:
    width, heads = session.config.kv.query_dim, session.config.model.index_heads
    query, kv = torch.randn(rows, 1, width), torch.randn(rows, width)
    if not session.config.model.is_anchor(layer):
        return LayerInputs(query, kv)
    index_q, weights = torch.randn(rows, heads, 128), torch.randn(rows, heads)
    return LayerInputs(query, kv, index_q, weights, torch.randn(rows, 128))
