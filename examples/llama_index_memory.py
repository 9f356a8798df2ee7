"""LlamaIndex's chat engines and agents: `MemoryR1Memory` where ChatMemoryBuffer was.

The model is LlamaIndex's MockLLM, which says back its whole prompt: what it prints is what a model would see. The
same ``memory=`` goes into ``FunctionAgent.run``, ``ReActAgent.run`` and ``AgentWorkflow.run``.
"""

import sys
import tempfile

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM

from memr1_plugin import Memory
from memr1_plugin.adapters.llama_index import MemoryR1Memory
from memr1_plugin.testing import HashEmbedder, ScriptedModel


def main(path: str) -> None:
    """Tell a fact in one session, ask for it in another."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        monday = MemoryR1Memory(memory=memory, user_id="ana", session_id="monday")
        SimpleChatEngine.from_defaults(llm=MockLLM(), memory=monday).chat("My dog is called Rex.")

        friday = MemoryR1Memory(memory=memory, user_id="ana", session_id="friday", token_limit=2000)
        engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=friday)
        print(engine.chat("What is my dog called?"))
        print(friday.to_dict())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
