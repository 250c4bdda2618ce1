"""The GPUs of this machine, as torch and the driver's own tool see them."""

import shutil
import subprocess
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """One GPU; `driver` is None where `nvidia-smi` is absent."""

    name: str
    driver: str | None
    memory_bytes: int
    capability: str

    def to_json(self) -> dict[str, object]:
        """All fields."""
        return asdict(self)


def find_gpus() -> list[Gpu]:
    """GPUs that torch can use, in torch's order; empty without one."""
    if not torch.cuda.is_available():
        return []
    driver = driver_version()
    return [_gpu(device, driver) for device in range(torch.cuda.device_count())]


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None where `nvidia-smi` is absent or answers nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    lines = answer.stdout.split()
    return lines[0] if answer.returncode == 0 and lines else None


def _gpu(device: int, driver: str | None) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(properties.name, driver, properties.total_memory, capability)
