"""Query budgets: how many samples a client may send through one scope in a window of time.

Kept in memory: a restart forgets what was spent, and each replica counts for itself, unless they
share a store (``shared_budgets``).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from secure_quant.errors import BudgetExceeded, ConfigError

__all__ = ["Budgets"]


class Budgets:
    """A token bucket per (client, scope): holds ``samples``, refills evenly over ``window_s``.

    ``samples`` None means no limit. At most ``MAX_BUCKETS`` are kept; beyond that the one unused
    longest goes, so names must come from certificates or tokens, not from the caller's choice.
    """

    MAX_BUCKETS = 100_000

    def __init__(
        self,
        samples: int | None,
        window_s: float = 3600.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if (samples is not None and samples < 1) or window_s <= 0:
            raise ConfigError("query budget", got=(samples, window_s), expected="positive numbers")
        self._samples, self._window, self._clock = samples, window_s, clock
        self._buckets: OrderedDict[tuple[str, Hashable], tuple[float, float]] = OrderedDict()

    async def pay(self, client: str, scope: Hashable, amount: int) -> None:
        """Take ``amount`` samples from the client's budget, wherever it is kept, or none. Raises
        BudgetExceeded."""
        self.charge(client, scope, amount)

    async def close(self) -> None:
        """Let go of what keeps them."""

    def charge(self, client: str, scope: Hashable, amount: int) -> None:
        """The same, from what this process has counted. Raises BudgetExceeded."""
        if self._samples is None:
            return
        now = self._clock()
        left, since = self._buckets.pop((client, scope), (float(self._samples), now))
        rate = self._samples / self._window
        left = min(float(self._samples), left + (now - since) * rate)
        enough = amount <= left
        self._buckets[client, scope] = (left - amount if enough else left, now)
        if len(self._buckets) > self.MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if not enough:
            raise self.exceeded(amount, int(left))

    def exceeded(self, amount: int, left: int) -> BudgetExceeded:
        """What a caller is told who asked for more than is left."""
        return BudgetExceeded(
            "query budget",
            got=f"{amount} samples",
            expected=f"<= {left} now, {self._samples} in {self._window:g} s",
        )
