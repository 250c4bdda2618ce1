"""Replace the `forward` of modules and put it back exactly."""

from collections.abc import Callable
from typing import Any

from torch import nn

from hisparse_sidecar.errors import WrongState

_MARK = "_replaced_by_hisparse_sidecar"


class ForwardPatches:
    """Instance-level `forward` replacements; the modules' classes are not touched."""

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, Callable[..., Any], Callable[..., Any] | None]] = []

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Calls of `module` run `forward` until `restore`.

        Raises:
            WrongState: the module's forward is a replacement already; nothing has changed.
        """
        before = module.__dict__.get("forward")
        if getattr(before, _MARK, False):
            name = type(module).__name__
            raise WrongState(f"forward of a {name} is replaced already: detach the model first")
        setattr(forward, _MARK, True)
        self._replaced.append((module, forward, before))
        module.__dict__["forward"] = forward

    def restore(self) -> None:
        """Undoes every replacement; a second call does nothing.

        Raises:
            WrongState: someone replaced a `forward` after us; nothing has changed.
        """
        for module, forward, _ in self._replaced:
            if module.__dict__.get("forward") is not forward:
                raise WrongState(f"forward of a {type(module).__name__} was replaced a second time")
        for module, _, before in reversed(self._replaced):
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        self._replaced.clear()
