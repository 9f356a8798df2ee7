"""Frameworks' own ways of watching see what the doors do: LangChain's callbacks, LlamaIndex's instrumentation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from memr1_plugin import Memory, Scope

ANA = Scope(user="ana")
FACT, QUESTION = "I have a dog called Rex.", "What is my dog called?"
RECORDED = {"turns": 2}


def seen() -> Any:
    """A LangChain handler that keeps custom events, and what retrievers and tools say."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.events: list[tuple[str, Any]] = []

        def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            self.events.append((name, data))

        def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
            self.events.append(("retriever start", query))

        def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
            self.events.append(("retriever end", len(documents)))

        def on_tool_start(self, serialized: Any, input_str: str, **kwargs: Any) -> None:
            self.events.append(("tool start", serialized["name"]))

        def on_tool_end(self, output: Any, **kwargs: Any) -> None:
            self.events.append(("tool end", str(output)))

    return Seen()


@pytest.fixture
def rex(memory: Memory) -> int:
    """The id of a memory that is there already."""
    [change] = memory.observe(FACT, scope=ANA)
    assert change.item_id is not None
    return change.item_id


# -- LangChain ----------------------------------------------------------------------------------------------


async def test_an_agents_run_tells_its_handlers(memory: Memory, rex: int) -> None:
    """What middleware recalls and records are custom events of the agent's run, sync and async; ids and counts only."""
    pytest.importorskip("langchain.agents.middleware")
    from bots import EchoModel
    from langchain.agents import create_agent

    from memr1_plugin.adapters.langchain import MemoryR1Middleware

    agent = create_agent(EchoModel(), middleware=[MemoryR1Middleware(memory=memory, user_id="ana")])
    expected = [
        ("memr1.recall", {"door": "langchain.middleware", "items": 1, "ids": [rex]}),
        ("memr1.record", {"door": "langchain.middleware", **RECORDED}),
    ]
    for again in (False, True):
        handler, inputs = seen(), {"messages": [("user", QUESTION)]}
        if again:
            await agent.ainvoke(inputs, config={"callbacks": [handler]})
        else:
            agent.invoke(inputs, config={"callbacks": [handler]})
        assert [event for event in handler.events if event[0].startswith("memr1.")] == expected


async def test_an_agents_event_stream_holds_them(memory: Memory, rex: int) -> None:
    """`astream_events` gives recalls and recordings beside the model's own events."""
    pytest.importorskip("langchain.agents.middleware")
    from bots import EchoModel
    from langchain.agents import create_agent

    from memr1_plugin.adapters.langchain import MemoryR1Middleware

    agent = create_agent(EchoModel(), middleware=[MemoryR1Middleware(memory=memory, user_id="ana")])
    stream = agent.astream_events({"messages": [("user", QUESTION)]}, version="v2")
    names = [event["name"] async for event in stream if event["event"] == "on_custom_event"]
    assert names == ["memr1.recall", "memr1.record"]


async def test_a_runnable_and_a_history_tell_the_run_they_are_in(memory: Memory, rex: int) -> None:
    """`recall_runnable` and `RunnableWithMessageHistory` report to the handlers of their run."""
    pytest.importorskip("langchain_core")
    from bots import EchoModel
    from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
    from langchain_core.runnables import RunnablePassthrough
    from langchain_core.runnables.history import RunnableWithMessageHistory

    from memr1_plugin.adapters.langchain import MemoryR1ChatHistory, recall_runnable

    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("user", "{memories}{input}")])
    chain = RunnablePassthrough.assign(memories=recall_runnable(memory=memory, user_id="ana")) | prompt | EchoModel()
    bot = RunnableWithMessageHistory(
        chain,
        lambda session_id: MemoryR1ChatHistory(session_id, user_id="ana", memory=memory),
        input_messages_key="input",
        history_messages_key="history",
    )
    handler = seen()
    bot.invoke({"input": QUESTION}, config={"configurable": {"session_id": "s"}, "callbacks": [handler]})
    assert ("memr1.recall", {"door": "langchain.recall", "items": 1, "ids": [rex]}) in handler.events
    assert ("memr1.record", {"door": "langchain.history", **RECORDED}) in handler.events


def test_a_classic_memory_tells_the_handlers_it_was_given(memory: Memory, rex: int) -> None:
    """A chain asks its memory before its run begins: the memory has handlers of its own, which copies share."""
    pytest.importorskip("langchain_classic")
    from bots import EchoModel
    from langchain_classic.chains import ConversationChain

    from memr1_plugin.adapters.langchain import MemoryR1Memory

    handler = seen()
    door = MemoryR1Memory(memory=memory, user_id="ana", session_id="s", callbacks=[handler])
    for each in (door, copy.deepcopy(door)):
        ConversationChain(llm=EchoModel(), memory=each).invoke({"input": QUESTION})
        assert handler.events == [
            ("memr1.recall", {"door": "langchain.memory", "items": 1, "ids": [rex]}),
            ("memr1.record", {"door": "langchain.memory", **RECORDED}),
        ]
        handler.events.clear()
    assert pickle.loads(pickle.dumps(door)).callbacks == []


def test_a_retriever_and_tools_fire_langchains_own_callbacks(memory: Memory, rex: int) -> None:
    """They are LangChain's components, and are watched as such."""
    pytest.importorskip("langchain_core")
    from memr1_plugin.adapters.langchain import MemoryR1Retriever, memory_tools

    handler = seen()
    config: Any = {"callbacks": [handler]}
    MemoryR1Retriever(memory=memory, user_id="ana").invoke(QUESTION, config=config)
    memory_tools(memory=memory, user_id="ana")[0].invoke({"query": QUESTION}, config=config)
    names = [name for name, _ in handler.events]
    assert names == ["retriever start", "retriever end", "tool start", "tool end"]
    assert handler.events[0] == ("retriever start", QUESTION) and handler.events[1] == ("retriever end", 1)


def test_outside_of_a_run_nobody_is_told(memory: Memory) -> None:
    """A history that code uses by itself has no run, and does not miss one."""
    pytest.importorskip("langchain_core")
    from langchain_core.messages import HumanMessage

    from memr1_plugin.adapters.langchain import MemoryR1ChatHistory

    history = MemoryR1ChatHistory("s", user_id="ana", memory=memory, on_error="raise")
    history.add_messages([HumanMessage(FACT)])
    assert len(history.messages) == 1


# -- LlamaIndex ---------------------------------------------------------------------------------------------


async def test_llama_index_handlers_get_events_in_their_spans(memory: Memory, rex: int) -> None:
    """Recalls and recordings are events with ids and counts, and belong to the span of the method that did them."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler

    from memr1_plugin.adapters.llama_index import MemoryR1Block, MemoryR1Memory
    from memr1_plugin.adapters.llama_index.events import MemoryRecallEvent, MemoryRecordEvent

    events: list[Any] = []

    class Handler(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            if isinstance(event, (MemoryRecallEvent, MemoryRecordEvent)):
                events.append(event)

    root, handler = get_dispatcher(), Handler()
    root.add_event_handler(handler)
    try:
        door = MemoryR1Memory(memory=memory, user_id="ana", session_id="s")
        door.put(ChatMessage(role="user", content="I live in Graz."))
        door.get(QUESTION)
        await door.aput(ChatMessage(role="user", content="I work in Linz."))
        await door.aget(QUESTION)
        await MemoryR1Block(memory=memory, user_id="ana", session_id="t").aget(
            [ChatMessage(role="user", content=QUESTION)]
        )
    finally:
        root.event_handlers.remove(handler)
    told = [(type(event).__name__, event.door) for event in events]
    one = [("MemoryRecordEvent", "llama_index.memory"), ("MemoryRecallEvent", "llama_index.memory")]
    block = [("MemoryRecordEvent", "llama_index.block"), ("MemoryRecallEvent", "llama_index.block")]
    assert told == one + one + block
    assert rex in events[1].ids and events[1].items == len(events[1].ids) and events[0].turns == 1
    assert events[0].span_id.startswith("MemoryR1Memory.put") and events[1].span_id.startswith("MemoryR1Memory.get")
    assert all(word not in str(event) for event in events for word in ("Rex", "Graz", "Linz", "called"))
