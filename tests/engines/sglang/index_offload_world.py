"""SGLang's pool, coordinator, backend and indexer with index keys offloaded, on the CPU."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hisparse_kernels.index_rows import read_index_rows, unpack_index_rows
from hisparse_sidecar import SelectionConfig
from hisparse_sidecar.engines.sglang import offload_start
from hisparse_sidecar.engines.sglang.pool.pool_hooks import hook_pool
from hisparse_sidecar.engines.sglang.settings import read_settings
from tests.engines.sglang.offload_world import HOT, LAYERS, PAGE, RATIO, Engine, Request
from tests.engines.sglang.passes import Pass, decode_rows_pass, expected, extend_rows_pass
from tests.engines.sglang.world import (
    LAYOUT,
    TOPK,
    key_values,
    make_backend,
    make_indexer,
    make_runner,
    quantize,
    server_args,
)

HISA = SelectionConfig("hisa", num_kept_blocks=4, gate="off")
OFFLOAD = (
    *("--attention-backend", "hisparse"),
    *("--enable-hisparse", "--disable-radix-cache"),
)
OPTIONS: dict[str, Any] = {
    "offload_index_keys": True,
    "num_kept_blocks": 4,
    "min_tokens": 0,
    "top_k": TOPK,
    "device_buffer_size": 3 * HOT,
    "host_to_device_ratio": RATIO,
}
_PLACES = (
    ("model_executor.pool_configurator", "DefaultPoolConfigurator", "_compute_cell_size"),
    ("mem_cache.memory_pool", "DSATokenToKVPool", "__init__"),
    ("mem_cache.kv_cache_configurator", None, "_should_elide_dsa_index_k"),
)


@contextmanager
def pool_hooks() -> Iterator[None]:
    """The hooks of the pool in their places, and out of them again."""
    held = []
    for module, owner, name in _PLACES:
        place: Any = import_module(f"sglang.srt.{module}")
        place = place if owner is None else getattr(place, owner)
        if hasattr(place, name):
            held.append((place, name, getattr(place, name)))
    import_module("sglang.srt.managers.hisparse_coordinator")
    hook_pool(offload_start.is_asked_for)
    try:
        yield
    finally:
        for place, name, original in held:
            setattr(place, name, original)


class IndexWorld(Engine):
    """An `Engine` whose requests have index keys, too; as `World`, a sequence is a table's row.

    Attributes:
        keys: [tokens, 128] fp32 by (table row, layer), the stored keys, dequantised.
    """

    def __init__(self, folder: Path, options: dict[str, Any] | None = None, **changed: Any) -> None:
        config = json.dumps(OPTIONS | (options or {}))
        self.arguments = server_args(folder, *OFFLOAD, "--hisparse-config", config)
        settings = read_settings(config)
        sizes = {"top_k": TOPK, "device_buffer_size": 3 * HOT}
        window = settings.pages_of_window if settings.offload_index_keys else None
        super().__init__(**sizes | {"window_pages": window} | changed)
        self.runner = make_runner(
            self.arguments,
            token_to_kv_pool=self.pool,
            req_to_token_pool=self.table,
            hisparse_coordinator=self.coordinator,
        )
        self.backend, self.indexer = make_backend(self.runner), make_indexer()
        self.keys: dict[tuple[int, int], torch.Tensor] = {}
        self.made = 0

    def context(self) -> AbstractContextManager[None]:
        """The forward context that SGLang's code asks for its backend and its pool."""
        from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

        return forward_context(ForwardContext(attn_backend=self.backend))

    def store(self, batch: Any, layer: int, keys: torch.Tensor) -> None:
        """By SGLang's plain writer."""
        self.indexer._store_index_k_cache(batch, layer, keys, act_quant=quantize)

    def slots(self, row: int, first: int, end: int) -> torch.Tensor:
        """[end - first] int64, slots of tokens of a request."""
        return self.table.req_to_token[row, first:end].long()

    @property
    def anchors(self) -> Sequence[int]:
        """Layers that select."""
        found: Sequence[int] = self.coordinator.tier.config.anchors
        return found

    def write(self, made: Pass, layers: Sequence[int] | None = None) -> None:
        """The index keys of a pass's rows, through SGLang's writer."""
        ends = {row: pos + 1 for row, pos in made.rows}
        for layer in self.anchors if layers is None else layers:
            of_row = {row: key_values(row, layer, end, self.made) for row, end in ends.items()}
            keys = torch.stack([of_row[row][pos] for row, pos in made.rows])
            with self.context():
                self.store(made.batch, layer, keys)
            codes, scales = quantize(keys)
            stored = torch.cat([codes.view(torch.uint8), scales.view(torch.uint8)], dim=1)
            self._note(layer, made.rows, unpack_index_rows(stored, LAYOUT))

    def _note(self, layer: int, rows: Sequence[tuple[int, int]], keys: torch.Tensor) -> None:
        for row in {row for row, _ in rows}:
            mine = [number for number, (one, _) in enumerate(rows) if one == row]
            before = self.keys.get((row, layer), torch.zeros(0, 128))[: rows[mine[0]][1]]
            self.keys[row, layer] = torch.cat([before, keys[mine]])

    # -- lives --------------------------------------------------------------------------------

    def prefill_by(self, tokens: int, chunk: int, new_tokens: int = 200) -> tuple[Request, Pass]:
        """A request whose prompt came in chunks, with its last pass."""
        self.made += 1
        req = self.prefill(tokens, new_tokens)
        for key in [key for key in self.keys if key[0] == req.row]:
            del self.keys[key]
        for first in range(0, tokens, chunk):
            made = extend_rows_pass(self, [(req.row, first, min(first + chunk, tokens))])
            self.write(made)
        return req, made

    def begin(self, *sizes: int, chunk: int = 100, new_tokens: int = 200) -> list[Request]:
        """Requests of so many tokens that decode."""
        made = [self.prefill_by(tokens, chunk, new_tokens)[0] for tokens in sizes]
        self.admit(*made)
        assert self.collect() == made
        return made

    def start_if_room(self, tokens: int, new_tokens: int) -> bool:
        """One more that decodes, whose index keys nobody wrote; False: it would have to wait."""
        pages = -(-tokens // PAGE) * PAGE
        if not self.free_rows or min(self.free_tokens()[:2]) < pages:
            return False
        req = self.prefill(tokens, new_tokens)
        self.admit(req)
        if self.collect() == [req]:
            return True
        self.coordinator.abort_staging_request(req)
        self.release(req)
        return False

    def step(self, selection: SelectionConfig | None = HISA) -> Pass:
        """A decode step: lists are looked at in every layer, and then the KV rows that they name.

        Args:
            selection: whose lists they should be; None = nobody knows.
        """
        slots = self.prepare()
        self.coordinator.wait_for_pending_backup()
        self.coordinator.num_real_reqs.fill_(len(self.running))
        made = decode_rows_pass(self, [(r.row, r.kv.kv_allocated_len) for r in self.running])
        lists: list[torch.Tensor] = []

        def select(layer: int) -> torch.Tensor:
            if layer in self.anchors:
                self.write(made, [layer])
                lists.append(made.select(self, layer))
                assert set(self.coordinator.tier.fetches.ahead) == {len(lists) - 1}
                if selection is not None:
                    assert lists[-1].tolist() == expected(self, made, layer, selection)
            return lists[-1]

        self.forward(slots, select)
        assert not self.coordinator.tier.fetches.ahead
        for req in self.running:
            req.output_ids.append(1)
        return made

    def idle(self, rows: int) -> None:
        """A pass of SGLang's own, of an idle rank or for a capture, whose rows it calls real."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        self.coordinator.num_real_reqs.fill_(rows)
        slots = torch.zeros(rows, dtype=torch.int64)
        batch = SimpleNamespace(forward_mode=ForwardMode.DECODE, out_cache_loc=slots)
        lists = torch.full((rows, TOPK), -1, dtype=torch.int32)
        for layer in range(LAYERS):
            if layer in self.anchors:
                with self.context():
                    self.store(batch, layer, torch.ones(rows, 128, dtype=torch.bfloat16))
            found = self.coordinator.swap_in_selected_pages(slots, slots + 1, lists, layer)
            assert (found == -1).all()

    def host_index_rows(self, req: Request, group: int) -> torch.Tensor:
        """[tokens, row_bytes] uint8, what the host pool has of a decoding request."""
        tier = self.coordinator.tier
        pages = torch.tensor(tier._manager.host_pages(self.coordinator._sequences[req.row]))
        pos = torch.arange(req.kv.kv_allocated_len)
        rows = pages[pos // PAGE] * PAGE + pos % PAGE
        return read_index_rows(tier._host.index_pages[group], rows, LAYOUT)
