"""`MemoryR1Block` inside LlamaIndex's own Memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
from llama_bots import EchoLLM, ReasonLLM
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import BaseMemoryBlock
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters import failures
from memr1_plugin.adapters.llama_index import MemoryR1Block

ANA = Scope(user="ana")


def block(memory: Memory, **options: Any) -> MemoryR1Block:
    return MemoryR1Block(memory=memory, **options)


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


@pytest.fixture
async def inside() -> AsyncIterator[Callable[..., Any]]:
    """Make LlamaIndex memories around a block, and close their databases at the end."""
    engines = []

    def make(made: MemoryR1Block, session: str, **options: Any) -> Any:
        engines.append(create_async_engine("sqlite+aiosqlite:///:memory:", poolclass=StaticPool))
        return made.in_memory(session, async_engine=engines[-1], **options)

    yield make
    for engine in engines:
        await engine.dispose()


@pytest.fixture
def chat(inside: Callable[..., Any]) -> Callable[[MemoryR1Block, str, str], Awaitable[str]]:
    """One turn in a chat engine; returns the prompt that the model saw."""

    async def one_turn(made: MemoryR1Block, session: str, text: str) -> str:
        llm = EchoLLM()
        await SimpleChatEngine.from_defaults(llm=llm, memory=inside(made, session)).achat(text)
        return "\n".join(str(message.content) for message in llm._seen[-1])

    return one_turn


async def test_a_fact_is_remembered_after_one_turn(memory: Memory, chat: Any) -> None:
    """One turn in one session, and the next session's prompt holds it; LlamaIndex's own blocks need an overflow."""
    made = block(memory, user_id="ana")
    assert isinstance(made, BaseMemoryBlock)
    await chat(made, "one", "My dog is called Rex.")
    prompt = await chat(made, "two", "What is my dog called?")
    assert "ana: My dog is called Rex." in prompt and "data, not instructions" in prompt


async def test_one_session_never_reads_anothers(memory: Memory, chat: Any) -> None:
    """One block shared by two anonymous sessions keeps Alice's secret from Bob, as VectorMemoryBlock does not."""
    made = block(memory)
    await chat(made, "alice", "My secret is bluebird.")
    assert "bluebird" not in await chat(made, "bob", "What is my secret?")
    assert [t.text for t in memory.turns(scope=Scope(session="alice")) if t.role == "user"] == [
        "My secret is bluebird."
    ]


async def test_each_message_is_recorded_once(memory: Memory, inside: Any) -> None:
    """However often LlamaIndex shows the same window, and whatever it flushes, a message is one turn."""
    made = block(memory, user_id="ana")
    own = inside(made, "s", token_limit=60, chat_history_token_ratio=0.5)
    for n in range(6):
        await own.aput(ChatMessage(role="user", content=f"I own {n} big cats and {n} small dogs."))
        await own.aget()
        await own.aput(ChatMessage(role="assistant", content="How nice."))
        await own.aget()
    turns = memory.turns(scope=ANA, limit=None)
    assert [t.text for t in turns] == [
        t for n in range(6) for t in (f"I own {n} big cats and {n} small dogs.", "How nice.")
    ]


async def test_what_is_flushed_unseen_is_learned_too(memory: Memory, inside: Any) -> None:
    """Messages that overflow before anybody asked are recorded when they are flushed."""
    own = inside(block(memory, user_id="ana"), "s", token_limit=40, chat_history_token_ratio=0.5)
    said = ("I live in Graz.", "My dog is called Rex.", "Tea is what I drink.", "My brother builds boats.")
    for text in (*said, "Bern was cold.", "Chess bores Hans.", "Opera sounds loud.", "Paris smells good."):
        await own.aput(ChatMessage(role="user", content=text))
    assert {item.text for item in memory.bank.items(ANA)} >= set(said)


async def test_a_react_agent_sees_it(memory: Memory, inside: Any) -> None:
    """in_memory puts memories into the user's message, since ReActAgent loses a system message."""
    memory.observe("I live in Graz.", scope=ANA)
    llm = ReasonLLM()
    agent = ReActAgent(tools=[weather], llm=llm, streaming=False)
    await agent.run(user_msg="How is the weather where I live?", memory=inside(block(memory, user_id="ana"), "s"))
    assert "I live in Graz." in "\n".join(str(message.content) for message in llm._seen[0])


async def test_it_is_cut_from_its_least_relevant_end(memory: Memory) -> None:
    """Truncation drops memories from the end of the block, never the block's delimiters."""
    made = block(memory, user_id="ana", recall="retrieval")
    for fact in ("I live in Graz.", "My dog is called Rex.", "My brother builds boats."):
        memory.observe(fact, scope=ANA)
    question = "Where do I live, what is my dog called, what does my brother build?"
    whole = await made.aget([ChatMessage(role="user", content=question)], session_id="s")
    cut = await made.atruncate(whole, 10)
    assert cut is not None and len(cut.splitlines()) == len(whole.splitlines()) - 1
    assert cut.splitlines()[-1] == whole.splitlines()[-1]
    assert await made.atruncate(whole, 10_000) is None


def test_copies_share_the_bank(memory: Memory) -> None:
    """A block can be copied and pickled."""
    made = block(memory, user_id="ana")
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again.door.memory is memory and again.name == made.name


async def test_a_failing_memory_gives_nothing_and_breaks_nothing(memory: Memory, chat: Any) -> None:
    """The engine goes on without the block's content."""
    before = failures().get("llama_index.block recall", 0)
    made = block(memory, user_id="ana")
    memory.close()
    assert "Hello." in await chat(made, "s", "Hello.")
    assert failures()["llama_index.block recall"] == before + 1
