"""LangChain's retrievers: `MemoryR1Retriever` gives a user's memories as documents, for any chain that takes one.

With ``user_id`` made configurable, one retriever serves all users.
"""

import sys
import tempfile

from langchain_core.runnables import ConfigurableField

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters.langchain import MemoryR1Retriever
from memr1_plugin.testing import HashEmbedder, ScriptedModel


def main(path: str) -> None:
    """Retrieve what two users said, each their own."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        memory.observe("My dog is called Rex.", speaker="Ana", scope=Scope(user="ana"))
        memory.observe("My dog is called Bello.", speaker="Ben", scope=Scope(user="ben"))
        retriever = MemoryR1Retriever(memory=memory, k=3).configurable_fields(user_id=ConfigurableField("user_id"))
        for user in ("ana", "ben"):
            for document in retriever.invoke("What is the dog called?", {"configurable": {"user_id": user}}):
                print(document.page_content, document.metadata["score"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
