"""Puts hooks in the places that `targets.py` names, once a process."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hisparse_sidecar.engines.sglang.targets import Target, resolve
from hisparse_sidecar.errors import WrongState

Function = Callable[..., Any]
_MARK = "_hooked_by_hisparse_sidecar"


def install(
    targets: Iterable[Target], hooks: Mapping[str, Callable[[Function], Function]]
) -> tuple[str, ...]:
    """Puts a hook in the place of every target that is to be replaced.

    Args:
        targets: those that are only relied on are passed over.
        hooks: by a target's name what makes its hook from what was there.

    Returns:
        The names of what was replaced.

    Raises:
        WrongState: a hook is not in its place afterwards; says which.
    """
    names = []
    for target in targets:
        if not target.is_replaced:
            continue
        owner, name, original = resolve(target)
        if not getattr(original, _MARK, False):
            hook = hooks[target.name](original)
            setattr(hook, _MARK, True)
            setattr(owner, name, hook)
        if not getattr(resolve(target)[2], _MARK, False):
            raise WrongState(f"{target.path} is not ours after it was replaced")
        names.append(target.name)
    return tuple(names)
