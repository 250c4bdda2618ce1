import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tools.tiny_corpus import MODEL, TOY
from tools.tiny_dsa.check_transformers import CheckSize, check
from tools.tiny_dsa.corpus import Corpus
from tools.tiny_dsa.model import TinyDsa
from tools.tiny_dsa.muon import Muon
from tools.tiny_dsa.stages import MicroBatch, Stage, dense_rates, make_stages, selecting_rates
from tools.tiny_dsa.train import train
from tools.tiny_dsa.trainer import Trainer

STAGES = {
    "dense": Stage("dense", (MicroBatch(256, 2, 10),), 0.3),
    "warm": Stage("warm", (MicroBatch(256, 1, 10), MicroBatch(128, 2, 10)), 0.3),
    "sparse": Stage("sparse", (MicroBatch(256, 1, 10), MicroBatch(128, 2, 10)), 0.3),
}


@pytest.mark.parametrize(("kind", "trains_indexer", "trains_rest"), [
    ("dense", False, True), ("warm", True, False), ("sparse", True, True),
])  # fmt: skip
def test_each_stage_trains_what_it_names(
    corpus: Corpus, tmp_path: Path, kind: str, trains_indexer: bool, trains_rest: bool
) -> None:
    torch.manual_seed(0)
    model = TinyDsa(TOY)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model, corpus, tmp_path, workers=0, scale=8).run([STAGES[kind]])
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    indexer = {name for name in before if "indexer" in name}

    assert bool(changed & indexer) == trains_indexer
    assert bool(changed - indexer) == trains_rest
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (10, 6)])
def test_muon_moves_along_a_nearly_orthogonal_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(shape))
    matrix.grad = torch.randn(shape)
    optimizer = Muon([matrix], weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    singular = torch.linalg.svdvals(matrix.detach() / (0.2 * max(shape) ** 0.5))
    assert singular.min() > 0.3
    assert singular.max() < 1.4


def test_learning_rates_rise_and_fall() -> None:
    assert dense_rates(0, 0.0).trunk == pytest.approx(0.01)
    assert dense_rates(500, 0.5).trunk == 1.0
    assert dense_rates(500, 1.0).trunk == pytest.approx(0.3)
    assert selecting_rates("warm", 100, 0.0).indexer == pytest.approx(3e-3)
    assert selecting_rates("sparse", 100, 1.0).indexer < 1e-4


def test_stage_times_of_the_wrong_number_are_refused() -> None:
    with pytest.raises(ValueError, match="need 5 numbers of seconds, 2 given"):
        make_stages((1.0, 2.0))


@pytest.mark.slow
def test_a_short_run_at_toy_size_trains_exports_and_evaluates(
    corpus_folder: Path, tmp_path: Path
) -> None:
    seconds = (0.5, 0.0, 0.0, 0.2, 0.2)
    config = replace(TOY, index_n_heads=4)
    train(corpus_folder, tmp_path, seconds, config=config, workers=0, scale=8, fast_evaluation=True)
    found = json.loads((tmp_path / "eval.json").read_text())
    assert set(found) == {"text_loss", "needle", "indexer"}
    assert [len(layers) for layers in found["indexer"].values()] == [2]
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()


@pytest.mark.slow
def test_transformers_agrees_with_the_training_code_on_the_shipped_model(corpus: Corpus) -> None:
    found = check(MODEL, corpus, CheckSize(num_tokens=800, num_texts=1, num_needles=1))
    for numbers in found.values():
        assert numbers["needles"] == 1.0
        assert numbers["generates"]
        assert numbers["max_logit_difference"] < 2e-3
