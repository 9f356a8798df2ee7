"""Long-term memory for LangChain and LlamaIndex bots: a local, trainable Memory-R1.

The names here are those of the first tutorial; nothing heavy is imported before one of them is used.
Framework doors are in `memr1_plugin.adapters`, training in `memr1_plugin.training`, doubles for your own
tests in `memr1_plugin.testing`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memr1_plugin.adapters.wrap import wrap
    from memr1_plugin.errors import MemoryR1Error
    from memr1_plugin.memory import Memory
    from memr1_plugin.settings import Settings
    from memr1_plugin.types import Answer, Change, MemoryItem, Scope, Turn

_HOME = {
    "Answer": "types",
    "Change": "types",
    "Memory": "memory",
    "MemoryItem": "types",
    "MemoryR1Error": "errors",
    "Scope": "types",
    "Settings": "settings",
    "Turn": "types",
    "wrap": "adapters.wrap",
}
__all__ = ["Answer", "Change", "Memory", "MemoryItem", "MemoryR1Error", "Scope", "Settings", "Turn", "wrap"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
