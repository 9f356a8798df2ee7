"""`wrap`: long-term memory for an OpenAI-compatible client object, with nothing else changed.

``chat.completions.create`` and ``.parse`` recall before and record after, streamed or not, sync or async; every
other attribute is the client's own. It imports no client: whatever has ``client.chat.completions.create`` will
do. The dialogue stays the caller's, who sends all of it each time.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from memr1_plugin.adapters._door import Door, OnError, Recall, Write
from memr1_plugin.adapters._said import Address, Said, digest, render_recalled, strip_recalled
from memr1_plugin.types import MemoryItem

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory

C = TypeVar("C")
_METHODS = ("create", "parse")
_COPIES = ("with_options", "copy")
"""Client methods that return another client: that one has the memory too."""


def wrap(
    client: C,
    *,
    memory: Memory | None = None,
    path: str | Path = "memory.db",
    model: str | None = None,
    loras: str | Path | None = None,
    write: Write | None = None,
    user_id: str | None = None,
    agent_id: str | None = None,
    session_id: str | None = None,
    user_name: str | None = None,
    agent_name: str | None = None,
    recall: Recall = "agent",
    k: int | None = None,
    on_error: OnError = "log",
) -> C:
    """Return `client` with a memory: the same type to the eye, one wrapper per user and as cheap as one.

    Without ``user_id``, the ``user`` argument of each call says who is talking, if it is given.

    >>> client = wrap(OpenAI(), path="bot.db", user_id="ana")  # doctest: +SKIP
    """
    ids = {"agent_id": agent_id, "session_id": session_id, "user_name": user_name, "agent_name": agent_name}
    door = Door.open(
        "wrap", Address.of(user_id, **ids), memory=memory, path=path, recall=recall, k=k, on_error=on_error,
        model=model, loras=loras, write=write,
    )  # fmt: skip

    def whose(call_user: str | None) -> Door:
        return door.at(Address.of(call_user, **ids)) if call_user and user_id is None else door

    return cast(C, _Client(client, whose))


class _Proxy:
    """Looks like what it holds, but for the attributes that a subclass answers itself."""

    def __init__(self, held: Any, whose: Callable[..., Door]) -> None:
        self._memr1 = (held, whose)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(wrapped, OpenAI) stays true
        return type(self._memr1[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memr1[0], name)

    def __repr__(self) -> str:
        return repr(self._memr1[0])


class _Client(_Proxy):
    """The client: on the way to its chat completions."""

    def __getattr__(self, name: str) -> Any:
        held, whose = self._memr1
        value = getattr(held, name)
        if name == "chat":
            return _Chat(value, whose)
        if name in _COPIES:
            return lambda *args, **kwargs: _Client(value(*args, **kwargs), whose)
        return value

    def __enter__(self) -> Any:
        self._memr1[0].__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        return self._memr1[0].__exit__(*args)

    async def __aenter__(self) -> Any:
        await self._memr1[0].__aenter__()
        return self

    async def __aexit__(self, *args: Any) -> Any:
        return await self._memr1[0].__aexit__(*args)


class _Chat(_Proxy):
    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return _Completions(value, self._memr1[1]) if name == "completions" else value


class _Completions(_Proxy):
    """Where requests go out: recall before, record after."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name not in _METHODS:
            return value
        return self._async(value) if _is_async(value, self._memr1[0]) else self._sync(value)

    def _sync(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def create(*args: Any, **kwargs: Any) -> Any:
            exchange = _Exchange(self._memr1[1], kwargs)
            with exchange.door.guarded("recall"):
                kwargs |= exchange.shown(exchange.door.recall(exchange.query))
            response = method(*args, **kwargs)
            if kwargs.get("stream"):
                return _Stream(response, exchange)
            exchange.door.record(exchange.said(response))
            return response

        return create

    def _async(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def create(*args: Any, **kwargs: Any) -> Any:
            exchange = _Exchange(self._memr1[1], kwargs)
            with exchange.door.guarded("recall"):
                kwargs |= exchange.shown(await exchange.door.arecall(exchange.query))
            response = await method(*args, **kwargs)
            if kwargs.get("stream"):
                return _AsyncStream(response, exchange)
            await exchange.door.arecord(exchange.said(response))
            return response

        return create


def _is_async(method: Any, completions: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(method)) or type(completions).__name__.startswith("Async")


class _Exchange:
    """One request and what comes back: what to recall for, what to show, what to record."""

    def __init__(self, whose: Callable[[str | None], Door], kwargs: Mapping[str, Any]) -> None:
        user = kwargs.get("user")
        self.door = whose(user if isinstance(user, str) else None)
        self.messages: Sequence[Any] = list(kwargs.get("messages") or ())
        users = [n for n, message in enumerate(self.messages) if _get(message, "role") == "user"]
        self.place = users[-1] if users else None
        self.query = "" if self.place is None else strip_recalled(_text(_get(self.messages[self.place], "content")))

    def shown(self, items: Sequence[MemoryItem]) -> dict[str, Any]:
        """Return the changed arguments: the messages, a copy of the last user message beginning with what was recalled.

        What the caller sends anyway is not repeated.
        """
        told = "\n".join(_text(_get(message, "content")) for message in self.messages)
        block = render_recalled([item for item in items if item.text not in told])
        if not block or self.place is None or not isinstance(self.messages[self.place], Mapping):
            return {}
        message = self.messages[self.place]
        content = message["content"]
        parts = [{"type": "text", "text": block}, *content] if isinstance(content, (list, tuple)) else None
        joined = f"{block}\n\n{content}" if parts is None else parts
        before, after = self.messages[: self.place], self.messages[self.place + 1 :]
        return {"messages": [*before, {**message, "content": joined}, *after]}

    def said(self, response: Any) -> list[Said]:
        """Return what a whole response adds to the journal."""
        choices = _get(response, "choices") or ()
        reply = _text(_get(_get(choices[0], "message"), "content")) if choices else ""
        return self.exchanged(str(_get(response, "id") or ""), reply)

    def exchanged(self, response_id: str, reply: str) -> list[Said]:
        """Return the user's words, once, when they come last in the request (not after tool results), and the reply."""
        key = response_id and digest(response_id, [_text(_get(message, "content")) for message in self.messages])
        asked = self.place is not None and self.place == len(self.messages) - 1
        user = [Said("user", self.query, key=key)] if asked and self.query.strip() else []
        return [*user, *([Said("assistant", reply, key=key)] if reply.strip() else [])]


class _Heard:
    """What a stream said so far. Chunks pass through its generators, which know nothing of the stream's wrapper:
    left in the middle, it is collected at once, and what was said is recorded."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange, self._id, self._parts = exchange, "", list[str]()

    def _take(self, chunk: Any) -> Any:
        self._id = self._id or str(_get(chunk, "id") or "")
        choices = _get(chunk, "choices") or ()
        self._parts += [_text(_get(_get(choices[0], "delta"), "content"))] if choices else []
        return chunk

    def _said(self) -> list[Said]:
        return self._exchange.exchanged(self._id, "".join(self._parts))

    def each(self, stream: Iterable[Any]) -> Iterator[Any]:
        """Pass chunks on; record at the end, or when left."""
        try:
            for chunk in stream:
                yield self._take(chunk)
        finally:
            self._exchange.door.record(self._said())

    async def aeach(self, stream: AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Async twin of `each`."""
        try:
            async for chunk in stream:
                yield self._take(chunk)
        finally:
            await self._exchange.door.arecord(self._said())


class _Stream(_Proxy):
    """A stream that is passed on chunk by chunk; its text is recorded when it ends, is closed or is left."""

    def __init__(self, stream: Any, exchange: _Exchange) -> None:
        super().__init__(stream, exchange.door.at)
        self._chunks = _Heard(exchange).each(stream)

    def __iter__(self) -> Iterator[Any]:
        return self._chunks

    def __next__(self) -> Any:
        return next(self._chunks)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream; what was said so far is recorded."""
        self._chunks.close()  # type: ignore[attr-defined]
        if hasattr(self._memr1[0], "close"):
            self._memr1[0].close()


class _AsyncStream(_Proxy):
    """As `_Stream`, for async clients."""

    def __init__(self, stream: Any, exchange: _Exchange) -> None:
        super().__init__(stream, exchange.door.at)
        self._chunks = _Heard(exchange).aeach(stream)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._chunks

    async def __anext__(self) -> Any:
        return await anext(self._chunks)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the stream; what was said so far is recorded."""
        await self._chunks.aclose()  # type: ignore[attr-defined]
        if hasattr(self._memr1[0], "close"):
            await self._memr1[0].close()


def _get(value: Any, name: str) -> Any:
    """Return a field of a response object or dict; None if it has none."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _text(content: Any) -> str:
    if isinstance(content, (list, tuple)):
        return "\n".join(filter(None, (str(_get(part, "text") or "") for part in content)))
    return content if isinstance(content, str) else ""
