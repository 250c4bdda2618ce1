"""Trains the tiny model from a prepared corpus: five stages, export, evaluation.

One H100 needs 12 minutes. Stages, as in DeepSeek-V3.2 (arXiv:2512.02556): dense at three
contexts, the indexer alone, then everything with the real selection.
"""

import argparse
import json
from pathlib import Path

import torch

from tools.tiny_dsa.config import DEVICE, ModelConfig
from tools.tiny_dsa.corpus import Corpus
from tools.tiny_dsa.dense_attention import choose_backend
from tools.tiny_dsa.evaluate import Evaluation
from tools.tiny_dsa.export import export, round_to_bf16
from tools.tiny_dsa.model import TinyDsa
from tools.tiny_dsa.stages import DEFAULT_SECONDS, make_stages
from tools.tiny_dsa.trainer import Trainer


def train(
    data: Path,
    out: Path,
    seconds: tuple[float, ...] = DEFAULT_SECONDS,
    *,
    config: ModelConfig | None = None,
    workers: int = 12,
    scale: int = 1,
    fast_evaluation: bool = False,
) -> None:
    """Write OUT/model, a checkpoint of each stage and OUT/eval.json.

    Args:
        data: folder that `prepare` wrote.
        out: folder to write.
        seconds: time of each of the five stages; 0 leaves one out.
        config: shape of the model.
        workers: processes that make batches.
        scale: contexts and batches are this many times smaller.
        fast_evaluation: few samples, short contexts.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus.load(data)
    _configure_torch()
    config = config or ModelConfig()
    model = TinyDsa(config).to(DEVICE)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters} parameters, {len(corpus.train)} tokens", flush=True)
    if DEVICE == "cuda":
        choose_backend(config)
    Trainer(model, corpus, out, workers, scale).run(make_stages(seconds, scale))
    export(model, data / "tokenizer.json", out / "model")
    round_to_bf16(model)
    found = Evaluation(model, corpus, fast_evaluation, scale).run()
    (out / "eval.json").write_text(json.dumps(found, indent=1))


def _configure_torch() -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.cache_size_limit = 64
    torch._dynamo.config.automatic_dynamic_shapes = False


def main() -> None:
    """Read folders and times from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder that prepare wrote")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--seconds", type=float, nargs=5, default=DEFAULT_SECONDS, help="time of each stage"
    )
    parser.add_argument("--workers", type=int, default=12, help="processes that make batches")
    parser.add_argument("--scale", type=int, default=1, help="shrink contexts and batches")
    parser.add_argument(
        "--fast-evaluation", action="store_true", help="few samples, short contexts"
    )
    arguments = parser.parse_args()
    train(
        arguments.data,
        arguments.out,
        tuple(arguments.seconds),
        workers=arguments.workers,
        scale=arguments.scale,
        fast_evaluation=arguments.fast_evaluation,
    )


if __name__ == "__main__":
    main()
