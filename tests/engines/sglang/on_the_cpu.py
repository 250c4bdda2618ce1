"""SGLang in a process without a GPU."""

import contextlib
import warnings
from collections.abc import Iterator

import pytest
import torch

from tests.engines.sglang.torchvision_stand_in import stand_in_for_torchvision


@contextlib.contextmanager
def sglang_on_the_cpu() -> Iterator[None]:
    """SGLang with its plug-ins loaded, told that there is an H100: it asks when it starts."""
    patch, widths = pytest.MonkeyPatch(), contextlib.ExitStack()
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setenv("SGLANG_OPT_USE_TOPK_V2", "0")  # its plan is made by a kernel for the GPU
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stand_in_for_torchvision()
        from sglang.srt.plugins import load_plugins

        load_plugins()
        _run_on_the_cpu(patch)
        # reads its estimate of new tokens from the environment, which tests change, when imported
        import sglang.srt.managers.schedule_policy  # noqa: F401
        from sglang.srt import runtime_context

        if not hasattr(runtime_context, "SpawnRanks"):  # 0.5.17 asks process groups
            alone = {"attn_tp_size": 1, "attn_cp_size": 1, "attn_cp_rank": 0}
            widths.enter_context(runtime_context.get_parallel().override(**alone))
        yield
    widths.close()
    patch.undo()


def _run_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    """Puts plain PyTorch in place of the one kernel that verify passes need a GPU for."""
    from sglang.srt.layers.attention import dsa_backend

    def expanded(new: torch.Tensor, lens: torch.Tensor, *_: int) -> torch.Tensor:
        spans = zip(new.tolist(), lens.tolist(), strict=True)
        rows = [torch.arange(n - count + 1, n + 1) for count, n in spans]
        return torch.cat(rows).to(torch.int32)

    patch.setattr(dsa_backend, "seqlens_expand_triton", expanded)
