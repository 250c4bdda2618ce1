"""Find what lies beside the package in a checkout: the model, the text, the benchmark suites."""

from pathlib import Path

# python/hisparse_sidecar/cli/checkout.py -> the root of the repository
_CHECKOUT = Path(__file__).resolve().parents[3]


def find_beside(relative: str) -> Path:
    """Path of a file or folder of the repository.

    Args:
        relative: path from the repository's root, e.g. "models/tiny-dsa".

    Returns:
        The path below the working directory if it exists there, else below the checkout.

    Raises:
        FileNotFoundError: it is in neither; the message names both.
    """
    candidates = [Path.cwd() / relative, _CHECKOUT / relative]
    for path in candidates:
        if path.exists():
            return path
    looked = " and ".join(str(path) for path in dict.fromkeys(candidates))
    raise FileNotFoundError(f"{relative} not found: looked for {looked}")
