"""What a case must do whoever does it: operations and bytes from shapes, and the least time."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp8", "bf16"]


@dataclass(frozen=True)
class Ceilings:
    """Best rates of this machine, measured in this run: operations or bytes a second.

    Attributes:
        fp8, bf16: of one large matrix product, operations.
        device: of one large copy in device memory, bytes read plus bytes written.
        to_device, to_host: of one large copy from and to pinned host memory, bytes copied.
    """

    fp8: float
    bf16: float
    device: float
    to_device: float
    to_host: float


@dataclass(frozen=True)
class Work:
    """The work of one call. A byte that is used twice counts once: a floor is what must move.

    Attributes:
        operations: multiplications and additions of the matrix products.
        device_bytes: read plus written in device memory.
        to_device_bytes, to_host_bytes: over the link.
        precision: of the products' operands.
    """

    operations: float = 0.0
    device_bytes: float = 0.0
    to_device_bytes: float = 0.0
    to_host_bytes: float = 0.0
    precision: Precision = "fp8"

    @property
    def link_bytes(self) -> float:
        """Bytes over the link, both ways."""
        return self.to_device_bytes + self.to_host_bytes

    @property
    def intensity(self) -> float:
        """Operations for each byte of device memory; 0 for a copy."""
        return self.operations / self.device_bytes if self.device_bytes else 0.0

    def floor_seconds(self, ceilings: Ceilings) -> float:
        """Time of the slowest resource at its ceiling, all of them side by side."""
        return max(
            self._products_seconds(ceilings),
            self.device_bytes / ceilings.device,
            self.to_device_bytes / ceilings.to_device,
            self.to_host_bytes / ceilings.to_host,
        )

    def _products_seconds(self, ceilings: Ceilings) -> float:
        return self.operations / (ceilings.fp8 if self.precision == "fp8" else ceilings.bf16)

    def rate(self, seconds: float, ceilings: Ceilings) -> tuple[str, float]:
        """Metric and value of what was achieved, of the resource that bounds the work."""
        if self.link_bytes:
            return "link GB/s", self.link_bytes / seconds / 1e9
        if self._products_seconds(ceilings) >= self.device_bytes / ceilings.device:
            return "TFLOP/s", self.operations / seconds / 1e12
        return "GB/s", self.device_bytes / seconds / 1e9
