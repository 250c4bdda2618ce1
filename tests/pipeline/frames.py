"""Random lives of two sidecars: one graph runs the decode steps of one, the other runs layers.

On the CPU a recording of the ops and their tensors stands in for a CUDA graph: as there, nothing of
the pipeline runs when it is replayed.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from hisparse_kernels.backends import Ops, reference_ops
from hisparse_sidecar import LayerInputs, LayerOutputs, Sidecar, SidecarConfig
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import HisparseError
from tests.pipeline.world import Rows, pack_rows, random_rows, run_step, small_config

ROWS, MAX_TOKENS, STEP_ROWS, MOST_OPEN = 6, 448, 2, 5


def frame_config(selection: SelectionConfig, **changes: object) -> SidecarConfig:
    """Windows with room for every block, hot buffers with little."""
    settings: dict[str, object] = {
        "max_sequences": MOST_OPEN,
        "max_step_rows": STEP_ROWS,
        "hot_slots": 100,
        "window_blocks": 8,
    }
    return small_config(selection=selection, **(settings | changes))


class NotedOps:
    """The reference's ops; notes their calls while something is recorded."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any]] | None = None

    def ops(self) -> Ops:
        ops = reference_ops()
        noted = {one.name: partial(self._call, getattr(ops, one.name)) for one in fields(Ops)}
        return Ops(**noted)

    def _call(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = op(*args, **kwargs)
        if self.calls is not None:
            self.calls.append((partial(op, *args, **kwargs), result))
        return result


class OpsRecording:
    """The calls of ops, made again on the same tensors, results included."""

    def __init__(self, noted: NotedOps) -> None:
        self._noted = noted
        self._calls: list[tuple[Callable[..., Any], Any]] = []
        self.replays = 0

    def record(self, work: Callable[[], None]) -> None:
        self._noted.calls = self._calls
        work()
        self._noted.calls = None

    def forget(self) -> None:
        """Lets the tensors go: those of a host pool must be free when it closes."""
        self._calls.clear()

    def replay(self) -> None:
        self.replays += 1
        for again, held in self._calls:
            _put(again(), held)


def _put(found: Any, held: Any) -> None:
    if isinstance(held, torch.Tensor):
        held.copy_(found)
    elif isinstance(held, tuple):
        for one, other in zip(found, held, strict=True):
            _put(one, other)


@dataclass
class Member:
    """One sequence in both sidecars."""

    framed: int
    plain: int
    rests: bool = False


class TwoLives:
    """The same calls to both; outputs of every decode step are compared, bit for bit."""

    def __init__(self, config: SidecarConfig, seed: int, overlap_rows: int = 0) -> None:
        self.choices, self.made, self.steps = random.Random(seed), 0, 0
        self.config = config
        self.framed = Sidecar(replace(config, overlap_rows=overlap_rows))
        self.plain = Sidecar(config)
        self.members: list[Member] = []
        self.frame = self.framed.step_frame(ROWS, MAX_TOKENS, sequences=MOST_OPEN)
        self.inputs = [
            self._on_device(layer, random_rows(config, layer, ROWS, 1))
            for layer in range(config.model.num_layers)
        ]
        self.graph = self.framed.step_graph(self.frame, self.inputs)

    def act(self) -> None:
        actions = [self.begin, self.decode, self.decode, self.decode, self.decode, self.rest]
        self.choices.choice([*actions, self.resume, self.truncate, self.abort, self.close])()

    def end(self) -> None:
        self.framed.check_integrity()
        self.framed.close()
        self.plain.close()

    # -- what happens to sequences ------------------------------------------------------------

    def begin(self) -> None:
        if len(self.members) < MOST_OPEN:
            self.open(self.choices.randint(1, 300), self.choices.randint(1, 100))

    def open(self, length: int, most: int) -> None:
        try:
            member = Member(self.framed.open(length, most), self.plain.open(length, most))
        except HisparseError:  # no room; of two that have done the same, in neither
            return
        self.members.append(member)
        self.made += 1
        for sidecar, sequence in ((self.framed, member.framed), (self.plain, member.plain)):
            run_step(sidecar, [Rows(sequence, length, self.made)], "prefill")

    def rest(self) -> None:
        for member in self._some(awake=True)[:1]:
            self.framed.preempt(member.framed)
            self.plain.preempt(member.plain)
            member.rests = True

    def resume(self) -> None:
        for member in self._some(awake=False)[:1]:
            assert self.framed.resume(member.framed) == self.plain.resume(member.plain)
            member.rests = False

    def truncate(self) -> None:
        for member in self._some(awake=True)[:1]:
            length = self.choices.randint(1, self.framed.length(member.framed))
            self.framed.truncate(member.framed, length)
            self.plain.truncate(member.plain, length)

    def close(self) -> None:
        for member in self._some(awake=True)[:1]:
            self.framed.close_sequence(member.framed)
            self.plain.close_sequence(member.plain)
            self.members.remove(member)

    def abort(self) -> None:
        """Of a step that one of them has run, the other has none."""
        members, counts, _ = self._step()
        if members:
            self._begin_framed(members, counts)
            self.framed.run_graph(self.graph)
            self.framed.abort_step()

    # -- steps --------------------------------------------------------------------------------

    def decode(self) -> None:
        members, counts, seeds = self._step()
        if not members:
            return
        self.steps += 1
        parts = list(zip(members, counts, seeds, strict=True))
        self._put_inputs([Rows(member.framed, count, seed) for member, count, seed in parts])
        self._begin_framed(members, counts)
        found = self.framed.run_graph(self.graph)
        self.plain.begin_step(
            [(member.plain, count) for member, count, _ in parts], "decode", padded_rows=ROWS
        )
        total = sum(counts)
        for layer, inputs in enumerate(self.inputs):
            self._compare(layer, found[layer], self.plain.run_layer(layer, inputs), total)
        self.framed.commit_step()
        self.plain.commit_step()

    def _step(self) -> tuple[list[Member], list[int], list[int]]:
        """Members of a step, as many as fit the frame, their rows, and what these are made from."""
        members, counts, seeds = [], [], []
        for member in self._some(awake=True):
            length = self.framed.length(member.framed)
            room = min(self.framed.admitted_tokens(member.framed), MAX_TOKENS) - length
            count = min(self.choices.randint(1, STEP_ROWS), room, ROWS - sum(counts))
            if count > 0:
                self.made += 1
                members.append(member)
                counts.append(count)
                seeds.append(self.made)
        return members, counts, seeds

    def _begin_framed(self, members: list[Member], counts: list[int]) -> None:
        rows = [(member.framed, count) for member, count in zip(members, counts, strict=True)]
        self.framed.begin_step(rows, "decode", frame=self.frame)

    def _put_inputs(self, rows: list[Rows]) -> None:
        for layer, held in enumerate(self.inputs):
            made = [random_rows(self.config, layer, part.count, part.seed) for part in rows]
            given = pack_rows(made)
            for name, tensor in vars(held).items():
                if tensor is not None:
                    value = getattr(given, name)
                    tensor.fill_(float("nan"))  # what padding rows hold
                    tensor[: len(value)] = value.to(tensor)

    def _compare(self, layer: int, found: LayerOutputs, wanted: LayerOutputs, rows: int) -> None:
        for name in ("topk_indices", "out", "lse"):
            one, other = getattr(found, name)[:rows], getattr(wanted, name)[:rows]
            assert torch.equal(one, other), f"{name} of layer {layer}, step {self.steps}"

    def _some(self, *, awake: bool) -> list[Member]:
        members = [member for member in self.members if member.rests is not awake]
        return self.choices.sample(members, self.choices.randint(0, len(members)))

    def _on_device(self, layer: int, inputs: LayerInputs) -> LayerInputs:
        """Queries in bf16 on a GPU, for the kernels that a model uses."""
        moved = inputs.to(self.framed.device)
        if self.framed.device.type == "cpu":
            return moved
        return replace(moved, query=moved.query.bfloat16(), kv=moved.kv.bfloat16())
