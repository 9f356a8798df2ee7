"""A bot that remembers: three sessions of one user, the last one in another process.

A real model on this machine does all of it: SmolLM2-135M in 4 bits with what LoRAs ship for it, MiniLM, SQLite and
FAISS. It keeps the memory and answers. It is too small for small talk (told of a dog, it is
sorry for your loss), so this bot says "Noted." to what it is told, and only what it is asked reaches the model.

    python examples/demo.py            run it in a fresh folder
    python examples/demo.py bot.db     keep the bank
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from langchain_core.language_models import LLM
from langchain_core.prompts import PromptTemplate

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters.langchain import MemoryR1Memory
from memr1_plugin.agents.engine import Engine, Prompt, Role

warnings.filterwarnings("ignore", category=DeprecationWarning)  # langchain-classic, about itself
from langchain_classic.chains import ConversationChain  # noqa: E402

ANA = Scope(user="ana")
MONDAY = [
    "Hi there!",
    "I live in Lisbon.",
    "I have a dog called Rex.",
    "My sister Rosa is a nurse.",
    "What is my dog called?",
]
FRIDAY = ["I moved to Berlin last week, I don't live in Lisbon any more."]
AFTER_THE_RESTART = ["Where do I live?"]

EXAMPLES = """\
A bot talks with people. It answers from its notes, in one short sentence.

Notes:
- [3 May 2025] Ben: I started to work at a bakery.
- [9 May 2025] Ben: My two cats are called Tom and Kim.
Human: Where do I work?
Bot: You work at a bakery.

Notes:
{history}
Human: {input}
Bot:"""


class SmallBot(LLM):
    """The bot's language model: the base model that the memory has loaded already, without a LoRA."""

    engine: Any

    @property
    def _llm_type(self) -> str:
        return "smollm2-135m"

    def _call(self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **_: Any) -> str:
        if not prompt.removesuffix("\nBot:").endswith("?"):
            return "Noted."
        engine: Engine = self.engine
        [done] = engine.complete([Prompt(fixed="", body=prompt, max_tokens=20)], Role.BASE)
        return done.text.strip().partition("\n")[0]


def session(memory: Memory, name: str, lines: list[str]) -> None:
    """One conversation: what Ana says, what the bot says, and what that did to the bank."""
    print(f"\n--- {name} ---")
    chain = ConversationChain(
        llm=SmallBot(engine=memory.engine),
        prompt=PromptTemplate.from_template(EXAMPLES),
        # The bot reads two memories and no recent turns: 135M parameters are soon confused. The Answer Agent is
        # asked at the end, and chooses for itself among ten.
        memory=MemoryR1Memory(
            memory=memory, user_id="ana", session_id=name, recall="retrieval", k=2, recent_turns=0, on_error="raise"
        ),
    )
    for line in lines:
        seen, start = len(memory.history(scope=ANA)), time.perf_counter()
        reply = chain.invoke(line)["response"]
        print(f"Ana: {line}\nBot: {reply}   ({time.perf_counter() - start:.1f} s)")
        for change in memory.history(scope=ANA)[seen:]:
            before = f'"{change.before.text}" -> ' if change.before else ""
            print(
                f'     bank: {change.kind.value} item {change.item_id}: {before}"{change.after and change.after.text}"'
            )


def before_the_restart(path: str) -> None:
    """Two sessions in one process."""
    with Memory.open(path) as memory:
        print(f"model: {memory.engine.id}")
        session(memory, "Monday", MONDAY)
        session(memory, "Friday", FRIDAY)


def after_the_restart(path: str) -> None:
    """A third session in another process: all it has is the file."""
    with Memory.open(path) as memory:
        session(memory, "After a restart", AFTER_THE_RESTART)
        answer = memory.answer(AFTER_THE_RESTART[0], scope=ANA)
        print(f"\nmemory.answer({answer.question!r}) -> {answer.text!r}, resting on items {list(answer.used)}:")
        for item in answer.selected:
            print(f"  {item.id}: [{item.at:%d %B %Y}] {item.speaker}: {item.text}")
            for change in memory.history(item.id, scope=ANA):
                print(f"     {change.kind.value} by the {change.source}: {change.after and change.after.text!r}")


def main() -> None:
    """Run the first part here and the second in a process of its own."""
    if sys.argv[1:2] == ["--after-the-restart"]:
        after_the_restart(sys.argv[2])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = sys.argv[1] if sys.argv[1:] else str(Path(folder, "bot.db"))
        before_the_restart(path)
        print("\n=== the process ends; another one opens the same file ===", flush=True)
        subprocess.run([sys.executable, __file__, "--after-the-restart", path], check=True)


if __name__ == "__main__":
    main()
