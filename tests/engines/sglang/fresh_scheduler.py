"""A process as SGLang's scheduler is one: `python -m tests.engines.sglang.fresh_scheduler`.

Plug-ins are loaded when the scheduler's modules are, and before it imports what it needs later.
Prints the targets of the start and the pool whose hooks are in their places, one a line.
"""

import sys

from hisparse_sidecar.engines.sglang.install import is_hooked
from hisparse_sidecar.engines.sglang.pool.pool_hooks import POOL_TARGETS
from hisparse_sidecar.engines.sglang.start_checks import START_TARGETS
from hisparse_sidecar.engines.sglang.targets import resolve
from tests.engines.sglang.torchvision_stand_in import stand_in_for_torchvision


def main() -> None:
    """Loads the scheduler, then the plug-ins."""
    stand_in_for_torchvision()
    import sglang.srt.managers.scheduler  # noqa: F401
    from sglang.srt.plugins import load_plugins

    load_plugins()
    for target in (*START_TARGETS, *POOL_TARGETS):
        if is_hooked(resolve(target)[2]):
            sys.stdout.write(f"{target.name}\n")


if __name__ == "__main__":
    main()
