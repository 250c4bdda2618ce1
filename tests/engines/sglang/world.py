"""SGLang's own parts on the CPU: arguments, pool, page tables, batches, an indexer; and keys."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.engine.models import SHAPES
from hisparse_kernels.index_rows import pack_index_rows, read_index_rows, unpack_index_rows
from hisparse_kernels.layouts import index_layout

LAYOUT, PAGE = index_layout("fp8"), 64
TOPK, HEADS, LAYERS, MAX_TOKENS, NUM_PAGES = 128, 4, 2, 1024, 48
CONFIG = SHAPES["DeepSeek-V3.2"] | {
    "num_hidden_layers": LAYERS,
    "first_k_dense_replace": LAYERS,
    "index_topk": TOPK,
    "index_n_heads": HEADS,
}


def server_args(folder: Path, *arguments: str) -> Any:
    """SGLang's own `ServerArgs` of a command line, resolved and published as a server does it."""
    from sglang.srt import runtime_context

    made = parsed_args(folder, *arguments)
    has_ranks = hasattr(runtime_context, "SpawnRanks")  # 0.5.17 has none
    ranks = {"ranks": runtime_context.SpawnRanks(world_rank=0)} if has_ranks else {}
    runtime_context.publish(made, role="scheduler", **ranks)
    return made


def parsed_args(folder: Path, *arguments: str) -> Any:
    """`ServerArgs` before they are resolved."""
    from sglang.srt.server_args import prepare_server_args

    (folder / "config.json").write_text(json.dumps(CONFIG))
    fixed = "--load-format dummy --device cpu --skip-tokenizer-init --kv-cache-dtype bfloat16"
    model = ["--model-path", str(folder), *fixed.split()]
    kernels = "--dsa-prefill-backend flashmla_sparse --dsa-decode-backend flashmla_sparse"
    return prepare_server_args([*model, *kernels.split(), *arguments])


@dataclass
class World:
    """A backend of ours over a pool of SGLang's, with sequences whose keys are known.

    Attributes:
        keys: [tokens, 128] fp32, the stored keys of each sequence, dequantised, in each layer.
    """

    runner: Any
    backend: Any
    indexer: Any
    pages: list[torch.Tensor]
    keys: dict[tuple[int, int], torch.Tensor]

    @property
    def pool(self) -> Any:
        return self.runner.token_to_kv_pool

    def context(self) -> AbstractContextManager[None]:
        """The forward context that SGLang's code asks for its backend and its pool."""
        from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

        return forward_context(ForwardContext(attn_backend=self.backend))

    def slots(self, seq: int, first: int, end: int) -> torch.Tensor:
        """[end - first] int64, slots of tokens of a sequence."""
        pos = torch.arange(first, end)
        return self.pages[seq][pos // PAGE] * PAGE + pos % PAGE

    def write(self, seq: int, first: int, end: int, *, seed: int = 0) -> None:
        """Writes index keys of [first, end) in every layer, through SGLang's writer."""
        for layer in range(LAYERS):
            keys = key_values(seq, layer, end, seed)[first:end]
            slots = self.slots(seq, first, end)
            with self.context():
                self.indexer._store_index_k_cache(
                    SimpleNamespace(out_cache_loc=slots), layer, keys, act_quant=quantize
                )
            stored = read_index_rows(self.pool.index_k_with_scale_buffer[layer], slots, LAYOUT)
            before = self.keys.get((seq, layer), torch.zeros(0, 128))[:first]
            self.keys[seq, layer] = torch.cat([before, unpack_index_rows(stored, LAYOUT)])


def key_values(seq: int, layer: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """[tokens, 128] fp32: neighbours are alike, so that pages differ."""
    made = torch.Generator().manual_seed(1000 * seed + 10 * seq + layer)
    steps = torch.randn(MAX_TOKENS // 40 + 1, 128, generator=made).repeat_interleave(40, 0)
    return (2 * steps[:MAX_TOKENS] + torch.randn(MAX_TOKENS, 128, generator=made))[:tokens]


def quantize(keys: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales, in place of SGLang's kernel for the GPU."""
    rows = pack_index_rows(keys, LAYOUT)
    codes, scales = rows[:, :128].contiguous(), rows[:, 128:].contiguous()
    return codes.view(torch.float8_e4m3fn), scales.view(torch.float32)


def make_runner(arguments: Any, **changed: Any) -> Any:
    """As much of a `ModelRunner` as the backend asks for, of SGLang's own parts."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool, ReqToTokenPool

    pool = DSATokenToKVPool(
        size=(NUM_PAGES - 1) * PAGE,
        page_size=PAGE,
        kv_lora_rank=512,
        dtype=torch.bfloat16,
        qk_rope_head_dim=64,
        layer_num=LAYERS,
        device="cpu",
        index_head_dim=128,
        enable_memory_saver=False,
        kv_cache_dim=576,
    )
    table = ReqToTokenPool(
        size=8, max_context_len=MAX_TOKENS, device="cpu", enable_memory_saver=False
    )
    parts = {
        "server_args": arguments,
        "model_config": ModelConfig.from_server_args(arguments),
        "token_to_kv_pool": pool,
        "req_to_token_pool": table,
        "hisparse_coordinator": None,
        "device": "cpu",
        "page_size": PAGE,
        "is_draft_worker": False,
        "kv_cache_dtype": torch.bfloat16,
        "max_running_requests": 8,
    }
    return SimpleNamespace(**parts | changed)


def make_world(runner: Any, tokens: Sequence[int] = (), *, seed: int = 0) -> World:
    """Sequences of so many tokens, in pages that lie apart, behind a backend of ours."""
    world = World(runner, make_backend(runner), make_indexer(), [], {})
    free = torch.randperm(NUM_PAGES - 1, generator=torch.Generator().manual_seed(seed)) + 1
    for seq, count in enumerate(tokens):
        room = -(-(count + PAGE) // PAGE)
        world.pages.append(free[:room])
        free = free[room:]
        slots = world.slots(seq, 0, room * PAGE)
        runner.req_to_token_pool.req_to_token[seq, : len(slots)] = slots.int()
        world.write(seq, 0, count, seed=seed)
    return world


def make_indexer() -> Any:
    """SGLang's indexer without its weights."""
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer

    indexer = Indexer.__new__(Indexer)
    torch.nn.Module.__init__(indexer)
    values = {
        "index_topk": TOPK,
        "block_size": 128,
        "scale_fmt": None,
        "num_init_tokens": 0,
        "num_local_tokens": 0,
    }
    for name, value in values.items():
        setattr(indexer, name, value)
    return indexer


def make_backend(runner: Any) -> Any:
    """The backend as SGLang's factory makes it."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    return ATTENTION_BACKENDS["hisparse"](runner)


def put_in_place_of_original(patch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    """Behind our hook of a method of SGLang's `Indexer` another function runs than SGLang's."""
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer

    hook = getattr(Indexer, name)
    place = hook.__closure__[hook.__code__.co_freevars.index("original")]
    patch.setattr(place, "cell_contents", function)
