"""What a policy decides, counted as it trains: the first place where a collapse shows.

Shares for the log, and a warning when one decision takes all. It judges no decision: a Manager that adds nearly
everything may be right (Memory-R2's policies end there), so the run goes on.
"""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Sequence


class CollapseWarning(UserWarning):
    """The policy decides one and the same thing nearly always: all NOOP, all DELETE, all abstentions."""


class Histogram:
    """Counts decisions over a window; says so when one of them takes all."""

    def __init__(self, kinds: Sequence[str], *, window: int = 200, limit: float = 0.95) -> None:
        self.kinds, self.limit = tuple(kinds), limit
        self._recent: deque[str] = deque(maxlen=window)
        self._warned = False

    def observe(self, batch: Sequence[str]) -> dict[str, float]:
        """Add a batch of decisions; return each kind's share of it as "operations/<kind>"."""
        self._recent.extend(batch)
        self._warn()
        counts = Counter(batch)
        return {f"operations/{kind}": counts[kind] / len(batch) if batch else 0.0 for kind in self.kinds}

    def _warn(self) -> None:
        if len(self._recent) < (self._recent.maxlen or 0):
            return
        kind, count = Counter(self._recent).most_common(1)[0]
        share = count / len(self._recent)
        if share >= self.limit and not self._warned:
            warnings.warn(
                f"{share:.0%} of the last {len(self._recent)} decisions are {kind}: the policy has collapsed or is "
                "about to. Look at transcripts.jsonl; raise beta or evidence_coverage, or lower learning_rate.",
                CollapseWarning,
                stacklevel=2,
            )
        self._warned = share >= self.limit
