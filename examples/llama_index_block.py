"""LlamaIndex's own Memory with a `MemoryR1Block` in it: LlamaIndex keeps the dialogue, the block remembers.

One block serves all of a user's sessions. A fact is remembered after one turn, where LlamaIndex's own blocks wait
until short-term memory overflows. The model is LlamaIndex's MockLLM, which says back its whole prompt.
"""

import asyncio
import sys
import tempfile

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM

from memr1_plugin import Memory
from memr1_plugin.adapters.llama_index import MemoryR1Block
from memr1_plugin.testing import HashEmbedder, ScriptedModel


async def main(path: str) -> None:
    """Tell a fact in one session, ask for it in another."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        block = MemoryR1Block(memory=memory, user_id="ana")
        monday = block.in_memory(session_id="monday", async_database_uri=f"sqlite+aiosqlite:///{path}.chats")
        await SimpleChatEngine.from_defaults(llm=MockLLM(), memory=monday).achat("My dog is called Rex.")

        friday = block.in_memory(session_id="friday", async_database_uri=f"sqlite+aiosqlite:///{path}.chats")
        print(await SimpleChatEngine.from_defaults(llm=MockLLM(), memory=friday).achat("What is my dog called?"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db"))
