"""LangChain's classic chains: `MemoryR1Memory` where ConversationBufferMemory was.

The chat model here is LangChain's parrot, which says back its whole prompt: what it prints is what a model would
see. Leave `engine` and `embedder` out, and put your model in, for the real thing.
"""

import sys
import tempfile
import warnings

from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel

from memr1_plugin import Memory
from memr1_plugin.adapters.langchain import MemoryR1Memory
from memr1_plugin.testing import HashEmbedder, ScriptedModel

warnings.filterwarnings("ignore", category=DeprecationWarning)  # langchain-classic, about itself
from langchain_classic.chains import ConversationChain  # noqa: E402


def main(path: str) -> None:
    """Tell a fact in one session, ask for it in another."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        monday = MemoryR1Memory(memory=memory, user_id="ana", session_id="monday")
        ConversationChain(llm=ParrotFakeChatModel(), memory=monday).invoke({"input": "My dog is called Rex."})

        friday = MemoryR1Memory(memory=memory, user_id="ana", session_id="friday")
        bot = ConversationChain(llm=ParrotFakeChatModel(), memory=friday)
        print(bot.invoke({"input": "What is my dog called?"})["response"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
