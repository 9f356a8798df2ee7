"""Tools for agents that manage their memory themselves: search, remember, correct, forget.

Give them to ``create_agent(tools=...)``, an AgentExecutor or ``model.bind_tools``; here they are called as an
agent would call them. A memory that was forgotten is a tombstone, and can be brought back.
"""

import sys
import tempfile

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters.langchain import memory_tools
from memr1_plugin.testing import HashEmbedder, ScriptedModel


def main(path: str) -> None:
    """The life of one memory in an agent's hands."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        tools = {tool.name: tool for tool in memory_tools(memory=memory, user_id="ana")}
        print(tools["remember"].invoke({"text": "Ana's dog is called Rex."}))
        print(tools["search_memory"].invoke({"query": "What is the dog called?"}))
        [item] = memory.search("dog", scope=Scope(user="ana"))
        print(tools["correct_memory"].invoke({"memory_id": item.id, "text": "Ana's dog is called Max."}))
        print(tools["forget_memory"].invoke({"memory_id": item.id}))
        print(tools["search_memory"].invoke({"query": "What is the dog called?"}))
        print(tools["forget_memory"].invoke({"memory_id": 99}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
