"""Any OpenAI-compatible client: `wrap` it, and chat on as before.

    client = wrap(OpenAI(base_url=...), path="bot.db", user_id="ana")

The client here is a stand-in that says back what it was sent, so that this runs without a server; whatever has
``chat.completions.create`` will do, sync or async, streamed or not.
"""

import sys
import tempfile
from types import SimpleNamespace
from typing import Any

from memr1_plugin import Memory
from memr1_plugin.adapters.wrap import wrap
from memr1_plugin.testing import HashEmbedder, ScriptedModel


def create(*, messages: list[dict[str, str]], **_: Any) -> dict[str, Any]:
    """Answer as a server would."""
    return {"id": f"chat-{len(str(messages))}", "choices": [{"message": {"content": messages[-1]["content"]}}]}


def main(path: str) -> None:
    """Tell a fact in one conversation, ask for it in another."""
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    with Memory.open(path, engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as memory:
        bot = wrap(client, memory=memory, user_id="ana")
        bot.chat.completions.create(model="any", messages=[{"role": "user", "content": "My dog is called Rex."}])
        question = [{"role": "user", "content": "What is my dog called?"}]
        print(bot.chat.completions.create(model="any", messages=question)["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/bot.db")
