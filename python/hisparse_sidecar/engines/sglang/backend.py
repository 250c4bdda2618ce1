"""The attention backend: SGLang's own for DSA, whose indexer metadata carry our selection.

Imported in processes that run the model alone, and only where the backend was asked for.
"""

import dataclasses
from typing import Any

import torch
from sglang.srt.layers.attention.dsa.dsa_indexer_metadata import DSAIndexerMetadata
from sglang.srt.layers.attention.dsa_backend import DeepseekSparseAttnBackend
from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool

from hisparse_sidecar.backends import ops_of
from hisparse_sidecar.engines.sglang.pool.beside_pool import keep_beside, pooled_pages_of
from hisparse_sidecar.engines.sglang.pool.offloaded_keys import OffloadedKeys
from hisparse_sidecar.engines.sglang.pool.pooled_pages import PooledPages
from hisparse_sidecar.engines.sglang.selection.coverage import uncovered_process
from hisparse_sidecar.engines.sglang.selection.selection import LAYOUT, BackendSelection, Fetch
from hisparse_sidecar.engines.sglang.settings import SglangSettings, read_settings
from hisparse_sidecar.engines.sglang.start_checks import INDEX_OFFLOAD_NEEDS, check_for_model
from hisparse_sidecar.requirements import require


@dataclasses.dataclass(frozen=True)
class HiSparseIndexerMetadata(DSAIndexerMetadata):  # type: ignore[misc]
    """SGLang's metadata of an indexer call, and who selects.

    Attributes:
        hisparse: the backend's selection.
    """

    hisparse: BackendSelection | None = None

    def get_page_table_64(self) -> torch.Tensor:
        """[num_seqs, max_pages] int32, pages of index keys: not SGLang's where these do not stay.

        SGLang's own selection reads by it, of prompts alone.
        """
        table: torch.Tensor = super().get_page_table_64()
        offloaded = None if self.hisparse is None else self.hisparse.offloaded
        return table if offloaded is None else offloaded.index_pages(table)


class HiSparseAttnBackend(DeepseekSparseAttnBackend):  # type: ignore[misc]
    """DSA attention over tokens that our selectors choose.

    Attributes:
        hisparse: the selection of its layers.
    """

    def __init__(self, model_runner: Any, *args: Any, **named: Any) -> None:  # noqa: ANN401
        """A backend of one model runner; arguments as `DeepseekSparseAttnBackend`'s.

        Raises:
            InvalidArgument: `--hisparse-config` or the model's pool does not fit.
        """
        settings = read_settings(model_runner.server_args.hisparse_config)
        super().__init__(model_runner, *args, **named)
        self.hisparse = selection_of(model_runner, settings)

    def get_indexer_metadata(self, layer_id: int, forward_batch: Any) -> Any:  # noqa: ANN401
        """The stock metadata, for a call whose lists our hooks may find."""
        stock = super().get_indexer_metadata(layer_id, forward_batch)
        if type(stock) is not DSAIndexerMetadata:  # none, or of another indexer
            return stock
        values = {field.name: getattr(stock, field.name) for field in dataclasses.fields(stock)}
        return HiSparseIndexerMetadata(**values, hisparse=self.hisparse)


def selection_of(model_runner: Any, settings: SglangSettings) -> BackendSelection:  # noqa: ANN401
    """The selection over a model runner's pool; its pooled keys are kept from now on.

    Raises:
        InvalidArgument: the model cannot be selected for as asked, or the pool is another kind.
    """
    pool = model_runner.token_to_kv_pool
    check_for_model(settings.selection, model_runner.model_config.hf_text_config)
    kind = type(pool).__name__
    require(isinstance(pool, DSATokenToKVPool), f"the pool is a {kind}, needs DSATokenToKVPool")
    ops = ops_of("auto", str(pool.device))
    uncovered = uncovered_process(model_runner.server_args, pool)
    offloaded = _offloaded_keys(model_runner, settings, uncovered)
    if uncovered is not None:
        return BackendSelection(ops, settings, None, uncovered)
    pooled = pooled_pages_of(pool)
    if pooled is None:  # backends of one pool share what is kept beside it
        pages = pool.index_k_with_scale_buffer
        pooled = PooledPages(ops, LAYOUT, pages, pool.start_layer)
        keep_beside(pool, pooled, offloaded)
    fetch = _fetch_of(model_runner.hisparse_coordinator)
    return BackendSelection(ops, settings, pooled, None, offloaded, fetch)


def _fetch_of(coordinator: Any) -> Fetch | None:  # noqa: ANN401
    """None where lists are not final when they are made: SGLang writes rank 0's over them then."""
    from sglang.srt.environ import envs

    found: Fetch | None = getattr(coordinator, "fetch", None)  # SGLang's own has none
    return None if envs.SGLANG_DSA_TOPK_BROADCAST.get() else found


def _offloaded_keys(
    model_runner: Any,  # noqa: ANN401
    settings: SglangSettings,
    uncovered: str | None,
) -> OffloadedKeys | None:
    found = getattr(model_runner.hisparse_coordinator, "offloaded_keys", None)
    assert found is None or isinstance(found, OffloadedKeys)
    if settings.offload_index_keys:
        require(found is not None, INDEX_OFFLOAD_NEEDS)
        require(uncovered is None, f"{uncovered}: offload_index_keys does not cover it")
    return found
