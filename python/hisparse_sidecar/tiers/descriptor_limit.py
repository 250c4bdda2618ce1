"""How many files the process may have open: those of the file tier stay open."""

import resource

from hisparse_sidecar.errors import InvalidArgument

_FOR_ALL_ELSE = 1024  # two a client, regions, and what an engine has open
_LEAST_FOR_ALL_ELSE = 512  # where the hard limit has no more


def raise_descriptor_limit(num_files: int) -> None:
    """Lets the process open so many files beside all else; raises its soft limit where needed.

    Raises:
        InvalidArgument: its hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted, needed = num_files + _FOR_ALL_ELSE, num_files + _LEAST_FOR_ALL_ELSE
    if _suffices(soft, wanted):
        return
    if not _suffices(hard, needed):
        what = f"a file tier of {num_files} files needs {needed} descriptors"
        better = "raise it, or make segment_bytes larger in a new directory"
        raise InvalidArgument(f"{what}, the hard limit is {hard}: {better}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if _suffices(hard, wanted) else hard, hard))


def _suffices(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed
