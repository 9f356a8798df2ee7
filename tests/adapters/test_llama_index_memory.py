"""`MemoryR1Memory` in LlamaIndex's chat engines and agents, with models that answer from their prompt."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.core")
from llama_bots import EchoLLM, ReasonLLM, ToolLLM
from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.memory import BaseMemory
from llama_index.core.workflow import Context, JsonSerializer

from memr1_plugin import Memory, MemoryR1Error, Scope
from memr1_plugin.adapters import failures
from memr1_plugin.adapters.llama_index import MemoryR1Memory

ANA = Scope(user="ana")


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def bot(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def door(memory: Memory, **options: Any) -> MemoryR1Memory:
    return MemoryR1Memory(memory=memory, **{"user_id": "ana", **options})


def contents(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def retriever() -> Any:
    return SummaryIndex.from_documents([Document(text="The museum opens at nine.")]).as_retriever()


ENGINES: dict[str, Callable[[MemoryR1Memory], Any]] = {
    "simple": lambda m: SimpleChatEngine.from_defaults(llm=EchoLLM(), memory=m),
    "context": lambda m: ContextChatEngine.from_defaults(retriever=retriever(), llm=EchoLLM(), memory=m),
    "condense": lambda m: CondensePlusContextChatEngine.from_defaults(retriever=retriever(), llm=EchoLLM(), memory=m),
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_every_engine_remembers_in_every_way(memory: Memory, name: str, way: str) -> None:
    """A fact of one session reaches the model in the next; each turn is recorded once, streams included."""

    async def talk(session: str, text: str) -> Any:
        engine = ENGINES[name](door(memory, session_id=session))
        reply = getattr(engine, way)(text)
        reply = await reply if way.startswith("a") else reply
        if way == "stream_chat":
            "".join(reply.response_gen)
        elif way == "astream_chat":
            [token async for token in reply.async_response_gen()]
        return engine

    await talk("one", "My dog is called Rex.")
    engine = await talk("two", "What is my dog called?")
    prompt = "\n".join(str(m.content) for m in (engine._llm)._seen[-1])
    assert "ana: My dog is called Rex." in prompt and "What is my dog called?" in prompt
    for _ in range(100):  # a streamed reply is put by a thread or a task
        if len(memory.turns(scope=ANA)) == 4:
            break
        await asyncio.sleep(0.02)
    turns = memory.turns(scope=ANA)
    assert [t.text for t in turns if t.role == "user"] == ["My dog is called Rex.", "What is my dog called?"]
    assert len(turns) == 4


def test_condense_question_engine(memory: Memory) -> None:
    """The engine that asks before it puts gets the dialogue so far."""
    engine = CondenseQuestionChatEngine.from_defaults(
        SummaryIndex.from_documents([Document(text="x")]).as_query_engine(llm=EchoLLM()),
        llm=EchoLLM(),
        memory=door(memory),
    )
    engine.chat("I live in Graz.")
    engine.chat("And then?")
    assert [t.text for t in memory.turns(scope=ANA) if t.role == "user"] == ["I live in Graz.", "And then?"]


AGENTS: dict[str, Callable[[], Any]] = {
    "function": lambda: FunctionAgent(tools=[weather], llm=ToolLLM()),
    "react": lambda: ReActAgent(tools=[weather], llm=ReasonLLM(), streaming=False),
    "workflow": lambda: AgentWorkflow(agents=[FunctionAgent(name="a", tools=[weather], llm=ToolLLM())]),
}


def model_of(agent: Any) -> EchoLLM:
    llm: EchoLLM = agent.agents["a"].llm if isinstance(agent, AgentWorkflow) else agent.llm
    return llm


@pytest.mark.parametrize("name", AGENTS)
async def test_every_agent_sees_its_memories(memory: Memory, name: str) -> None:
    """FunctionAgent, ReActAgent (which loses system messages) and AgentWorkflow show the memory to their model."""
    memory.observe("I live in Graz.", scope=ANA)
    agent = AGENTS[name]()
    result = await agent.run(user_msg="How is the weather where I live?", memory=door(memory))
    assert str(result).strip() == "sunny in Graz"
    assert "I live in Graz." in "\n".join(str(m.content) for m in model_of(agent)._seen[0])
    turns = memory.turns(scope=ANA)[1:]
    assert turns[0].text == "How is the weather where I live?" and [t.role for t in turns].count("user") == 1
    assert "sunny in Graz" in turns[-1].text
    assert [item.text for item in memory.bank.items(ANA)] == ["I live in Graz."]


async def test_a_code_agent_sees_its_memories(memory: Memory) -> None:
    """CodeActAgent overwrites a system message; the memory stands in the user's and survives."""
    memory.observe("I live in Graz.", scope=ANA)
    agent = CodeActAgent(code_execute_fn=lambda code: code, tools=[weather], llm=EchoLLM())
    await agent.run(user_msg="Where do I live?", memory=door(memory))
    assert "I live in Graz." in "\n".join(str(m.content) for m in model_of(agent)._seen[-1])


async def test_tool_calls_come_back_equal(memory: Memory) -> None:
    """Tool calls (without any text), tool results and images survive the journal."""
    mem = door(memory, session_id="s")
    await FunctionAgent(tools=[weather], llm=ToolLLM()).run(user_msg="How is the weather?", memory=mem)
    messages = await mem.aget_all()
    assert [m.role.value for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert not messages[1].content and "call-" in str(messages[1].model_dump())
    assert messages[2].additional_kwargs["tool_call_id"].startswith("call-")
    picture = ChatMessage(role="user", blocks=[TextBlock(text="Look"), ImageBlock(url="http://x/y.png")])
    mem.put(picture)
    assert door(memory, session_id="s").get_all()[-1] == picture


def test_get_answers_with_the_dialogue_and_the_memories(memory: Memory) -> None:
    """Recent messages in order; the memories in a copy of the newest user message; the pending input is not added."""
    memory.observe("I live in Graz.", scope=ANA)
    mem = door(memory, session_id="s")
    mem.put_messages([user("Hello."), bot("Hi."), user("Where do I live?")])
    got = mem.get()
    assert contents(got)[:2] == ["Hello.", "Hi."]
    assert "I live in Graz." in str(got[-1].content) and str(got[-1].content).endswith("Where do I live?")
    assert contents(mem.get_all()) == ["Hello.", "Hi.", "Where do I live?"]
    fresh = door(memory, session_id="t").get(input="Where do I live?")
    assert len(fresh) == 1 and fresh[0].role == MessageRole.USER and "Graz" in str(fresh[0].content)


def test_returned_messages_are_the_callers(memory: Memory) -> None:
    """An agent that rewrites what it got (as with initial_state) does not rewrite the dialogue."""
    mem = door(memory)
    mem.put(user("Hello."))
    mem.get()[0].blocks[0].text = "Current state: broken"
    assert contents(mem.get()) == ["Hello."]


def test_it_is_never_falsy(memory: Memory) -> None:
    """Engines and agents replace a falsy memory silently; an empty one is still true."""
    mem = door(memory)
    assert mem and isinstance(mem, BaseMemory)
    assert SimpleChatEngine.from_defaults(llm=EchoLLM(), memory=mem)._memory is mem


def test_the_token_limit_holds(memory: Memory) -> None:
    """The newest user message is kept whatever it costs, then memories, then whole older groups; calls keep results."""
    count: Callable[[str], list[str]] = str.split
    memory.observe("I live in Graz.", scope=ANA)
    mem = door(memory, session_id="s", token_limit=40, tokenizer_fn=count)
    for n in range(20):
        mem.put_messages([user(f"message number {n} is quite long"), bot(f"reply number {n}")])
    mem.put(user("Where do I live?"))
    got = mem.get()
    assert sum(len(count(str(m.content))) for m in got) <= 40
    assert got[0].role == MessageRole.USER and "Graz" in str(got[-1].content) and len(got) > 2
    tight = mem.get(initial_token_count=39)
    assert contents(tight) == ["Where do I live?"]


def test_memories_do_not_fill_in_a_template(memory: Memory) -> None:
    """Context engines fill {context_str} wherever it stands; a memory that holds it stays a memory."""
    memory.observe("My favourite variable is {context_str} in {braces}.", scope=ANA)
    engine = ENGINES["context"](door(memory, session_id="s"))
    engine.chat("What is my favourite variable?")
    prompt = "\n".join(str(m.content) for m in engine._llm._seen[-1])
    assert "{ context_str } in {braces}" in prompt


def test_set_is_the_dialogue_and_teaches_nothing_twice(memory: Memory) -> None:
    """A caller that sends the whole history each time makes it the dialogue; only what is new is learned."""
    mem = door(memory, session_id="s")
    mem.set([user("I live in Graz."), bot("Nice.")])
    mem.put_messages([user("I play chess."), bot("Good.")])
    mem.set([user("I live in Graz."), bot("Nice."), user("I play chess."), bot("Good.")])
    assert len(memory.turns(scope=ANA, session="s")) == 4
    mem.set([user("I play chess."), bot("Good.")])
    assert contents(mem.get_all()) == ["I play chess.", "Good."]
    mem.put(user("I sing."))
    mem.set([*mem.get_all(), bot("La.")])
    assert contents(mem.get_all()) == ["I play chess.", "Good.", "I sing.", "La."]
    assert len(memory.bank.items(ANA)) == 3


def test_set_strips_what_get_added(memory: Memory) -> None:
    """A history that was taken from get, memories and all, is recognised as the dialogue it came from."""
    memory.observe("I live in Graz.", scope=ANA)
    mem = door(memory, session_id="s")
    mem.put_messages([user("Where do I live?"), bot("In Graz.")])
    mem.set(mem.get())
    assert contents(mem.get_all()) == ["Where do I live?", "In Graz."]
    assert len(memory.turns(scope=ANA)) == 3


async def test_reset_begins_anew_and_keeps_the_memories(memory: Memory) -> None:
    """reset and areset empty the dialogue; facts stay."""
    mem = door(memory)
    mem.put(user("I live in Graz."))
    mem.reset()
    assert mem.get_all() == []
    await mem.aput(user("Where do I live?"))
    assert "I live in Graz." in str((await mem.aget())[-1].content)
    await mem.areset()
    assert await mem.aget_all() == []


def test_the_same_object_twice_in_a_row_is_one_message(memory: Memory) -> None:
    """A message that is put again right away is the same; a model that reuses its reply object replies twice."""
    mem, reply = door(memory), bot("Yes.")
    for text in ("One.", "Two."):
        message = user(text)
        mem.put(message)
        mem.put(message)
        mem.put(reply)
    assert contents(mem.get_all()) == ["One.", "Yes.", "Two.", "Yes."]


def test_users_and_sessions(memory: Memory) -> None:
    """Users never meet; a user's sessions share facts and not messages; nameless sessions are walls."""
    door(memory, session_id="a").put(user("I live in Graz."))
    assert "Graz" in str(door(memory, session_id="b").get(input="Where do I live?")[0].content)
    assert door(memory, user_id="ben", session_id="a").get(input="Where do I live?") == []
    MemoryR1Memory(memory=memory, session_id="x").put(user("I live in Porto."))
    assert MemoryR1Memory(memory=memory, session_id="y").get(input="Where do I live?") == []


async def test_parallel_puts_lose_nothing(memory: Memory) -> None:
    """Twenty tasks and twenty threads put at once into a cold memory: all forty messages are there."""
    mem = door(memory)
    await asyncio.gather(*(mem.aput(user(f"Task {n} was here.")) for n in range(20)))
    threads = [threading.Thread(target=mem.put, args=(user(f"Thread {n} was here."),)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(contents(mem.get_all()))) == 40


def test_the_answer_agent_is_asked_once_per_question(memory: Memory) -> None:
    """An agent asks for its memory at every step; the model selects once, until the memories change."""
    memory.observe("I live in Graz.", scope=ANA)
    mem = door(memory, session_id="s")
    mem.put(user("Where do I live?"))
    calls = len(memory.engine.calls)  # type: ignore[attr-defined]
    for _ in range(4):
        assert "Graz" in str(mem.get()[-1].content)
    assert len(memory.engine.calls) == calls + 1  # type: ignore[attr-defined]
    [item] = memory.bank.items(ANA)
    memory.correct(item.id, "I live in Porto.", scope=ANA)
    assert "Porto" in str(mem.get()[-1].content) and "Graz" not in str(mem.get()[-1].content)


def test_serialisation_round_trips(memory: Memory) -> None:
    """to_dict, to_json, pickle and deepcopy give a memory of the same user on the same bank; no messages inside."""
    mem = door(memory, session_id="s", token_limit=1000, insert="user")
    mem.put(user("I live in Graz."))
    data = json.loads(mem.to_json())
    assert data["class_name"] == "MemoryR1Memory" and "Graz" not in str(data) and data["path"].endswith("bot.db")
    copies = [copy.deepcopy(mem), pickle.loads(pickle.dumps(mem)), mem.model_copy()]
    for again in copies:
        assert contents(again.get_all()) == ["I live in Graz."] and again.token_limit == 1000
    assert mem.to_dict()["user_id"] == "ana"


async def test_a_context_with_its_memory_can_be_saved_and_restored(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Context.to_dict keeps the memory (the framework's own vanish), and the restored one knows the dialogue."""
    monkeypatch.setattr(Memory, "shared", classmethod(lambda cls, path, **options: memory))
    agent = FunctionAgent(tools=[weather], llm=ToolLLM())
    context = Context(agent)
    await agent.run(user_msg="How is the weather?", memory=door(memory), ctx=context)
    saved = json.loads(json.dumps(context.to_dict(JsonSerializer())))
    restored = Context.from_dict(agent, saved, JsonSerializer())
    await agent.run(user_msg="And now?", ctx=restored)
    assert [t.text for t in memory.turns(scope=ANA) if t.role == "user"] == ["How is the weather?", "And now?"]


def test_spans_are_recorded(memory: Memory) -> None:
    """LlamaIndex's instrumentation sees get and put as spans."""
    handler = SimpleSpanHandler()
    root = get_dispatcher()
    root.add_span_handler(handler)
    try:
        mem = door(memory)
        mem.put(user("Hello."))
        mem.get()
    finally:
        root.span_handlers.remove(handler)
    names = {span.id_.split("-")[0] for span in handler.completed_spans}
    assert {"MemoryR1Memory.put", "MemoryR1Memory.get"} <= names


def test_a_failing_memory_leaves_the_engine_running(memory: Memory) -> None:
    """The engine goes on without its memory, counted; on_error="raise" raises."""
    before = failures().get("llama_index.memory record", 0)
    soft, hard = door(memory), door(memory, on_error="raise")
    memory.close()
    assert SimpleChatEngine.from_defaults(llm=EchoLLM(), memory=soft).chat("Hello.").response == "echo: "
    assert failures()["llama_index.memory record"] > before
    with pytest.raises(MemoryR1Error, match="closed"):
        hard.put(user("Hello."))


async def test_async_gets_leave_the_event_loop_free(open_memory: Callable[..., Memory]) -> None:
    """While the Answer Agent thinks, other tasks of the loop go on."""
    from memr1_plugin.testing import ScriptedModel

    def slow(*_: object) -> str:
        time.sleep(0.3)
        return " 1 -> yes"

    memory = open_memory(engine=ScriptedModel(slow))
    memory.observe("I live in Graz.", scope=ANA)
    task, ticks = asyncio.create_task(door(memory).aget(input="Where do I live?")), 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10


def test_from_defaults_follows_the_model(memory: Memory) -> None:
    """from_defaults takes three quarters of the model's context and the history it is given."""
    mem = MemoryR1Memory.from_defaults([user("Hello.")], EchoLLM(), memory=memory, user_id="ana")
    assert mem.token_limit == 3000 and contents(mem.get_all()) == ["Hello."]


def test_a_dialogue_told_through_langchain_is_read_here(memory: Memory) -> None:
    """One memory behind all doors: LangChain's turns of the session are messages here, tool traffic left out."""
    langchain = pytest.importorskip("memr1_plugin.adapters.langchain")
    messages = pytest.importorskip("langchain_core.messages")
    history = langchain.MemoryR1ChatHistory("s", user_id="ana", memory=memory)
    call = {"name": "look", "args": {}, "id": "c1"}
    history.add_messages([messages.HumanMessage("I live in Graz."), messages.AIMessage("", tool_calls=[call])])
    history.add_messages([messages.ToolMessage("x", tool_call_id="c1"), messages.AIMessage("Nice.")])
    assert contents(door(memory, session_id="s").get_all()) == ["I live in Graz.", "Nice."]
    door(memory, session_id="s").put(user("I play chess."))
    assert history.messages[-1].content == "I play chess."
