"""Who is told what a door did: a framework's own events, in that framework's own way.

Numbers and ids only; the framework's callbacks carry texts where it has a place for them (retrievers, tools, chains).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

RECALL, RECORD = "memr1.recall", "memr1.record"


class Listener(Protocol):
    """Told after each recall and each recording of a door; it must not raise."""

    def told(self, event: str, values: Mapping[str, Any]) -> None:
        """Hear of `event` in sync code."""

    async def atold(self, event: str, values: Mapping[str, Any]) -> None:
        """Hear of `event` on the event loop."""
