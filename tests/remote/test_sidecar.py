"""Two sidecars that share nothing but a store: what one has computed, the other finds there."""

import time
from pathlib import Path

import torch

from hisparse_sidecar import ModelShape, Sidecar, SidecarConfig
from hisparse_sidecar.config import SelectionConfig, TiersConfig
from hisparse_sidecar.layer_io import LayerInputs
from hisparse_sidecar.remote.local_store import LocalMaster, LocalOwner

PROMPT = list(range(1000, 1300))
RECONNECT_SECONDS = 5.0


def config(master: LocalMaster, path: Path) -> SidecarConfig:
    tiers = TiersConfig(
        remote_master=master.address,
        secret_file=str(path / "secret"),
        model_name="random",
        free_share=0.0,
    )
    model = ModelShape(2, (0, 0), index_heads=4, topk=32, softmax_scale=0.1)
    return SidecarConfig(
        model, host_pages=32, tiers=tiers, selection=SelectionConfig("flat"), stage_rows=2048
    )


def run(sidecar: Sidecar, sequence: int, start: int, count: int) -> list[torch.Tensor]:
    """Outputs of the prompt's rows from `start` on; rows depend on their position alone."""
    dim = sidecar.config.kv.query_dim
    made = torch.Generator().manual_seed(5)
    query = torch.randn(400, 3, dim, generator=made)
    kv, index_k = torch.randn(400, dim, generator=made), torch.randn(400, 128, generator=made)
    index_q, weights = torch.randn(400, 4, 128, generator=made), torch.rand(400, 4, generator=made)
    rows = slice(start, start + count)
    ids = (PROMPT + [7] * 100)[rows]
    sidecar.begin_step([(sequence, count)], "prefill", token_ids=ids)
    first = LayerInputs(query[rows], kv[rows], index_q[rows], weights[rows], index_k[rows])
    outputs = [sidecar.run_layer(0, first).out.clone()]
    outputs.append(sidecar.run_layer(1, LayerInputs(query[rows], kv[rows])).out.clone())
    sidecar.commit_step()
    return outputs


def test_a_prompt_of_one_sidecar_is_found_by_another(
    master: LocalMaster, owner: LocalOwner, tmp_path: Path
) -> None:
    with Sidecar(config(master, tmp_path)) as one:
        sequence, cached = one.open_prompt(PROMPT, 10)
        assert cached == 0
        run(one, sequence, 0, 300)
        wanted = run(one, sequence, 300, 5)
        one.close_sequence(sequence)
        assert one.drain(10.0) == (4, 0)
        assert one.lower_tiers()[0].condition == "serving"
    with Sidecar(config(master, tmp_path)) as other:
        sequence, cached = other.open_prompt(PROMPT, 10)
        assert cached == 256
        run(other, sequence, 256, 44)
        for found, expected in zip(run(other, sequence, 300, 5), wanted, strict=True):
            assert torch.equal(found, expected)
        other.close_sequence(sequence)
        owner.kill()
        other.evict_idle(32)
        _, cached = other.open_prompt(PROMPT, 10)
        assert cached == 0  # listed, perhaps, but not to be had: computed again, and no error


def wait_until_serving(sidecar: Sidecar) -> None:
    """Without a call that could wake the tier."""
    start = time.monotonic()
    while sidecar.lower_tiers()[0].condition != "serving":
        assert time.monotonic() - start < RECONNECT_SECONDS
        time.sleep(0.01)


def compute(sidecar: Sidecar, num_cached: int) -> None:
    sequence, cached = sidecar.open_prompt(PROMPT, 10)
    assert cached == num_cached
    run(sidecar, sequence, cached, 300 - cached)
    sidecar.close_sequence(sequence)


def test_a_sidecar_starts_without_a_master_and_finds_it_by_itself(
    master_to_come: LocalMaster, tmp_path: Path
) -> None:
    with Sidecar(config(master_to_come, tmp_path)) as one:
        assert one.lower_tiers()[0].condition == "degraded"
        compute(one, 0)
        master_to_come.start()
        owner = LocalOwner(master_to_come.address, 64 << 20)
        wait_until_serving(one)
        assert one.drain(10.0) == (4, 0)
        with Sidecar(config(master_to_come, tmp_path)) as other:
            compute(other, 256)
            owner.kill()
            master_to_come.kill()
            while other.lower_tiers()[0].condition == "serving":
                other.evict_idle(32)
                compute(other, 0)
            master_to_come.start()
            owner = LocalOwner(master_to_come.address, 64 << 20)
            wait_until_serving(other)
            assert other.drain(10.0) == (4, 0)
    owner.kill()
