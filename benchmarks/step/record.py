"""What a layer's run calls: its ops with their tensors, by stage, to be called again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hisparse_kernels.backends import Ops

STAGES = ("append", "select", "resolve + swap_in", "attend")
_APPEND, _SELECT, _SWAP, _ATTEND = STAGES
# an op that is called for one purpose only
_STAGE_OF = {"append_rows": _APPEND, "swap_in": _SWAP, "sparse_mla": _ATTEND}


@dataclass(frozen=True)
class OpCall:
    """One call of an op.

    Attributes:
        name: of the op.
        stage: one of `STAGES`.
        again: the same call, on the same tensors.
        result: what it returned.
    """

    name: str
    stage: str
    again: Callable[[], object]
    result: Any


class Recorder:
    """Ops that do what others do, and note it.

    Attributes:
        calls: in the order of the calls.
    """

    def __init__(self, ops: Ops) -> None:
        self.calls: list[OpCall] = []
        noted: dict[str, Any] = {
            name: partial(self._call, name, op) for name, op in vars(ops).items()
        }
        self.ops = Ops(**noted)

    def _call(
        self, name: str, op: Callable[..., object], *args: object, **kwargs: object
    ) -> object:
        again = partial(op, *args, **kwargs)
        result = again()
        self.calls.append(OpCall(name, self._stage(name), again, result))
        return result

    def _stage(self, name: str) -> str:
        """What is resolved before the append are its blocks, later rows: every block has a slot."""
        if name in _STAGE_OF:
            return _STAGE_OF[name]
        if not any(call.name == "append_rows" for call in self.calls):
            return _APPEND
        return _SWAP if name == "resolve" else _SELECT
