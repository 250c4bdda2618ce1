"""Check tensors of one call against named dimensions, with both numbers in every error."""

import torch

from hisparse_kernels.layouts import INDEX_DIM

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX_Q_DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


class Shapes:
    """Sizes of one call's named dimensions: given, or bound by the first tensor that has them."""

    def __init__(self, **sizes: int) -> None:
        self._sizes = sizes
        self._device: torch.device | None = None

    def bind(self, **sizes: int) -> None:
        """Gives more dimensions their sizes."""
        self._sizes |= sizes

    def check(self, name: str, tensor: torch.Tensor, dims: str, *dtypes: torch.dtype) -> None:
        """Refuses a tensor whose dtype, rank, device or a named dimension differs from the call's.

        Args:
            name: argument's name, for the error.
            tensor: the argument.
            dims: names of its dimensions, as in `"rows heads 128"`; a number stands for itself.
            dtypes: permitted dtypes.

        Raises:
            ValueError: what was found and what was needed.
        """
        if tensor.dtype not in dtypes:
            needed = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(f"{name} has dtype {tensor.dtype}, needs {needed}")
        names = dims.split()
        if tensor.dim() != len(names):
            shape = list(tensor.shape)
            raise ValueError(f"{name} has {tensor.dim()} dimensions {shape}, needs {len(names)}")
        for dim, size in zip(names, tensor.shape, strict=True):
            self._check_size(name, dim, size)
        self._check_device(name, tensor.device)

    def check_packed(
        self, name: str, tensor: torch.Tensor, dims: str, *dtypes: torch.dtype
    ) -> None:
        """Like `check`, and the tensor must be contiguous: the op writes or views it in place."""
        self.check(name, tensor, dims, *dtypes)
        if not tensor.is_contiguous():
            found, needed = tensor.stride(), torch.empty(tensor.shape, device="meta").stride()
            raise ValueError(f"{name} has strides {found}, needs contiguous strides {needed}")

    def check_out(self, out: torch.Tensor | None, dims: str, dtype: torch.dtype) -> None:
        """Like `check_packed` for a result's place; None = the op allocates it."""
        if out is not None:
            self.check_packed("out", out, dims, dtype)

    def check_index_queries(self, index_q: torch.Tensor, index_weights: torch.Tensor) -> None:
        """Checks [rows, heads, 128] queries and their [rows, heads] fp32 weights, as `check`."""
        self.check("index_q", index_q, f"rows heads {INDEX_DIM}", *INDEX_Q_DTYPES)
        self.check("index_weights", index_weights, "rows heads", torch.float32)

    def _check_size(self, name: str, dim: str, size: int) -> None:
        if dim.isdigit():
            if size != int(dim):
                raise ValueError(f"{name} has a dimension of {size}, needs {dim}")
        elif self._sizes.setdefault(dim, size) != size:
            raise ValueError(f"{name} has {size} {dim}, needs {self._sizes[dim]}")

    def _check_device(self, name: str, device: torch.device) -> None:
        if self._device is None:
            self._device = device
        if device != self._device:
            raise ValueError(f"{name} is on {device}, needs {self._device}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuses a number below `least`."""
    if value < least:
        raise ValueError(f"{name} is {value}, needs at least {least}")


def check_block_tokens(block_tokens: int, page_tokens: int) -> None:
    """Refuses a block that is not a whole number of pages."""
    if block_tokens <= 0 or block_tokens % page_tokens:
        raise ValueError(f"block_tokens is {block_tokens}, needs a multiple of {page_tokens}")


def placed(result: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """`result`, moved into `out` if there is one."""
    return result if out is None else out.copy_(result)
