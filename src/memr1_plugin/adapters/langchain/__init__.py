"""The doors of LangChain: classic memory, chat history, agent middleware, retriever and tools.

Each stands in a module of its own, because each needs another part of LangChain; what is not used is not
imported. ``MemoryR1Memory`` works with langchain-classic 1.x and with langchain 0.3.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memr1_plugin.adapters.langchain.history import MemoryR1ChatHistory
    from memr1_plugin.adapters.langchain.memory import MemoryR1Memory
    from memr1_plugin.adapters.langchain.middleware import MemoryR1Context, MemoryR1Middleware
    from memr1_plugin.adapters.langchain.retriever import MemoryR1Retriever, recall_runnable
    from memr1_plugin.adapters.langchain.tools import memory_tools

_HOME = {
    "MemoryR1ChatHistory": "history",
    "MemoryR1Context": "middleware",
    "MemoryR1Memory": "memory",
    "MemoryR1Middleware": "middleware",
    "MemoryR1Retriever": "retriever",
    "memory_tools": "tools",
    "recall_runnable": "retriever",
}
__all__ = [
    "MemoryR1ChatHistory",
    "MemoryR1Context",
    "MemoryR1Memory",
    "MemoryR1Middleware",
    "MemoryR1Retriever",
    "memory_tools",
    "recall_runnable",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
