"""`MemoryR1ChatHistory` behind RunnableWithMessageHistory, with `recall_runnable` in the prompt."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

pytest.importorskip("langchain_core")
from bots import EchoModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters import failures
from memr1_plugin.adapters.langchain import MemoryR1ChatHistory, recall_runnable


def texts(history: MemoryR1ChatHistory) -> list[str]:
    return [str(message.content) for message in history.messages]


def bot(memory: Memory, model: Any = None) -> Runnable[Any, Any]:
    """A chain with both: the session's messages, and the user's memories in the prompt."""
    prompt = ChatPromptTemplate([("system", "{memories}"), MessagesPlaceholder("history"), ("human", "{input}")])
    recalled = RunnablePassthrough.assign(memories=recall_runnable(memory=memory, user_id="ana"))
    return RunnableWithMessageHistory(
        recalled | prompt | (model or EchoModel()),
        lambda session_id: MemoryR1ChatHistory(session_id, user_id="ana", memory=memory),
        input_messages_key="input",
        history_messages_key="history",
    )


def session(name: str) -> Any:
    return {"configurable": {"session_id": name}}


ODD: list[BaseMessage] = [
    SystemMessage("Be kind."),
    HumanMessage([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:x"}}]),
    HumanMessage([{"type": "image_url", "image_url": {"url": "data:only"}}]),
    AIMessage("", tool_calls=[{"name": "look", "args": {"at": "it"}, "id": "c1", "type": "tool_call"}]),
    ToolMessage("a cat", tool_call_id="c1", name="look"),
    AIMessage("  A cat.  ", id="run-1", response_metadata={"model": "m"}),
    HumanMessage("named", name="Ana", additional_kwargs={"x": [1, None]}),
    ChatMessage("as is", role="narrator"),
]


def test_every_message_comes_back_equal(memory: Memory) -> None:
    """Tool calls, images, system messages, names, ids and white space survive the journal, in order."""
    MemoryR1ChatHistory("s", memory=memory).add_messages(ODD)
    assert MemoryR1ChatHistory("s", memory=memory).messages == ODD


def test_a_message_that_no_database_can_hold_is_kept_as_far_as_it_can(memory: Memory) -> None:
    """A lone surrogate, a NaN and an object in a message's extras lose themselves and not the message."""
    history = MemoryR1ChatHistory("s", memory=memory, on_error="raise")
    history.add_message(HumanMessage("odd \ud800 one", id="1", additional_kwargs={"nan": float("nan"), "o": object}))
    [message] = history.messages
    assert message.content == "odd ? one" and message.additional_kwargs["nan"] is None


def test_only_what_users_say_becomes_memory(memory: Memory) -> None:
    """Of a dialogue with tools and images, no placeholder and no tool output is learned."""
    MemoryR1ChatHistory("s", memory=memory).add_messages([*ODD, HumanMessage("I live in Graz.")])
    learned = [item.text for item in memory.bank.items(Scope(session="s"))]
    assert "I live in Graz." in learned and not {"(no text)", "a cat", "A cat."} & set(learned)


async def test_every_way_of_running_keeps_the_history(memory: Memory) -> None:
    """invoke, ainvoke, stream and astream store two messages each, whole and not as chunks."""
    chain = bot(memory)
    chain.invoke({"input": "I moved to Graz"}, session("s"))
    await chain.ainvoke({"input": "I play chess"}, session("s"))
    list(chain.stream({"input": "I like tea"}, session("s")))
    [chunk async for chunk in chain.astream({"input": "I sing"}, session("s"))]
    history = MemoryR1ChatHistory("s", user_id="ana", memory=memory)
    assert [m.type for m in history.messages] == ["human", "ai"] * 4
    assert not any(isinstance(message, AIMessageChunk) for message in history.messages)
    assert texts(history)[-1] == "echo: I sing"


def test_without_keys_the_human_turn_is_not_dropped(memory: Memory) -> None:
    """The framework cuts the history's length off the input: it must be the same at both looks, and it is."""
    chain = RunnableWithMessageHistory(EchoModel(), lambda session_id: MemoryR1ChatHistory(session_id, memory=memory))
    for n in range(3):
        chain.invoke([HumanMessage(f"I own {n} cats")], session("s"))
    assert texts(MemoryR1ChatHistory("s", memory=memory))[::2] == ["I own 0 cats", "I own 1 cats", "I own 2 cats"]


def test_memories_reach_the_prompt_of_another_session(memory: Memory) -> None:
    """The second session's messages start empty, yet its prompt holds what the user said in the first."""
    model = EchoModel(seen=[])
    chain = bot(memory, model)
    chain.invoke({"input": "My dog is called Rex."}, session("one"))
    chain.invoke({"input": "What is my dog called?"}, session("two"))
    system, *rest = model.seen[-1]
    assert "My dog is called Rex." in str(system.content) and len(rest) == 1


def test_recall_asks_the_runs_config_who_is_talking(memory: Memory) -> None:
    """One runnable serves many users: ids in "configurable" win over its own; without any memory, it is ""."""
    memory.observe("I live in Graz.", scope=Scope(user="ben"))
    recall = recall_runnable(memory=memory, user_id="ana")
    assert recall.invoke("Where do I live?") == ""
    assert "Graz" in recall.invoke("Where do I live?", {"configurable": {"user_id": "ben"}})
    assert "Graz" in recall.invoke({"input": [HumanMessage("Where do I live?")]}, {"configurable": {"user_id": "ben"}})


def test_a_history_made_anew_is_the_same_history(memory: Memory) -> None:
    """State is shared by id: each call of the factory may make a new object."""
    MemoryR1ChatHistory("s", memory=memory).add_user_message("Hello you")
    again = MemoryR1ChatHistory("s", memory=memory)
    again.add_ai_message("Hello Ana")
    assert texts(MemoryR1ChatHistory("s", memory=memory)) == ["Hello you", "Hello Ana"]
    assert str(again) == "Human: Hello you\nAI: Hello Ana"
    assert texts(pickle.loads(pickle.dumps(again))) == ["Hello you", "Hello Ana"]


def test_sessions_are_walls(memory: Memory) -> None:
    """Neither messages nor memories of one anonymous session are in another, whatever its name holds."""
    for name in ("a", "A", "a%", "../a", "ä", "a\x1fdialogue"):
        history = MemoryR1ChatHistory(name, memory=memory)
        history.add_user_message(f"secret of {name!r}")
        assert texts(history) == [f"secret of {name!r}"]


def test_a_delivery_is_recorded_once(memory: Memory) -> None:
    """The same objects again, or the same ids again, are the same delivery; equal words later are not."""
    history = MemoryR1ChatHistory("s", memory=memory)
    plain = [HumanMessage("yes"), AIMessage("fine")]
    history.add_messages(plain)
    history.add_messages(plain)
    history.add_messages([HumanMessage("yes"), AIMessage("fine")])
    with_ids = [HumanMessage("no", id="h1"), AIMessage("why", id="a1")]
    history.add_messages(with_ids)
    MemoryR1ChatHistory("s", memory=memory).add_messages([message.model_copy() for message in with_ids])
    assert texts(history) == ["yes", "fine", "yes", "fine", "no", "why"]


def test_one_yes_after_another_is_two(memory: Memory) -> None:
    """A user who says the same word twice in a row said it twice."""
    history = MemoryR1ChatHistory("s", memory=memory)
    history.add_user_message("yes")
    history.add_user_message("yes")
    assert texts(history) == ["yes", "yes"]


async def test_clear_and_aclear_begin_anew(memory: Memory) -> None:
    """Cleared messages are out of the history; memories of the user stay."""
    history = MemoryR1ChatHistory("s", user_id="ana", memory=memory)
    history.add_user_message("I live in Graz.")
    history.clear()
    assert history.messages == []
    await history.aadd_messages([HumanMessage("I sing.")])
    assert [m.content for m in await history.aget_messages()] == ["I sing."]
    await history.aclear()
    assert texts(history) == [] and len(memory.bank.items(Scope(user="ana"))) == 2


def test_trimmed_messages_can_be_assigned(memory: Memory) -> None:
    """Code that trims a history assigns the rest; nothing of it is learned again, and talk goes on from there."""
    history = MemoryR1ChatHistory("s", memory=memory)
    history.add_messages([HumanMessage("I own a cat"), AIMessage("ok"), HumanMessage("I own a dog"), AIMessage("ok")])
    history.messages = trim_messages(history.messages, max_tokens=2, token_counter=len, start_on="human")
    assert texts(history) == ["I own a dog", "ok"]
    history.add_user_message("I own a fish")
    assert texts(history) == ["I own a dog", "ok", "I own a fish"]
    assert len(memory.turns(scope=Scope(session="s"), session="s", limit=None)) == 5


async def test_twenty_sessions_at_once(memory: Memory) -> None:
    """Twenty concurrent runs in twenty sessions: each holds its own two messages."""
    chain = bot(memory)
    await asyncio.gather(*(chain.ainvoke({"input": f"I am number {n}"}, session(f"s{n}")) for n in range(20)))
    for n in range(20):
        history = MemoryR1ChatHistory(f"s{n}", user_id="ana", memory=memory)
        assert texts(history) == [f"I am number {n}", f"echo: I am number {n}"]


def test_a_failing_memory_does_not_break_the_run(memory: Memory) -> None:
    """Reading gives no messages and writing none, both counted; the model's reply comes through."""
    before = failures().get("langchain.history read", 0)
    chain = RunnableWithMessageHistory(EchoModel(), lambda session_id: MemoryR1ChatHistory(session_id, memory=memory))
    memory.close()
    assert chain.invoke([HumanMessage("Hello you")], session("s")).content == "echo: Hello you"
    assert failures()["langchain.history read"] > before
