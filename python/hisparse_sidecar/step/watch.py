"""What a step leaves to be looked at when it ends, so that no layer waits for the device."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch

from hisparse_kernels.append_rows import IndexSide
from hisparse_kernels.resolve import MissPlan
from hisparse_sidecar.errors import HisparseError, InvalidArgument, WrongState
from hisparse_sidecar.layer_io import LayerInputs
from hisparse_sidecar.stats import Traffic

_INDEX_INPUTS = ("index_q", "index_weights", "index_k")


@dataclass(frozen=True)
class _Resolved:
    """One resolve: its counts, and where they are counted (None = nowhere).

    Attributes:
        counts: [sequences] int32 each: items, misses, and if any may be, fresh ones among these.
    """

    what: str
    counts: tuple[torch.Tensor, ...]
    traffic: Traffic | None
    item_bytes: int


@dataclass(frozen=True)
class _Amounts:
    """What is to be added, as one sum, to the attribute `name` of `counts`."""

    counts: object
    name: str
    amounts: torch.Tensor


@dataclass
class StepWatch:
    """Collects tensors while layers run; `read` looks at all of them in one transfer.

    On CUDA nothing may be raised where it happens: a resolve that must refuse a sequence marks it,
    and index inputs that are not finite are found here.
    """

    _largest: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    _resolved: list[_Resolved] = field(default_factory=list)
    _amounts: list[_Amounts] = field(default_factory=list)
    _numbers: list[tuple[object, str, int]] = field(default_factory=list)
    _failure: HisparseError | None = None

    def see_largest(self, layer: int, index: IndexSide) -> None:
        """Notes what `append_rows` has found: as `see_inputs`, of what it looked at."""
        for name, largest in zip(_INDEX_INPUTS, index.largest, strict=True):
            if getattr(index, name) is not None:
                self._largest[layer, name] = largest

    def see_inputs(self, layer: int, inputs: LayerInputs) -> None:
        """Notes how large each row of a layer's index inputs is: NaN and infinity show there."""
        for name in _INDEX_INPUTS:
            tensor = getattr(inputs, name)
            if tensor is not None:
                self._largest[layer, name] = tensor.float().abs().flatten(1).amax(1)

    def see_resolve(
        self,
        what: str,
        plan: MissPlan,
        traffic: Traffic | None,
        item_bytes: int,
        num_fresh: torch.Tensor | None = None,
    ) -> None:
        """Notes the counts of a resolve.

        Args:
            what: the slots that it gave out, for messages.
            plan: its miss plan; only the counts are kept.
            traffic: where they are added; None = nowhere.
            item_bytes: bytes that one miss brings in.
            num_fresh: [sequences] int32, misses that the step itself had made: nothing is brought
                in for them, so they count as found; None = none.
        """
        fresh = () if num_fresh is None else (num_fresh,)
        counts = plan.item_count, plan.miss_count, *fresh
        self._resolved.append(_Resolved(what, counts, traffic, item_bytes))

    def see_amounts(self, counts: object, name: str, amounts: torch.Tensor) -> None:
        """Notes bools or integers, whose sum is added to the attribute `name` of `counts`."""
        self._amounts.append(_Amounts(counts, name, amounts))

    def see_number(self, counts: object, name: str, number: int) -> None:
        """Notes a number of the host's, which is added to the attribute `name` of `counts`."""
        self._numbers.append((counts, name, number))

    def joined(self, other: "StepWatch") -> "StepWatch":
        """What both have noted; both stay as they are."""
        return StepWatch(
            self._largest | other._largest,
            self._resolved + other._resolved,
            self._amounts + other._amounts,
            self._numbers + other._numbers,
            self._failure or other._failure,
        )

    def read(self, row_seq: torch.Tensor) -> None:
        """Waits for the device, counts the traffic, and raises what went wrong, now and ever after.

        Args:
            row_seq: [rows] int32, sequence of each row; -1 = padding row, which may hold anything.

        Raises:
            InvalidArgument: an index input was not finite.
            WrongState: a resolve found too few slots; a bug, for admission provides them.
        """
        largest, self._largest = self._largest, {}
        resolved, self._resolved = self._resolved, []
        amounts, self._amounts = self._amounts, []
        numbers_of_host, self._numbers = self._numbers, []
        wrong = _wrong_rows(largest, row_seq)
        counts = [count for one in resolved for count in one.counts]
        alike = _alike(amounts)
        sums = [torch.stack([one.amounts.flatten() for one in group]).sum(1) for group in alike]
        # with a row of its own the transfer waits also where no layer left anything to look at
        read = torch.cat([*sums, torch.cat([*wrong, *counts, row_seq[:1]]).long()])
        numbers = iter(read.tolist())
        for one in chain.from_iterable(alike):
            _add(one.counts, one.name, next(numbers))
        for noted in numbers_of_host:
            _add(*noted)
        found = [next(numbers) for _ in range(2 * len(largest))]
        refused = [_count(one, numbers) for one in resolved]
        self._failure = self._failure or _not_finite(list(largest), found) or _first(refused)
        if self._failure is not None:
            raise self._failure


def _add(counts: object, name: str, number: int) -> None:
    setattr(counts, name, getattr(counts, name) + number)


def _wrong_rows(
    largest: dict[tuple[int, str], torch.Tensor], row_seq: torch.Tensor
) -> list[torch.Tensor]:
    """[inputs, 2] as a flat int32: rows that are not finite, and the first of them."""
    if not largest:
        return []
    wrong = ~torch.stack(list(largest.values())).isfinite() & (row_seq >= 0)
    return [torch.stack([wrong.sum(1), wrong.int().argmax(1)], dim=1).flatten().int()]


def _count(one: _Resolved, numbers: Iterator[int]) -> HisparseError | None:
    """Adds its counts, which come next, to the traffic."""
    items, misses, *fresh = ([next(numbers) for _ in range(len(count))] for count in one.counts)
    if one.traffic is not None:
        moved = sum(max(0, count) for count in misses) - sum(chain.from_iterable(fresh))
        one.traffic.requests += sum(items)
        one.traffic.misses += moved
        one.traffic.bytes_in += moved * one.item_bytes
    if min(misses, default=0) >= 0:
        return None
    # how many it asked for is not known: a refused resolve counts 0 items
    refused = f"sequence {misses.index(-1)} of the step got none of the {one.what} it asked for"
    return WrongState(f"{refused}, too few of its slots may be evicted: abort the step")


def _alike(amounts: list[_Amounts]) -> list[list[_Amounts]]:
    """Groups whose tensors have one size and dtype."""
    groups: dict[tuple[int, torch.dtype], list[_Amounts]] = {}
    for one in amounts:
        groups.setdefault((one.amounts.numel(), one.amounts.dtype), []).append(one)
    return list(groups.values())


def _not_finite(inputs: list[tuple[int, str]], found: list[int]) -> HisparseError | None:
    for (layer, name), (count, row) in zip(
        inputs, zip(found[::2], found[1::2], strict=True), strict=True
    ):
        if count:
            what = f"row {row} of {name} of layer {layer} is not finite"
            return InvalidArgument(f"{what}, {count} of its rows are not: abort the step")
    return None


def _first(errors: list[HisparseError | None]) -> HisparseError | None:
    return next((error for error in errors if error is not None), None)
