"""What a door did, as events of LlamaIndex's instrumentation, for any handler of its dispatcher.

Numbers and ids only. The methods themselves are spans, which LlamaIndex gives their arguments, texts included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memr1_plugin.adapters._listener import RECALL
from memr1_plugin.errors import MissingExtraError

try:
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.instrumentation.events import BaseEvent
except ImportError as error:
    raise MissingExtraError.of("llama-index-core", "llama-index") from error

dispatcher = get_dispatcher(__name__)


class MemoryRecallEvent(BaseEvent):
    """Memories were recalled for a question."""

    door: str
    """"llama_index.memory" or "llama_index.block"."""
    items: int
    ids: list[int]
    """Of the memory items, best first."""

    @classmethod
    def class_name(cls) -> str:
        """The event's name in traces."""
        return "MemoryRecallEvent"


class MemoryRecordEvent(BaseEvent):
    """Messages were recorded; what was new in them is learned now, or soon where a thread writes."""

    door: str
    turns: int

    @classmethod
    def class_name(cls) -> str:
        """The event's name in traces."""
        return "MemoryRecordEvent"


class DispatcherEvents:
    """Tells LlamaIndex's dispatcher."""

    def told(self, event: str, values: Mapping[str, Any]) -> None:
        """Dispatch `event`."""
        dispatcher.event((MemoryRecallEvent if event == RECALL else MemoryRecordEvent)(**values))

    async def atold(self, event: str, values: Mapping[str, Any]) -> None:
        """The same: LlamaIndex's dispatcher is sync."""
        self.told(event, values)
