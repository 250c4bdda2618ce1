"""What an engine is started with."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """A way to serve a model.

    Attributes:
        name: as tables say it.
        backend: SGLang's name of the attention backend.
        settings: of `--hisparse-config`; None = not given.
        offloads: KV rows lie in host memory (`--enable-hisparse`), without SGLang's prefix cache.
        caches: then our prefix cache is beside them.
        changes: further keyword arguments of `sglang.Engine`.
        environment: variables of its processes.
        num_ranks: GPUs, by tensor parallel.
    """

    name: str
    backend: str
    settings: dict[str, Any] | None = None
    offloads: bool = False
    caches: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    num_ranks: int = 1

    def arguments(self, model: Path, **usual: Any) -> dict[str, Any]:  # noqa: ANN401
        """Keyword arguments of `sglang.Engine`, JSON-able; `usual` are the work's."""
        arguments: dict[str, Any] = {
            "model_path": str(model),
            "skip_tokenizer_init": True,
            "attention_backend": self.backend,
            "kv_cache_dtype": "fp8_e4m3",
            "page_size": 64,
            "mem_fraction_static": 0.6,
            "chunked_prefill_size": 8192,
            "random_seed": 0,
            "sampling_backend": "pytorch",
            "grammar_backend": "none",
            "disable_prefill_cuda_graph": True,
            "log_level": "info",
            **usual,
            **self.changes,
        }
        if self.offloads:
            arguments |= {"enable_hisparse": True, "disable_radix_cache": True}
        if self.caches:
            arguments |= {"radix_cache_backend": "hisparse"}
        if self.num_ranks > 1:
            arguments |= {"tp_size": self.num_ranks}
        if self.settings is not None:
            arguments["hisparse_config"] = json.dumps(self.settings)
        return arguments


_TRAINED = {"top_k": 512, "device_buffer_size": 1024}
_SMALL_BUFFER = {"device_buffer_size": 4096, "host_to_device_ratio": 9}  # 64 of 128K tokens fit
_FLAT: dict[str, Any] = {"index_source": "flat", "min_tokens": 0}
_HISA: dict[str, Any] = {"index_source": "hisa", "min_tokens": 0}
_BF16 = {
    "kv_cache_dtype": "bfloat16",
    "dsa_decode_backend": "flashmla_sparse",
    "dsa_prefill_backend": "flashmla_sparse",
}
DSA = Setup("dsa", "dsa")
FLAT = Setup("hisparse, flat", "hisparse", _FLAT)
FLAT_AGAIN = replace(FLAT, name="hisparse, flat, again")  # how far two runs of one engine differ
HISA = Setup("hisparse, hisa", "hisparse", _HISA)
GATED = Setup("hisparse, as it comes", "hisparse")
SGLANG_OFFLOAD = Setup("dsa, SGLang's HiSparse", "dsa", _SMALL_BUFFER, offloads=True)
OFFLOAD = Setup("hisparse, flat, offload", "hisparse", {**_FLAT, **_SMALL_BUFFER}, offloads=True)
# Each prompt computed alone, and nothing beside it: then bits may not differ at all.
_ALONE = {"max_running_requests": 1, "disable_radix_cache": True}
FLAT_ALONE = replace(FLAT, name="hisparse, flat, one at a time", changes=_ALONE)
OFFLOAD_ALONE = replace(OFFLOAD, name="hisparse, flat, offload, one at a time", changes=_ALONE)
HISA_OFFLOAD = Setup(
    "hisparse, hisa, offload", "hisparse", {**_HISA, **_SMALL_BUFFER}, offloads=True
)
INDEX_OFFLOAD = Setup(
    "hisparse, hisa, index keys offloaded",
    "hisparse",
    {**_HISA, **_SMALL_BUFFER, "offload_index_keys": True},
    offloads=True,
)
CACHED_OFFLOAD = Setup(
    "hisparse, hisa, offload, prefix cache",
    "hisparse",
    {**_HISA, **_SMALL_BUFFER},
    offloads=True,
    caches=True,
)
CACHED_INDEX_OFFLOAD = replace(
    INDEX_OFFLOAD, name="hisparse, hisa, index keys offloaded, prefix cache", caches=True
)
BF16_OFFLOAD = replace(HISA_OFFLOAD, name="hisparse, hisa, offload, bf16 rows", changes=_BF16)
RETRACTED_OFFLOAD = replace(
    HISA_OFFLOAD,
    name="hisparse, hisa, offload, half retracted now and then",
    environment={"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "40"},
)
# The fused all-reduce of SGLang would take NVLink multicast, and wait for good where there is none.
_NO_MULTICAST = {
    "enforce_disable_flashinfer_allreduce_fusion": True,
    "disable_custom_all_reduce": True,
}
RANKS_OFFLOAD = replace(
    HISA_OFFLOAD, name="hisparse, hisa, offload, 2 ranks", num_ranks=2, changes=_NO_MULTICAST
)


def for_trained(setup: Setup) -> Setup:
    """The same for the trained small model, of a smaller top-k."""
    if not setup.offloads:
        return setup
    return replace(setup, settings={**(setup.settings or {}), **_TRAINED})
