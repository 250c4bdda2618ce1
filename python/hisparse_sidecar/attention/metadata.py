"""Who has which query rows and pages: metadata as FlashInfer has it, made a batch of our ops."""

from dataclasses import dataclass

import torch

from hisparse_kernels.paged_batch import PagedBatch
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require

# in the order of `PagedBatch`
_CSR = ("qo_indptr", "kv_len_arr", "kv_indices", "kv_indptr")
_DENSE = ("cum_seq_lens_q", "seq_lens", "block_tables")
_STARTS = {"qo_indptr", "cum_seq_lens_q", "kv_indptr"}
_TABLES = {"block_tables", "pooled_table"}
# what an array of the dense form is copied to under CUDA graphs
_RESERVED_AS = {"cum_seq_lens_q": "qo_indptr", "seq_lens": "kv_len_arr"}


@dataclass(frozen=True)
class MLAPlanMetadata:
    """FlashInfer's metadata of one plan, with its names and meanings, for those who lack it.

    Every tensor is int32 and contiguous, on the wrapper's device or, to be copied there, on the
    CPU. Of the two forms either may be left out; where both are there, the dense one is used.

    Attributes:
        qo_indptr: [batch + 1], first query row of each sequence, then the end.
        kv_indptr: [batch + 1], first entry of each sequence in `kv_indices`.
        kv_indices: [pages], page ids, packed.
        kv_len_arr: [batch], tokens of each sequence, those of its query rows among them.
        cum_seq_lens_q: `qo_indptr` of the dense form.
        block_tables: [batch, max_pages], page ids.
        seq_lens: `kv_len_arr` of the dense form.
        max_q_len: most query rows of a sequence; None = not told.
    """

    qo_indptr: torch.Tensor | None = None
    kv_indptr: torch.Tensor | None = None
    kv_indices: torch.Tensor | None = None
    kv_len_arr: torch.Tensor | None = None
    cum_seq_lens_q: torch.Tensor | None = None
    block_tables: torch.Tensor | None = None
    seq_lens: torch.Tensor | None = None
    max_q_len: int | None = None

    @classmethod
    def csr(
        cls,
        qo_indptr: torch.Tensor,
        kv_indptr: torch.Tensor,
        kv_indices: torch.Tensor,
        kv_len_arr: torch.Tensor,
    ) -> "MLAPlanMetadata":
        """Packed pages."""
        return cls(qo_indptr, kv_indptr, kv_indices, kv_len_arr)

    @classmethod
    def dense(
        cls,
        cum_seq_lens_q: torch.Tensor,
        block_tables: torch.Tensor,
        seq_lens: torch.Tensor,
        max_q_len: int | None = None,
    ) -> "MLAPlanMetadata":
        """A table of pages."""
        return cls(
            cum_seq_lens_q=cum_seq_lens_q,
            block_tables=block_tables,
            seq_lens=seq_lens,
            max_q_len=max_q_len,
        )


@dataclass(frozen=True)
class CheckedArrays:
    """Metadata that fit, and where they go; nothing was copied yet.

    Attributes:
        arrays: the caller's, in the order of `PagedBatch`: row starts, lengths, pages, and, packed,
            page starts.
        places: reserved arrays for each; None = they are used where they are.
    """

    arrays: list[torch.Tensor]
    places: list[torch.Tensor] | None

    @property
    def num_seqs(self) -> int:
        """Sequences of the batch."""
        return self.arrays[1].size(0)


class BatchArrays:
    """Makes batches of metadata; under CUDA graphs in arrays that never move."""

    def __init__(
        self, device: torch.device, reserved: dict[str, torch.Tensor | None] | None
    ) -> None:
        """Takes what the caller reserved, by name, None = nothing; all None without CUDA graphs.

        Raises:
            InvalidArgument: a dtype, a rank or a device does not fit.
        """
        self._device = device
        self._reserved: dict[str, torch.Tensor] | None = None
        if reserved is not None:
            self._reserved = {name: one for name, one in reserved.items() if one is not None}
        for name, array in (self._reserved or {}).items():
            _check(f"reserved {name}", array, 2 if name in _TABLES else 1)
            message = f"reserved {name} is on {array.device}, the workspace on {device}"
            require(array.device == device, message)

    def check(self, metadata: object) -> CheckedArrays:
        """Looks at shapes, dtypes and devices, and at nothing that the tensors hold.

        Args:
            metadata: FlashInfer's `MLAPlanMetadata` or ours: whatever has its attributes.

        Raises:
            InvalidArgument: an array is missing, or a dtype, a shape, a device or a reserved size
                does not fit.
        """
        names = self._form(metadata)
        given = {name: getattr(metadata, name, None) for name in names}
        arrays = [array for array in given.values() if array is not None]
        if len(arrays) < len(names):
            present = [name for name, array in given.items() if array is not None]
            raise InvalidArgument(f"metadata has {present}, needs {list(names)}")
        for name, array in zip(names, arrays, strict=True):
            _check(name, array, 2 if name in _TABLES else 1)
            self._check_device(name, array)
        batch = arrays[1].size(0)
        for name, array in zip(names, arrays, strict=True):
            entries = batch + 1 if name in _STARTS else batch
            if array.size(0) != entries and name != "kv_indices":
                found = f"{name} has {len(array)} entries for {batch} lengths"
                raise InvalidArgument(f"{found}, needs {entries}")
        if self._reserved is None:
            return CheckedArrays(arrays, None)
        return CheckedArrays(arrays, [self._place(*one) for one in zip(names, arrays, strict=True)])

    def check_table(self, name: str, table: torch.Tensor) -> CheckedArrays:
        """The same for one table of [batch, n]."""
        _check(name, table, 2)
        self._check_device(name, table)
        return CheckedArrays(
            [table], None if self._reserved is None else [self._place(name, table)]
        )

    def put(self, checked: CheckedArrays) -> list[torch.Tensor]:
        """The arrays on the device; copies are asynchronous."""
        if checked.places is None:
            if all(array.device == self._device for array in checked.arrays):
                return checked.arrays
            return [array.to(self._device, non_blocking=True) for array in checked.arrays]
        places, arrays = [], []
        for place, array in zip(checked.places, checked.arrays, strict=True):
            if place.data_ptr() != array.data_ptr() and array.numel():
                is_whole = place.shape == array.shape
                places.append(place if is_whole else place.narrow(0, 0, array.size(0)))
                arrays.append(array)
        if places:  # one launch for all that lie on the device
            torch._foreach_copy_(places, arrays, non_blocking=True)
        return checked.places

    def batch(self, checked: CheckedArrays, page_size: int, *, causal: bool) -> PagedBatch:
        """The batch, its arrays put where they belong."""
        starts, lens, pages, *page_starts = self.put(checked)
        indptr = page_starts[0] if page_starts else None
        return PagedBatch(starts, lens, pages, indptr, page_size, causal)

    def _form(self, metadata: object) -> tuple[str, ...]:
        """The dense form if it is there, and has a place where the other one has."""
        if getattr(metadata, "block_tables", None) is None:
            return _CSR
        has_place = self._reserved is None or "block_tables" in self._reserved
        has_both = getattr(metadata, "kv_indptr", None) is not None
        return _CSR if has_both and not has_place else _DENSE

    def _check_device(self, name: str, array: torch.Tensor) -> None:
        """Now: a copy that failed halfway would take the last plan's metadata with it."""
        if array.device != self._device and array.device.type != "cpu":
            raise InvalidArgument(
                f"{name} is on {array.device}, needs cpu or the wrapper's, {self._device}"
            )

    def _place(self, name: str, array: torch.Tensor) -> torch.Tensor:
        assert self._reserved is not None
        name = _RESERVED_AS.get(name, name)
        place = self._reserved.get(name)
        if place is None:
            have = ", ".join(sorted(self._reserved)) or "nothing"
            raise InvalidArgument(f"use_cuda_graph needs a reserved {name}, __init__ got {have}")
        fits = array.shape == place.shape
        if name == "kv_indices":
            fits = array.size(0) <= place.size(0)
        if not fits:
            found, room = tuple(array.shape), tuple(place.shape)
            raise InvalidArgument(f"{name} has shape {found}, the reserved array has {room}")
        return place


def _check(name: str, array: torch.Tensor, rank: int) -> None:
    # messages are made where they are wanted alone: a plan should take a few microseconds
    if not isinstance(array, torch.Tensor):
        raise InvalidArgument(f"{name} is a {type(array).__name__}, needs a tensor")
    if array.dtype != torch.int32:
        raise InvalidArgument(f"{name} is {array.dtype}, needs torch.int32")
    if array.dim() != rank:
        raise InvalidArgument(f"{name} has {array.dim()} dimensions, needs {rank}")
    if not array.is_contiguous():
        raise InvalidArgument(f"{name} has strides {array.stride()}, needs contiguous ones")
