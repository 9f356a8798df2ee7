"""`MemoryR1Middleware` in agents made by create_agent: tools, streams, interrupts, many users."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain.agents.middleware")
from bots import EchoModel, ToolModel
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from memr1_plugin import Memory, MemoryR1Error, Scope
from memr1_plugin.adapters import failures
from memr1_plugin.adapters.langchain import MemoryR1Context, MemoryR1Middleware

ANA = Scope(user="ana")


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def agent(memory: Memory, model: Any = None, **options: Any) -> Any:
    door = {"user_id": "ana", **options.pop("door", {})}
    return create_agent(
        model or EchoModel(seen=[]),
        middleware=[MemoryR1Middleware(memory=memory, **door), *options.pop("more", [])],
        **options,
    )


def ask(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def thread(name: str, **configurable: str) -> Any:
    return {"configurable": {"thread_id": name, **configurable}}


def said(memory: Memory, scope: Scope = ANA) -> list[str]:
    return [turn.text for turn in memory.turns(scope=scope, limit=None)]


async def run(bot: Any, way: str, text: str, config: Any = None) -> None:
    """Run an agent in one of its four ways."""
    if way == "invoke":
        bot.invoke(ask(text), config)
    elif way == "ainvoke":
        await bot.ainvoke(ask(text), config)
    elif way == "stream":
        list(bot.stream(ask(text), config, stream_mode="messages"))
    else:
        [chunk async for chunk in bot.astream(ask(text), config, stream_mode="updates")]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_it_recalls_before_and_records_after(memory: Memory, way: str) -> None:
    """In each way of running, the model sees the memory in the user's message, and the exchange is recorded once."""
    model = EchoModel(seen=[])
    await run(agent(memory, model), way, "My dog is called Rex.")
    await run(agent(memory, model), way, "What is my dog called?")
    [message] = model.seen[-1]
    assert "ana: My dog is called Rex." in str(message.content) and str(message.content).endswith(
        "What is my dog called?"
    )
    assert said(memory)[::2] == ["My dog is called Rex.", "What is my dog called?"]
    assert len(said(memory)) == 4 and not any("recalled_memories" in text for text in said(memory)[::2])


def test_the_saved_messages_are_untouched(memory: Memory) -> None:
    """What the agent returns and what its checkpointer keeps holds no recalled text and no new message."""
    memory.observe("My dog is called Rex.", scope=ANA)
    bot = agent(memory, checkpointer=InMemorySaver())
    result = bot.invoke(ask("What is my dog called?"), thread("t"))
    assert set(result) == {"messages"}
    assert result["messages"][0].content == "What is my dog called?"
    saved = bot.get_state(thread("t")).values["messages"]
    assert [m.type for m in saved] == ["human", "ai"] and saved[0].content == "What is my dog called?"


def test_only_this_runs_exchange_is_recorded(memory: Memory) -> None:
    """In a thread of many turns, each run records its own: old turns in the state are not learned again."""
    bot = agent(memory, checkpointer=InMemorySaver())
    for n in range(4):
        bot.invoke(ask(f"I own {n} cats."), thread("t"))
    assert said(memory)[::2] == [f"I own {n} cats." for n in range(4)]
    bot.invoke({"messages": [HumanMessage("ancient"), AIMessage("history"), HumanMessage("I own a dog.")]}, thread("u"))
    assert "ancient" not in said(memory)


def test_what_the_thread_shows_is_not_repeated(memory: Memory) -> None:
    """A memory of a message that the model sees anyway is left out of the request."""
    model = EchoModel(seen=[])
    bot = agent(memory, model, checkpointer=InMemorySaver())
    bot.invoke(ask("My dog is called Rex."), thread("t"))
    bot.invoke(ask("What is my dog called?"), thread("t"))
    assert "recalled_memories" not in str(model.seen[-1])
    bot.invoke(ask("What is my dog called?"), thread("other"))
    assert "recalled_memories" in str(model.seen[-1])


async def test_an_agent_with_tools_shows_memories_at_each_step_and_skips_tool_traffic(memory: Memory) -> None:
    """Both model calls of the loop see the memory; the journal gets the question and the last words."""
    memory.observe("I live in Graz.", scope=ANA)
    model = ToolModel(tool="weather", arguments={"city": "Graz"}, seen=[])
    bot = agent(memory, model, tools=[weather])
    bot.invoke(ask("How is the weather where I live?"))
    assert [("I live in Graz." in str(messages[0].content)) for messages in model.seen] == [True, True]
    await bot.ainvoke(ask("And now, where I live?"))
    assert said(memory)[1:] == [
        "How is the weather where I live?",
        "sunny in Graz",
        "And now, where I live?",
        "sunny in Graz",
    ]


def test_an_interrupt_and_its_resume_are_one_exchange(memory: Memory) -> None:
    """A run that stops for approval has recorded nothing; resumed, it still sees the memory and records once."""
    memory.observe("I live in Graz.", scope=ANA)
    model = ToolModel(tool="weather", arguments={"city": "Graz"}, seen=[])
    human = HumanInTheLoopMiddleware(interrupt_on={"weather": True})
    bot = agent(memory, model, tools=[weather], checkpointer=InMemorySaver(), more=[human])
    assert "__interrupt__" in bot.invoke(ask("How is the weather where I live?"), thread("t"))
    assert len(said(memory)) == 1
    bot.invoke(Command(resume={"decisions": [{"type": "approve"}]}), thread("t"))
    assert "I live in Graz." in str(model.seen[-1][0].content)
    assert said(memory)[1:] == ["How is the weather where I live?", "sunny in Graz"]
    bot.invoke(None, thread("t"))
    assert len(said(memory)) == 3


def test_context_and_config_say_who_is_talking(memory: Memory) -> None:
    """One agent serves all users: context first, then config; the thread is the session."""
    model = EchoModel(seen=[])
    bot = create_agent(model, middleware=[MemoryR1Middleware(memory=memory)], context_schema=MemoryR1Context)
    bot.invoke(ask("My hint is bluebird."), context=MemoryR1Context(user_id="ben"))
    bot.invoke(ask("My hint is sparrow."), thread("t", user_id="cid"))
    bot.invoke(ask("What is my hint?"), context=MemoryR1Context(user_id="cid", session_id="new"))
    assert "sparrow" in str(model.seen[-1]) and "bluebird" not in str(model.seen[-1])
    turns = memory.turns(scope=Scope(user="cid"))
    assert [turn.session for turn in turns] == ["t", "t", "new", "new"]


def test_without_a_user_threads_are_walls(memory: Memory) -> None:
    """Anonymous threads learn for themselves alone."""
    model = EchoModel(seen=[])
    bot = create_agent(model, middleware=[MemoryR1Middleware(memory=memory)], checkpointer=InMemorySaver())
    bot.invoke(ask("My hint is bluebird."), thread("a"))
    bot.invoke(ask("What is my hint?"), thread("b"))
    assert "bluebird" not in str(model.seen[-1])
    assert said(memory, Scope(session="a"))[0] == "My hint is bluebird."


async def test_twenty_users_at_once(memory: Memory) -> None:
    """Twenty concurrent runs of one agent: every user has their own fact and no other."""
    bot = create_agent(EchoModel(pause_s=0.01), middleware=[MemoryR1Middleware(memory=memory)])
    names = [f"user{n}" for n in range(20)]
    await asyncio.gather(*(bot.ainvoke(ask(f"I am {name}."), thread(name, user_id=name)) for name in names))
    for name in names:
        assert [item.text for item in memory.bank.items(Scope(user=name))] == [f"I am {name}."]


def test_memories_may_go_after_the_system_prompt(memory: Memory) -> None:
    """insert="system" appends to the one system message and leaves the user's words alone."""
    memory.observe("I live in Graz.", scope=ANA)
    model = EchoModel(seen=[])
    agent(memory, model, door={"insert": "system"}, system_prompt="Be kind.").invoke(ask("Where do I live?"))
    system, human = model.seen[-1]
    assert isinstance(system, SystemMessage) and str(system.content).startswith("Be kind.\n\n<recalled_memories")
    assert human.content == "Where do I live?"
    agent(memory, model, door={"insert": "system"}).invoke(ask("Where do I live?"))
    assert str(model.seen[-1][0].content).startswith("<recalled_memories")
    with pytest.raises(ValueError, match="insert"):
        MemoryR1Middleware(memory=memory, insert="assistant")  # type: ignore[arg-type]


def test_blocks_of_content_keep_their_image(memory: Memory) -> None:
    """A message of text and image gets the memories as one more text block."""
    memory.observe("I live in Graz.", scope=ANA)
    model = EchoModel(seen=[])
    content: list[Any] = [
        {"type": "text", "text": "Is this where I live?"},
        {"type": "image_url", "image_url": {"url": "x"}},
    ]
    agent(memory, model).invoke({"messages": [HumanMessage(content)]})
    blocks = model.seen[-1][0].content
    assert "Graz" in blocks[0]["text"] and blocks[1:] == content


def test_a_summary_in_the_users_name_is_not_learned(memory: Memory) -> None:
    """Other middleware may write a summary as a human message; it is no one's word."""
    summary = HumanMessage("Summary: the user owns 9 cats.", additional_kwargs={"lc_source": "summarization"})
    agent(memory).invoke({"messages": [summary, HumanMessage("I own a dog.")]})
    assert [item.text for item in memory.bank.items(ANA)] == ["I own a dog."]


def test_two_of_them_need_two_names(memory: Memory) -> None:
    """LangChain refuses the same middleware twice; it has LangChain's kind of name."""
    assert MemoryR1Middleware(memory=memory).name == "MemoryR1Middleware"
    with pytest.raises(AssertionError, match="duplicate"):
        create_agent(EchoModel(), middleware=[MemoryR1Middleware(memory=memory), MemoryR1Middleware(memory=memory)])


def test_a_failing_memory_leaves_the_agent_running(memory: Memory) -> None:
    """Recall and record fail softly and are counted, or raise where asked to."""
    before = failures()
    bot, strict = agent(memory), agent(memory, door={"on_error": "raise"})
    memory.close()
    assert bot.invoke(ask("Hello you"))["messages"][-1].content == "echo: Hello you"
    after = failures()
    for act in ("recall", "record"):
        assert after[f"langchain.middleware {act}"] == before.get(f"langchain.middleware {act}", 0) + 1
    with pytest.raises(MemoryR1Error, match="closed"):
        strict.invoke(ask("Hello you"))


async def test_async_runs_leave_the_event_loop_free(open_memory: Callable[..., Memory]) -> None:
    """While the Answer Agent thinks, other tasks of the loop go on."""
    from memr1_plugin.testing import ScriptedModel

    def slow(*_: object) -> str:
        time.sleep(0.3)
        return " 1 -> yes"

    memory = open_memory(engine=ScriptedModel(slow))
    memory.observe("I live in Graz.", scope=ANA)
    bot, ticks = agent(memory), 0
    task = asyncio.create_task(bot.ainvoke(ask("Where do I live?")))
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10


async def test_the_memorys_own_model_calls_do_not_leak_into_streams(memory: Memory) -> None:
    """A token stream holds the agent's words alone: memory agents are not LangChain runs."""
    memory.observe("I live in Graz.", scope=ANA)
    chunks = [c async for c, _ in agent(memory).astream(ask("Where do I live?"), stream_mode="messages")]
    assert "".join(str(c.content) for c in chunks if c.type == "AIMessageChunk").startswith("echo: <recalled_memories")


def test_the_agent_may_have_tools_for_its_memory(memory: Memory) -> None:
    """tools=True adds the four tools, for the user whom the run's context names."""
    model = ToolModel(tool="remember", arguments={"text": "Ben is allergic to nuts."}, seen=[])
    door = MemoryR1Middleware(memory=memory, tools=True)
    bot = create_agent(model, middleware=[door], context_schema=MemoryR1Context)
    result = bot.invoke(ask("Please note it."), context=MemoryR1Context(user_id="ben"))
    assert "allergic to nuts" in result["messages"][-1].content
    assert "Ben is allergic to nuts." in [item.text for item in memory.bank.items(Scope(user="ben"))]
