"""Puts hooks in the places of SGLang's own functions, once a process."""

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
        owner, name, _ = resolve(target)
        replace_once(owner, name, hooks[target.name])
        if not is_hooked(resolve(target)[2]):
            raise WrongState(f"{target.path} is not ours after it was replaced")
        names.append(target.name)
    return tuple(names)


def replace_once(owner: Any, name: str, hook_of: Callable[[Function], Function]) -> None:  # noqa: ANN401
    """Puts what `hook_of` makes of an owner's function in its place; a hook of ours stays.

    Args:
        owner: a module or a class.
        name: of its attribute.
        hook_of: makes the hook from what was there.
    """
    original = getattr(owner, name)
    if is_hooked(original):
        return
    hook = hook_of(original)
    setattr(hook, _MARK, True)
    setattr(owner, name, hook)


def is_hooked(function: object) -> bool:
    """Whether it is a hook of ours."""
    return bool(getattr(function, _MARK, False))
