"""The doors of LlamaIndex: a memory for its chat engines and agents, and a block for its own ``Memory``.

``MemoryR1Memory`` is the whole memory of a bot; ``MemoryR1Block`` is for bots that keep LlamaIndex's. Neither
installs anything into LlamaIndex's namespace.
"""

from __future__ import annotations

from memr1_plugin.adapters.llama_index.block import MemoryR1Block
from memr1_plugin.adapters.llama_index.memory import MemoryR1Memory

__all__ = ["MemoryR1Block", "MemoryR1Memory"]
