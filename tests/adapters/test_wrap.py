"""`wrap` around the real OpenAI client, whose server is a function."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("openai")

try:
    import httpx2 as httpx
except ImportError:  # openai before 3
    import httpx
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from memr1_plugin import Memory, MemoryR1Error, Scope
from memr1_plugin.adapters import failures
from memr1_plugin.adapters.wrap import wrap

ANA = Scope(user="ana")


class Server:
    """An OpenAI-compatible server that computes: it echoes the last message, or calls a tool once."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"object": "list", "data": []})
        body = json.loads(request.content)
        self.seen.append(body)
        last = body["messages"][-1]
        words = last["content"] if isinstance(last["content"], str) else last["content"][-1]["text"]
        message: dict[str, Any] = {"role": "assistant", "content": f"echo: {words}"}
        if body.get("response_format"):
            message["content"] = json.dumps({"city": "Graz"})
        if body.get("tools") and last["role"] == "user":
            call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": 1, "model": "m"}
        if body.get("stream"):
            return httpx.Response(
                200, headers={"content-type": "text/event-stream"}, content=self._stream(head, message)
            )
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx.Response(200, json={**head, "object": "chat.completion", "choices": [choice]})

    @staticmethod
    def _stream(head: dict[str, Any], message: dict[str, Any]) -> bytes:
        chunks = [
            {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}
            for word in message["content"].partition(" ")
        ]
        return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(
        api_key="x", base_url="http://test/v1", http_client=httpx.Client(transport=httpx.MockTransport(server))
    ) as made:
        yield made


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    http = httpx.AsyncClient(transport=httpx.MockTransport(server))
    async with AsyncOpenAI(api_key="x", base_url="http://test/v1", http_client=http) as made:
        yield made


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def said(memory: Memory, scope: Scope = ANA) -> list[str]:
    return [turn.text for turn in memory.turns(scope=scope, limit=None)]


def test_it_recalls_before_and_records_after(memory: Memory, client: OpenAI, server: Server) -> None:
    """The request's last user message begins with the memories; the caller's messages stay as they are."""
    bot = wrap(client, memory=memory, user_id="ana")
    bot.chat.completions.create(**ask("My dog is called Rex."))
    request = ask("What is my dog called?")
    reply = bot.chat.completions.create(**request)
    assert reply.choices[0].message.content is not None
    [message] = server.seen[-1]["messages"]
    assert "ana: My dog is called Rex." in message["content"] and message["content"].endswith("What is my dog called?")
    assert request == ask("What is my dog called?")
    assert said(memory)[::2] == ["My dog is called Rex.", "What is my dog called?"]
    assert "recalled_memories" not in "".join(said(memory)[::2])


def test_everything_else_is_the_client(memory: Memory, client: OpenAI, server: Server) -> None:
    """Type, attributes, other endpoints and derived clients are the client's own; derived ones have the memory too."""
    bot = wrap(client, memory=memory, user_id="ana")
    assert isinstance(bot, OpenAI) and bot.base_url == client.base_url and repr(bot) == repr(client)
    assert bot.models.list().data == []
    bot.with_options(timeout=3).chat.completions.create(**ask("I live in Graz."))
    assert said(memory)[0] == "I live in Graz."
    raw = bot.chat.completions.with_raw_response.create(**ask("I am raw."))
    assert raw.status_code == 200 and len(said(memory)) == 2


def test_a_stream_is_passed_on_and_recorded_at_its_end(memory: Memory, client: OpenAI) -> None:
    """Chunks arrive as they are; the exchange is recorded when the stream ends, is closed, or is left."""
    bot = wrap(client, memory=memory, user_id="ana")
    chunks = list(bot.chat.completions.create(**ask("I live in Graz.", stream=True)))
    assert "".join(str(c.choices[0].delta.content) for c in chunks) == "echo: I live in Graz."
    assert said(memory) == ["I live in Graz.", "echo: I live in Graz."]
    for _ in bot.chat.completions.create(**ask("I play chess.", stream=True)):
        break
    assert said(memory)[2:] == ["I play chess.", "echo:"]
    with bot.chat.completions.create(**ask("I sing.", stream=True)) as stream:
        next(stream)
    assert said(memory)[4] == "I sing."


async def test_the_async_client_works_the_same(memory: Memory, async_client: AsyncOpenAI) -> None:
    """create is awaited, streams are iterated asynchronously, and twenty calls at once keep to their users."""
    bot = wrap(async_client, memory=memory, user_id="ana")
    await bot.chat.completions.create(**ask("I live in Graz."))
    stream = await bot.chat.completions.create(**ask("I play chess.", stream=True))
    assert "".join([str(c.choices[0].delta.content) async for c in stream]) == "echo: I play chess."
    assert said(memory)[::2] == ["I live in Graz.", "I play chess."]
    bots = [wrap(async_client, memory=memory, user_id=f"user{n}") for n in range(20)]
    await asyncio.gather(*(b.chat.completions.create(**ask(f"I am number {n}.")) for n, b in enumerate(bots)))
    for n in range(20):
        assert [i.text for i in memory.bank.items(Scope(user=f"user{n}"))] == [f"I am number {n}."]


def test_a_tool_loop_is_one_exchange(memory: Memory, client: OpenAI) -> None:
    """The user's words are recorded when they come last, the reply when there is one; tool traffic never."""
    bot = wrap(client, memory=memory, user_id="ana")
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    messages: list[Any] = [{"role": "user", "content": "What do you see in Graz?"}]
    first = bot.chat.completions.create(model="m", messages=messages, tools=tools).choices[0].message
    messages += [first, {"role": "tool", "tool_call_id": "c1", "content": "a cat"}]
    bot.chat.completions.create(model="m", messages=messages, tools=tools)
    assert said(memory) == ["What do you see in Graz?", "echo: a cat"]


def test_parse_is_covered_too(memory: Memory, client: OpenAI, server: Server) -> None:
    """Structured output recalls and records like any other."""

    class Place(BaseModel):
        city: str

    memory.observe("I live in Graz.", scope=ANA)
    reply = wrap(client, memory=memory, user_id="ana").chat.completions.parse(
        **ask("Where do I live?"), response_format=Place
    )
    assert reply.choices[0].message.parsed == Place(city="Graz")
    assert "I live in Graz." in server.seen[-1]["messages"][0]["content"]
    assert said(memory)[1] == "Where do I live?"


def test_what_the_caller_sends_is_not_repeated(memory: Memory, client: OpenAI, server: Server) -> None:
    """A memory whose words are among the messages anyway is left out; parts of content are kept."""
    bot = wrap(client, memory=memory, user_id="ana")
    memory.observe("I live in Graz.", scope=ANA)
    parts = [{"type": "text", "text": "Where do I live?"}]
    history = [{"role": "user", "content": "I live in Graz."}, {"role": "assistant", "content": "Ok"}]
    bot.chat.completions.create(model="m", messages=[*history, {"role": "user", "content": parts}])  # type: ignore[list-item]
    assert server.seen[-1]["messages"][-1]["content"] == parts
    bot.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])  # type: ignore[list-item]
    assert "Graz" in server.seen[-1]["messages"][-1]["content"][0]["text"]
    assert server.seen[-1]["messages"][-1]["content"][1:] == parts


def test_users_never_meet(memory: Memory, client: OpenAI, server: Server) -> None:
    """One wrapper per user, or the call's own ``user`` where the wrapper has none."""
    bot = wrap(client, memory=memory)
    bot.chat.completions.create(**ask("My hint is bluebird.", user="ana"))
    bot.chat.completions.create(**ask("What is my hint?", user="ben"))
    assert "bluebird" not in str(server.seen[-1])
    wrap(client, memory=memory, user_id="ana").chat.completions.create(**ask("What is my hint?"))
    assert "bluebird" in str(server.seen[-1])


def test_a_failing_memory_does_not_cost_the_reply(memory: Memory, client: OpenAI) -> None:
    """The request goes out as it was; the failure is counted, or raised where asked to."""
    before = failures().get("wrap record", 0)
    soft, hard = (
        wrap(client, memory=memory, user_id="ana"),
        wrap(client, memory=memory, user_id="ana", on_error="raise"),
    )
    memory.close()
    assert soft.chat.completions.create(**ask("Hello.")).choices[0].message.content == "echo: Hello."
    assert failures()["wrap record"] == before + 1
    with pytest.raises(MemoryR1Error, match="closed"):
        hard.chat.completions.create(**ask("Hello."))


def test_any_client_of_that_shape_will_do(memory: Memory) -> None:
    """No openai needed: an object with chat.completions.create that answers with dicts is a client."""

    class Completions:
        def create(self, **kwargs: Any) -> dict[str, Any]:
            return {"id": "1", "choices": [{"message": {"content": kwargs["messages"][-1]["content"].upper()}}]}

    class Client:
        class chat:  # noqa: N801
            completions = Completions()

    bot = wrap(Client(), memory=memory, user_id="ana")
    assert bot.chat.completions.create(messages=[{"role": "user", "content": "I live in Graz."}])["id"] == "1"
    assert said(memory) == ["I live in Graz.", "I LIVE IN GRAZ."]
