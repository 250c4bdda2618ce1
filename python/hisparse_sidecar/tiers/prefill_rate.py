"""How fast the engine computes tokens, from its prefill steps: what loading has to beat."""

import time

_NEWEST_SHARE = 0.25


class PrefillRate:
    """Tokens a second, a running mean that follows the newest steps."""

    def __init__(self, fixed: float | None) -> None:
        """A rate that is `fixed`, or with None is measured."""
        self._fixed = fixed
        self._mean: float | None = None
        self._began: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """The rate; None = nothing was measured yet."""
        return self._mean if self._fixed is None else self._fixed

    def begin(self) -> None:
        """A prefill step begins."""
        self._began = time.monotonic()

    def end(self, num_tokens: int) -> None:
        """The prefill step that began last has computed so many tokens."""
        if self._began is None:
            return
        seconds, self._began = time.monotonic() - self._began, None
        if seconds > 0:
            rate = num_tokens / seconds
            mean = rate if self._mean is None else self._mean
            self._mean = mean + _NEWEST_SHARE * (rate - mean)
