"""What a part of the torture found: its numbers, and every promise that it saw broken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """One row of the table that `make torture` prints."""

    part: str
    checked: str
    """How much was tried, in words: "500 kills, 41 labels"."""
    failures: tuple[str, ...]
    """Broken promises in words; () is a pass."""
    numbers: tuple[tuple[str, str], ...] = ()
    """Measured values by name."""
    seed: int | None = None

    @property
    def passed(self) -> bool:
        """True when no promise was broken."""
        return not self.failures
