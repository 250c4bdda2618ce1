"""How many files the process may have open: those of the file tier stay open."""

import resource

from hisparse_sidecar.errors import InvalidArgument

_FOR_ALL_ELSE = 512  # connections, regions, and what an engine has open


def raise_descriptor_limit(num_files: int) -> None:
    """Lets the process open so many files beside all else; raises its soft limit where needed.

    Raises:
        InvalidArgument: its hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_files + _FOR_ALL_ELSE
    if _suffices(soft, needed):
        return
    if not _suffices(hard, needed):
        what = f"a file tier of {num_files} files needs {needed} descriptors"
        raise InvalidArgument(f"{what}, the hard limit is {hard}: make segment_bytes larger")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _suffices(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
