"""`MemoryR1Memory`: long-term memory for LlamaIndex's chat engines and agents.

It sees every message, keeps the dialogue in the bank's journal, and gives back the newest messages with the
memories selected for the question, within a token limit. It wraps none of LlamaIndex's own memories: their
default store loses messages under concurrency. The interface is LlamaIndex's `BaseMemory`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PrivateAttr

from memr1_plugin.adapters._door import Dialogue, Selections
from memr1_plugin.adapters._fields import DoorFields
from memr1_plugin.adapters._listener import Listener
from memr1_plugin.adapters._said import render_recalled
from memr1_plugin.adapters.llama_index._messages import (
    add_recalled,
    inert,
    messages_of,
    said_of,
    words,
)
from memr1_plugin.adapters.llama_index.events import DispatcherEvents
from memr1_plugin.errors import MissingExtraError
from memr1_plugin.types import MemoryItem, new_id

try:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.memory.types import BaseMemory
    from llama_index.core.utils import get_tokenizer
except ImportError as error:
    raise MissingExtraError.of("llama-index-core", "llama-index") from error

dispatcher = get_dispatcher(__name__)

_WINDOW = 400
"""Newest turns that are looked at; more than any token limit of a small model holds."""
_NO_TEXT_TOKENS = 256
"""What an image or a file counts, as LlamaIndex estimates it."""


class MemoryR1Memory(DoorFields, BaseMemory):
    """A drop-in ``memory=`` for SimpleChatEngine, context engines, FunctionAgent, ReActAgent and AgentWorkflow.

    >>> SimpleChatEngine.from_defaults(llm=llm, memory=MemoryR1Memory(path="bot.db", user_id="ana"))  # doctest: +SKIP
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    door_name: ClassVar[str] = "llama_index.memory"

    token_limit: int = Field(default=3000, gt=0)
    """Tokens that `get` may fill. The newest user message is kept even where it alone is longer."""
    insert: Literal["user", "system"] = "user"
    """Where memories are shown: at the head of (a copy of) the newest user message, or as a system message.
    ReActAgent and CodeActAgent lose the latter."""
    tokenizer_fn: Callable[[str], Sequence[Any]] = Field(default_factory=get_tokenizer, exclude=True, repr=False)

    _selections: Selections = PrivateAttr(default_factory=OrderedDict)
    _last: tuple[Any, str] = PrivateAttr(default=(None, ""))

    @property
    def _listener(self) -> Listener:
        return DispatcherEvents()

    @classmethod
    def class_name(cls) -> str:
        """The name that serialised components carry."""
        return "MemoryR1Memory"

    @classmethod
    def from_defaults(
        cls, chat_history: list[ChatMessage] | None = None, llm: Any | None = None, **kwargs: Any
    ) -> MemoryR1Memory:
        """Make a memory; with `llm`, three quarters of its context are the token limit."""
        if llm is not None and "token_limit" not in kwargs:
            kwargs["token_limit"] = int(llm.metadata.context_window * 0.75)
        memory = cls(**kwargs)
        if chat_history is not None:
            memory.set(chat_history)
        return memory

    # -- reading

    @dispatcher.span
    def get(self, input: str | ChatMessage | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Return the newest messages and the memories for `input`, or for the newest user message.

        `input` itself is not among the messages: it is pending, and the engine puts it.
        """
        dialogue = self.door.dialogue(_WINDOW)
        query = _query(input, dialogue)
        return self._fit(dialogue, self.door.recall(query, dialogue.turns, self._selections), kwargs)

    @dispatcher.span
    async def aget(self, input: str | ChatMessage | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Async twin of `get`."""
        dialogue = await self.door.adialogue(_WINDOW)
        query = _query(input, dialogue)
        return self._fit(dialogue, await self.door.arecall(query, dialogue.turns, self._selections), kwargs)

    def get_all(self) -> list[ChatMessage]:
        """Return the whole dialogue, without memories."""
        return messages_of(self.door.dialogue().turns)

    async def aget_all(self) -> list[ChatMessage]:
        """Async twin of `get_all`."""
        return messages_of((await self.door.adialogue()).turns)

    def _fit(self, dialogue: Dialogue, items: Sequence[MemoryItem], kwargs: dict[str, Any]) -> list[ChatMessage]:
        """Fill the token limit: the newest user message first, then the memories, then older messages."""
        left = self.token_limit - int(kwargs.get("initial_token_count") or 0)
        groups = _groups(messages_of(dialogue.turns))
        newest = groups[-1:] if groups and (len(groups[-1]) == 1 or self._count(groups[-1]) <= left) else []
        left -= sum(map(self._count, newest))
        block = self._block(items, left)
        left -= len(self.tokenizer_fn(block)) if block else 0
        kept = newest
        for group in reversed(groups[: len(groups) - 1] if newest else []):
            left -= self._count(group)
            if left < 0:
                break
            kept = [group, *kept]
        return self._with_block([message for group in kept for message in group], block)

    def _block(self, items: Sequence[MemoryItem], left: int) -> str:
        for n in range(len(items), 0, -1):
            block = inert(render_recalled(items[:n]))
            if len(self.tokenizer_fn(block)) <= left:
                return block
        return ""

    def _with_block(self, messages: list[ChatMessage], block: str) -> list[ChatMessage]:
        if not block:
            return messages
        users = [n for n, message in enumerate(messages) if message.role == MessageRole.USER]
        if self.insert == "system" or not users:
            role = MessageRole.SYSTEM if self.insert == "system" else MessageRole.USER
            return [ChatMessage(role=role, content=block), *messages]
        messages[users[-1]] = add_recalled(messages[users[-1]], block)
        return messages

    def _count(self, messages: Sequence[ChatMessage]) -> int:
        return sum(len(self.tokenizer_fn(_all_text(message))) + _other(message) for message in messages)

    # -- writing

    @dispatcher.span
    def put(self, message: ChatMessage) -> None:
        """Record one message: what a user said is learned, everything stays in the dialogue."""
        self.door.record([said_of(message, self._key(message))])

    @dispatcher.span
    async def aput(self, message: ChatMessage) -> None:
        """Async twin of `put`."""
        await self.door.arecord([said_of(message, self._key(message))])

    @dispatcher.span
    def put_messages(self, messages: list[ChatMessage]) -> None:
        """Record messages in one transaction."""
        self.door.record([said_of(message, self._key(message)) for message in messages])

    @dispatcher.span
    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """Async twin of `put_messages`."""
        await self.door.arecord([said_of(message, self._key(message)) for message in messages])

    def _key(self, message: ChatMessage) -> str:
        """The very same object put twice in a row is one message; equal words later are another."""
        last, key = self._last
        if last is not message:
            key = new_id()
            self._last = (message, key)
        return key

    @dispatcher.span
    def set(self, messages: list[ChatMessage]) -> None:
        """Make `messages` the dialogue. Those that the session knows are recognised, not learned again."""
        self.door.rewrite([said_of(message) for message in messages])

    @dispatcher.span
    async def aset(self, messages: list[ChatMessage]) -> None:
        """Async twin of `set`."""
        await self.door.arewrite([said_of(message) for message in messages])

    @dispatcher.span
    def reset(self) -> None:
        """Begin the dialogue anew; the memories stay (``Memory.forget`` erases)."""
        self.door.clear()

    @dispatcher.span
    async def areset(self) -> None:
        """Async twin of `reset`."""
        await self.door.aclear()

    # -- serialisation

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what `from_dict` reopens the memory from: whose it is and where, no message and no secret."""
        return {**super().to_dict(**kwargs), "path": str(self.path), "loras": self.loras and str(self.loras)}

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        private = {**(state.get("__pydantic_private__") or {}), "_last": (None, ""), "_selections": OrderedDict()}
        return {**state, "__pydantic_private__": private}


def _query(given: str | ChatMessage | None, dialogue: Dialogue) -> str:
    if given:
        return given if isinstance(given, str) else words(given)
    return next((turn.text for turn in reversed(dialogue.turns) if turn.role == "user"), "")


def _groups(messages: Sequence[ChatMessage]) -> list[list[ChatMessage]]:
    """Split a dialogue before each user message: a group is kept whole, so no tool call loses its result."""
    groups: list[list[ChatMessage]] = []
    for message in messages:
        if message.role == MessageRole.USER or not groups:
            groups.append([])
        groups[-1].append(message)
    return groups


def _all_text(message: ChatMessage) -> str:
    extra = str(message.additional_kwargs) if message.additional_kwargs else ""
    return f"{message.content or ''}{extra}"


def _other(message: ChatMessage) -> int:
    return _NO_TEXT_TOKENS * sum(getattr(b, "block_type", "text") not in ("text", "tool_call") for b in message.blocks)
