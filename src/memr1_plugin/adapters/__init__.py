"""Doors: ways into a bot's memory from LangChain, LangGraph, LlamaIndex and OpenAI-compatible clients.

Import the one you need, e.g. ``from memr1_plugin.adapters.langchain import MemoryR1Memory``; none is imported
here. What all doors share is `_door`; LoRA adapters (weights) are something else and live beside the package.
"""

from __future__ import annotations

from memr1_plugin.adapters._door import failures

__all__ = ["failures"]
