"""What each door costs: milliseconds per turn, beside the same chain with the framework's own memory.

    python benchmarks/doors.py                       # 200 turns through each door
    python benchmarks/doors.py --turns 50 --json

Models are scripted and answer at once, the embedder hashes words: what is left is the doors', the bank's and the
frameworks' own time. Every turn of ours is on the disk (fsync) when it returns; the frameworks' memories named
here live in RAM, LangGraph's SQLite store aside. The median over turns is given, and the worst one in twenty;
beside the wall clock stands the processor's, of all threads, which holds on a machine that others use too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

warnings.filterwarnings("ignore", category=DeprecationWarning)
from langchain.agents import create_agent  # noqa: E402
from langchain_classic.chains import ConversationChain  # noqa: E402
from langchain_classic.memory import ConversationBufferWindowMemory  # noqa: E402
from langchain_core.chat_history import InMemoryChatMessageHistory  # noqa: E402
from langchain_core.language_models.fake_chat_models import FakeListChatModel  # noqa: E402
from langchain_core.runnables.history import RunnableWithMessageHistory  # noqa: E402
from langgraph.checkpoint.memory import InMemorySaver  # noqa: E402
from langgraph.store.memory import InMemoryStore  # noqa: E402
from llama_index.core.chat_engine import SimpleChatEngine  # noqa: E402
from llama_index.core.llms import MockLLM  # noqa: E402
from llama_index.core.memory import ChatMemoryBuffer  # noqa: E402

from memr1_plugin import Memory  # noqa: E402
from memr1_plugin.adapters import langchain, llama_index  # noqa: E402
from memr1_plugin.adapters.langgraph import MemoryR1Store  # noqa: E402
from memr1_plugin.adapters.wrap import wrap  # noqa: E402
from memr1_plugin.testing import HashEmbedder, ScriptedModel  # noqa: E402

warnings.filterwarnings("ignore", category=DeprecationWarning)  # again: LangChain turns its own back on
MODEL = FakeListChatModel(responses=["I see."])
Turn = Callable[[str], Any]
THINGS = ("books", "boats", "drums", "lamps", "rugs", "kites", "clocks", "hats", "plates", "chairs", "bikes", "tents")


@contextmanager
def memory() -> Iterator[Memory]:
    """A fresh bank on the disk."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory.open(Path(folder) / "bot.db", engine=ScriptedModel.heuristic(), embedder=HashEmbedder()) as made,
    ):
        yield made


def chain(door: Any) -> Turn:
    """A classic chain, one invoke a turn."""
    bot = ConversationChain(llm=MODEL, memory=door)
    return lambda text: bot.invoke({"input": text})


def achain(door: Any) -> Turn:
    """A classic chain, one ainvoke a turn."""
    bot = ConversationChain(llm=MODEL, memory=door)
    return lambda text: bot.ainvoke({"input": text})


def with_history(history: Any) -> Turn:
    """RunnableWithMessageHistory."""
    bot = RunnableWithMessageHistory(MODEL, lambda session_id: history)
    return lambda text: bot.invoke([("human", text)], {"configurable": {"session_id": "s"}})


def agent(*middleware: Any) -> Turn:
    """An agent whose threads last ten turns, as checkpointing all of a thread grows with it."""
    bot = create_agent(MODEL, middleware=middleware, checkpointer=InMemorySaver())
    count = iter(range(1_000_000))
    return lambda text: bot.invoke(
        {"messages": [("user", text)]}, {"configurable": {"thread_id": str(next(count) // 10)}}
    )


def engine(door: Any) -> Turn:
    """LlamaIndex's simple chat engine."""
    return SimpleChatEngine.from_defaults(llm=MockLLM(max_tokens=8), memory=door).chat


def client(wrapped: Callable[[Any], Any]) -> Turn:
    """An OpenAI-like client that answers at once."""
    count = iter(range(1_000_000))
    answer = lambda **_: {"id": str(next(count)), "choices": [{"message": {"content": "ok"}}]}  # noqa: E731
    bot = wrapped(SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=answer))))
    return lambda text: bot.chat.completions.create(messages=[{"role": "user", "content": text}])


def store(made: Any) -> Turn:
    """One put, one get and one search a turn."""

    def turn(text: str) -> None:
        made.put(("memories", "ana"), text[:12], {"text": text})
        made.get(("memories", "ana"), text[:12])
        made.search(("memories", "ana"), limit=5)

    return turn


Door = tuple[str, str, Callable[[], Turn], Callable[[Memory], Turn]]
DOORS: list[Door] = [
    ("ConversationChain.invoke", "buffer of 6 turns", lambda: chain(ConversationBufferWindowMemory(k=3)),
     lambda m: chain(langchain.MemoryR1Memory(memory=m, user_id="ana"))),
    ("... without the Answer Agent", "buffer of 6 turns", lambda: chain(ConversationBufferWindowMemory(k=3)),
     lambda m: chain(langchain.MemoryR1Memory(memory=m, user_id="ana", recall="retrieval"))),
    ("ConversationChain.ainvoke", "buffer of 6 turns", lambda: achain(ConversationBufferWindowMemory(k=3)),
     lambda m: achain(langchain.MemoryR1Memory(memory=m, user_id="ana"))),
    ("RunnableWithMessageHistory", "in-memory history", lambda: with_history(InMemoryChatMessageHistory()),
     lambda m: with_history(langchain.MemoryR1ChatHistory("s", memory=m))),
    ("create_agent, middleware", "no middleware", agent,
     lambda m: agent(langchain.MemoryR1Middleware(memory=m, user_id="ana"))),
    ("SimpleChatEngine", "ChatMemoryBuffer", lambda: engine(ChatMemoryBuffer.from_defaults(token_limit=3000)),
     lambda m: engine(llama_index.MemoryR1Memory(memory=m, user_id="ana"))),
    ("LangGraph store, 3 operations", "InMemoryStore", lambda: store(InMemoryStore()),
     lambda m: store(MemoryR1Store(memory=m))),
    ("wrapped client", "bare client", lambda: client(lambda c: c),
     lambda m: client(lambda c: wrap(c, memory=m, user_id="ana"))),
]  # fmt: skip


async def timed(turn: Turn, turns: int) -> tuple[list[float], list[float]]:
    """Run turns and return each one's milliseconds, of the clock and of the processor, the first few left out."""
    clock, processor = [], []
    for n in range(turns + 3):
        text = f"{n} {THINGS[n % len(THINGS)]} and {n * 7} {THINGS[(n * 5 + 1) % len(THINGS)]} are what I own."
        start, start_cpu = time.perf_counter(), time.process_time()
        result = turn(text)
        if isinstance(result, Awaitable):
            await result
        clock.append(1000 * (time.perf_counter() - start))
        processor.append(1000 * (time.process_time() - start_cpu))
    return clock[3:], processor[3:]


def measure(door: Door, turns: int) -> dict[str, Any]:
    """Measure one door and what stands in its place without us."""
    name, other, theirs, ours = door
    base, base_cpu = asyncio.run(timed(theirs(), turns))
    with memory() as made:
        mine, mine_cpu = asyncio.run(timed(ours(made), turns))
        stages = {stage: round(1000 * s / (turns + 3), 2) for stage, s in made.stats().seconds.items()}
    return {
        "door": name,
        "beside": other,
        "framework_ms": round(statistics.median(base), 2),
        "memr1_ms": round(statistics.median(mine), 2),
        "overhead_ms": round(statistics.median(mine) - statistics.median(base), 2),
        "overhead_cpu_ms": round(statistics.median(mine_cpu) - statistics.median(base_cpu), 2),
        "p95_ms": round(statistics.quantiles(mine, n=20)[-1], 2),
        "stages_ms": stages,
    }


def main() -> None:
    """Measure all doors and print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = [measure(door, given.turns) for door in DOORS]
    if given.json:
        print("\n".join(map(json.dumps, rows)))
        return
    table = Table(title=f"milliseconds per turn, median of {given.turns}")
    for column in (
        "door",
        "beside",
        "framework's own",
        "ours",
        "overhead",
        "of it processor",
        "p95 of ours",
        "of ours, in the memory",
    ):
        table.add_column(column, justify="left" if column in ("door", "beside") else "right")
    for row in rows:
        stages = ", ".join(f"{stage} {ms:g}" for stage, ms in row["stages_ms"].items())
        numbers = [f"{row[k]:.1f}" for k in ("framework_ms", "memr1_ms", "overhead_ms", "overhead_cpu_ms", "p95_ms")]
        table.add_row(row["door"], row["beside"], *numbers, stages)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
