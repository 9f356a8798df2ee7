"""What all doors promise, through each framework's own objects: one memory, walls between users, no echo, no loss."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("langchain.agents.middleware")
pytest.importorskip("langchain_classic")
pytest.importorskip("llama_index.core")
from bots import EchoModel
from langchain.agents import create_agent
from langchain_classic.chains import ConversationChain
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from llama_bots import EchoLLM
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from memr1_plugin import Memory, Scope, wrap
from memr1_plugin.adapters import langchain, llama_index
from memr1_plugin.adapters.langgraph import MemoryR1Store

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
Talk = Callable[[Memory, str, str], Awaitable[str]]
"""Says something as a user, in a dialogue of its own; returns what the model, or the caller, was shown."""


@dataclass(frozen=True)
class Way:
    """One door as a bot goes through it: to tell it something, and to ask."""

    tell: Talk
    ask: Talk


async def chain(memory: Memory, user: str, text: str) -> str:
    model = EchoModel(seen=[])
    door = langchain.MemoryR1Memory(memory=memory, user_id=user, session_id=text)
    await ConversationChain(llm=model, memory=door).ainvoke({"input": text})
    return str(model.seen[-1])


async def history(memory: Memory, user: str, text: str) -> str:
    model = EchoModel(seen=[])
    recalled = RunnablePassthrough.assign(memories=langchain.recall_runnable(memory=memory, user_id=user))
    bot = RunnableWithMessageHistory(
        recalled | ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{memories}\n\n{input}")]) | model,
        lambda session_id: langchain.MemoryR1ChatHistory(session_id, user_id=user, memory=memory),
        input_messages_key="input",
        history_messages_key="history",
    )
    await bot.ainvoke({"input": text}, {"configurable": {"session_id": text}})
    return str(model.seen[-1])


async def agent(memory: Memory, user: str, text: str) -> str:
    model = EchoModel(seen=[])
    bot = create_agent(model, middleware=[langchain.MemoryR1Middleware(memory=memory)])
    config: Any = {"configurable": {"user_id": user, "thread_id": text}}
    await bot.ainvoke({"messages": [HumanMessage(text)]}, config)
    return str(model.seen[-1])


async def engine(memory: Memory, user: str, text: str) -> str:
    llm = EchoLLM()
    door = llama_index.MemoryR1Memory(memory=memory, user_id=user, session_id=text)
    await SimpleChatEngine.from_defaults(llm=llm, memory=door).achat(text)
    return str(llm._seen[-1])


async def workflow(memory: Memory, user: str, text: str) -> str:
    from llama_bots import ToolLLM

    def weather(city: str) -> str:
        """Tell the weather."""
        return f"sunny in {city}"

    llm = ToolLLM()
    door = llama_index.MemoryR1Memory(memory=memory, user_id=user, session_id=text)
    await FunctionAgent(llm=llm, tools=[weather], streaming=False).run(text, memory=door)
    return str(llm._seen[0])


async def block(memory: Memory, user: str, text: str) -> str:
    llm, database = EchoLLM(), create_async_engine("sqlite+aiosqlite:///:memory:", poolclass=StaticPool)
    inside = llama_index.MemoryR1Block(memory=memory, user_id=user).in_memory(text, async_engine=database)
    await SimpleChatEngine.from_defaults(llm=llm, memory=inside).achat(text)
    await database.dispose()
    return str(llm._seen[-1])


async def client(memory: Memory, user: str, text: str) -> str:
    seen: list[Any] = []

    async def create(*, messages: list[dict[str, str]], **_: Any) -> dict[str, Any]:
        seen.append(messages)
        return {"id": f"reply-{user}-{text}", "choices": [{"message": {"content": messages[-1]["content"]}}]}

    plain = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    bot = wrap(plain, memory=memory, user_id=user, session_id=text)
    await bot.chat.completions.create(messages=[{"role": "user", "content": text}])
    return str(seen[-1])


async def remember(memory: Memory, user: str, text: str) -> str:
    tools = {tool.name: tool for tool in langchain.memory_tools(memory=memory, user_id=user)}
    return str(await tools["remember"].ainvoke({"text": text}))


async def look_up(memory: Memory, user: str, text: str) -> str:
    tools = {tool.name: tool for tool in langchain.memory_tools(memory=memory, user_id=user)}
    return str(await tools["search_memory"].ainvoke({"query": text}))


async def put(memory: Memory, user: str, text: str) -> str:
    await MemoryR1Store(memory=memory).aput(("memories", MemoryR1Store.label(user)), text[:20], {"text": text})
    return ""


async def search(memory: Memory, user: str, text: str) -> str:
    store = MemoryR1Store(memory=memory)
    return str(await store.asearch(("memories", MemoryR1Store.label(user)), query=text))


async def observe(memory: Memory, user: str, text: str) -> str:
    await memory.aobserve(text, speaker=user, scope=Scope(user=user))
    return ""


async def retrieve(memory: Memory, user: str, text: str) -> str:
    return str(await langchain.MemoryR1Retriever(memory=memory, user_id=user).ainvoke(text))


WAYS = {
    "ConversationChain": Way(chain, chain),
    "RunnableWithMessageHistory": Way(history, history),
    "create_agent": Way(agent, agent),
    "SimpleChatEngine": Way(engine, engine),
    "FunctionAgent": Way(workflow, workflow),
    "LlamaIndex's Memory": Way(block, block),
    "OpenAI client": Way(client, client),
    "tools": Way(remember, look_up),
    "LangGraph store": Way(put, search),
    "observe, retriever": Way(observe, retrieve),
}
every = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every
async def test_what_is_told_through_one_door_is_known_behind_every_other(memory: Memory, way: Way) -> None:
    """One memory behind them all, whatever framework a fact came in by."""
    await way.tell(memory, "ana", "My dog is called Rex.")
    for name, other in WAYS.items():
        assert "dog is called Rex" in await other.ask(memory, "ana", "What is my dog called?"), name


@every
async def test_twenty_users_at_once_lose_nothing_and_never_meet(memory: Memory, way: Way) -> None:
    """Each is told his own cat's name, and nobody else's."""
    users = [f"u{n}" for n in range(20)]
    await asyncio.gather(*(way.tell(memory, user, f"My cat is called Tom{user}.") for user in users))
    shown = await asyncio.gather(*(way.ask(memory, user, "What is my cat called?") for user in users))
    for user, text in zip(users, shown, strict=True):
        assert [other for other in users if f"Tom{other}." in text or f"Tom{other}'" in text] == [user]


@every
async def test_a_restart_forgets_nothing(open_memory: Callable[..., Memory], way: Way) -> None:
    """Another process with the same file knows what was told."""
    before = open_memory()
    await way.tell(before, "ana", "My dog is called Rex.")
    before.close()
    assert "dog is called Rex" in await way.ask(open_memory(), "ana", "What is my dog called?")


@every
async def test_what_is_recalled_is_never_learned(memory: Memory, way: Way) -> None:
    """Ten recollections later the memory holds the one fact: one peer's store was 97.8 % echoes of itself."""
    await way.tell(memory, "ana", "My dog is called Rex.")
    for n in range(10):
        assert "Rex" in await way.ask(memory, "ana", f"What is my dog called, for the {n}th time?")
    assert len(memory.bank.items(Scope(user="ana"))) == 1
