"""LangChain's RunnableWithMessageHistory: `MemoryR1ChatHistory` keeps the dialogue, `recall_runnable` recalls.

The history gives back exactly the messages of its session; memories of earlier sessions come into the prompt by
the runnable. The chat model is LangChain's parrot, which says back the last message.
"""

import sys
import tempfile
import warnings

from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory

from memr1_plugin import Memory
from memr1_plugin.adapters.langchain import MemoryR1ChatHistory, recall_runnable
from memr1_plugin.testing import HashEmbedder, ScriptedModel

warnings.filterwarnings("ignore", category=DeprecationWarning)  # langchain-core, about RunnableWithMessageHistory


def main(path: str) -> None:
    """Two sessions of one user; the second knows what was said in the first."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        recalled = RunnablePassthrough.assign(memories=recall_runnable(memory=memory, user_id="ana"))
        prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{memories}\n\n{input}")])
        bot = RunnableWithMessageHistory(
            recalled | prompt | ParrotFakeChatModel(),
            lambda session_id: MemoryR1ChatHistory(session_id, user_id="ana", memory=memory),
            input_messages_key="input",
            history_messages_key="history",
        )
        bot.invoke({"input": "My dog is called Rex."}, {"configurable": {"session_id": "monday"}})
        friday = {"configurable": {"session_id": "friday"}}
        print(bot.invoke({"input": "What is my dog called?"}, friday).content)
        print(MemoryR1ChatHistory("friday", user_id="ana", memory=memory))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
