"""Load a DSA checkpoint from a folder: its shape, or all of it."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from hisparse_sidecar.config import ModelShape
from hisparse_sidecar.engines.transformers.family import family_of
from hisparse_sidecar.engines.transformers.model_shape import model_shape


def checkpoint_shape(folder: Path) -> ModelShape:
    """The shape of a checkpoint folder's model, from its config.json.

    Raises:
        InvalidArgument: a model that no row layout fits.
        OSError: the folder holds no checkpoint.
    """
    return model_shape(AutoConfig.from_pretrained(folder, local_files_only=True))


def load_checkpoint(folder: Path, device: str = "cpu") -> nn.Module:
    """The model of a checkpoint folder on `device`, in eval mode, weights as fp32.

    Nothing is downloaded.

    Raises:
        InvalidArgument: the checkpoint's class is not served.
        OSError: the folder holds no checkpoint.
    """
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    family_of(model)
    return model.to(device).eval()
