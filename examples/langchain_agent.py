"""LangChain's create_agent: `MemoryR1Middleware` recalls before the model is called and records after the run.

One agent serves all users: who is talking comes with each run, in its context. The chat model is LangChain's
parrot, which says back the last message: the question, with the memories at its head.
"""

import sys
import tempfile

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel

from memr1_plugin import Memory
from memr1_plugin.adapters.langchain import MemoryR1Context, MemoryR1Middleware
from memr1_plugin.testing import HashEmbedder, ScriptedModel


def main(path: str) -> None:
    """Ana tells a fact; later she is asked for it, and Ben is not told."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        agent = create_agent(
            ParrotFakeChatModel(),
            middleware=[MemoryR1Middleware(memory=memory)],
            context_schema=MemoryR1Context,
        )
        fact, question = ("user", "My dog is called Rex."), ("user", "What is my dog called?")
        agent.invoke({"messages": [fact]}, context=MemoryR1Context(user_id="ana", session_id="monday"))
        for user in ("ana", "ben"):
            context = MemoryR1Context(user_id=user, session_id="friday")
            reply = agent.invoke({"messages": [question]}, context=context)["messages"][-1]
            print(f"--- {user}\n{reply.content}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
