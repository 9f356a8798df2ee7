"""LangGraph's stores: `MemoryR1Store` for ``compile(store=...)`` and ``create_agent(store=...)``.

("memories", user id) is that user's memory: what was said in a chat is found in the store, and what a graph puts
there is known in the chat. Other namespaces are the graph's own.
"""

import sys
import tempfile

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters.langgraph import MemoryR1Store
from memr1_plugin.testing import HashEmbedder, ScriptedModel


def main(path: str) -> None:
    """Put, search, and meet a fact from a chat."""
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        store = MemoryR1Store(memory=memory)
        ana = ("memories", MemoryR1Store.label("ana@example.org"))
        store.put(ana, "pet", {"text": "Ana's dog is called Rex.", "kind": "pet"})
        memory.observe("I live in Graz.", speaker="Ana", scope=Scope(user="ana@example.org"))
        for item in store.search(("memories",), query="What is the dog called, and where does Ana live?"):
            print(item.namespace, item.key, item.value)
        store.put(("drafts", "blog"), "one", {"title": "On dogs"}, ttl=60)
        print(store.list_namespaces(), store.search(ana, filter={"kind": "pet"})[0].key)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
