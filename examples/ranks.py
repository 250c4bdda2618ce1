"""Two ranks of one model on one host: each with a device tier of its own, one host pool for both.

Run it with `python examples/ranks.py`. An engine starts its ranks itself: all that it does more
than alone is to give each `Sidecar` its place.
"""

import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch

from hisparse_sidecar import LayerInputs, ModelShape, SelectionConfig, Sidecar, SidecarConfig
from hisparse_sidecar.ranks import RankPlace

NUM_RANKS, HEADS, INDEX_HEADS, PROMPT_TOKENS, NEW_TOKENS = 2, 4, 4, 300, 20
CONFIG = SidecarConfig(
    ModelShape(
        num_layers=2, anchor_of=(0, 0), index_heads=INDEX_HEADS, topk=64, softmax_scale=0.04
    ),
    host_pages=16,
    max_sequences=2,
    stage_rows=1024,
    selection=SelectionConfig("hisa", num_kept_blocks=4),
)


def main() -> None:
    """Starts the ranks and waits for them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranks.sock"
        places = [RankPlace(rank, NUM_RANKS, path) for rank in range(NUM_RANKS)]
        spawn = multiprocessing.get_context("spawn")
        ranks = [spawn.Process(target=run_rank, args=(place,)) for place in places]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            sys.exit("a rank has failed")


def run_rank(place: RankPlace) -> None:
    """The same calls on every rank, with the rank's own heads and the same new rows."""
    with Sidecar(CONFIG, place) as sidecar:
        sequence = sidecar.open(PROMPT_TOKENS, NEW_TOKENS)
        run_step(sidecar, place, sequence, PROMPT_TOKENS, "prefill")
        for _ in range(NEW_TOKENS):
            run_step(sidecar, place, sequence, 1, "decode")
        sidecar.check_integrity()
        spilled = sum(group.spilled_bytes for group in sidecar.stats().groups)
        sys.stdout.write(
            f"rank {place.rank}: {sidecar.length(sequence)} tokens, "
            f"{sidecar.host.region.num_bytes} bytes of host pool shared by {place.num_ranks}, "
            f"{spilled} bytes spilled by this rank\n"
        )


def run_step(sidecar: Sidecar, place: RankPlace, sequence: int, rows: int, kind: str) -> None:
    """One step of random rows: KV and index keys are equal on all ranks, the queries are not."""
    sidecar.begin_step([(sequence, rows)], "prefill" if kind == "prefill" else "decode")
    for layer in range(CONFIG.model.num_layers):
        shared = torch.Generator().manual_seed(sidecar.length(sequence) * 10 + layer)
        own = torch.Generator().manual_seed(place.rank)
        query = torch.randn(rows, HEADS, CONFIG.kv.query_dim, generator=own)
        inputs = LayerInputs(query, torch.randn(rows, CONFIG.kv.query_dim, generator=shared))
        if CONFIG.model.is_anchor(layer):
            inputs = LayerInputs(
                query,
                inputs.kv,
                torch.randn(rows, INDEX_HEADS, 128, generator=shared),
                torch.randn(rows, INDEX_HEADS, generator=shared),
                torch.randn(rows, 128, generator=shared),
            )
        sidecar.run_layer(layer, inputs)
    sidecar.commit_step()


if __name__ == "__main__":
    main()
