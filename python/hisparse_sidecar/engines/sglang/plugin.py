"""Entry point `sglang.srt.plugins`: the backend's name, in every process of SGLang.

SGLang swallows what a plug-in raises. So nothing here fails: what is wrong is kept, and raised by
the factory, which runs where the backend was asked for, when the server starts.
"""

import logging
from typing import Any

from hisparse_sidecar.engines.sglang.hooks import install_hooks
from hisparse_sidecar.engines.sglang.offload_start import (
    BACKEND_NAME,
    check_coordinator,
    note_selection,
    stand_in_for_coordinator,
)
from hisparse_sidecar.engines.sglang.targets import check_targets
from hisparse_sidecar.engines.sglang.versions import check_sglang, installed_versions

_LOG = logging.getLogger("hisparse_sidecar.sglang")


def register() -> None:
    """Adds the backend's name to SGLang's choices and its factory to SGLang's registry.

    Safe in every process, and twice in one: it imports no CUDA, and replaces nothing but the name
    by which a process that has SGLang's scheduler makes a coordinator.
    """
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    if BACKEND_NAME not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([BACKEND_NAME])
    register_attention_backend(BACKEND_NAME)(create_backend)
    stand_in_for_coordinator()


def create_backend(model_runner: Any) -> Any:  # noqa: ANN401
    """SGLang's factory of the backend, with its hooks in their places.

    Raises:
        InvalidArgument: this SGLang is not one that we know, or an option does not fit.
        WrongState: a hook is not in its place, or HiSparse's coordinator is SGLang's own.
    """
    versions = installed_versions()
    check_sglang(versions.sglang)
    check_targets()
    replaced = install_hooks() + check_coordinator(model_runner)
    _join_dsa()
    from hisparse_sidecar.engines.sglang.backend import HiSparseAttnBackend

    backend = HiSparseAttnBackend(model_runner)
    note_selection(model_runner, backend.hisparse.counts)
    _LOG.info("hisparse: replaced %s; %s", ", ".join(replaced), versions)
    return backend


def _join_dsa() -> None:
    """Lets the model code treat the backend's name as `dsa`: the lists that it looks it up in."""
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
        handle_attention_dsa,
    )
    from sglang.srt.models.deepseek_common.utils import FORWARD_ABSORB_CORE_ATTENTION_BACKENDS

    AttentionBackendRegistry.register(BACKEND_NAME, handle_attention_dsa)
    if BACKEND_NAME not in FORWARD_ABSORB_CORE_ATTENTION_BACKENDS:
        FORWARD_ABSORB_CORE_ATTENTION_BACKENDS.append(BACKEND_NAME)
