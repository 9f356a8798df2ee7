"""`MemoryR1Memory`: long-term memory for LangChain's classic chains and agents.

What it gives a prompt is the dialogue's recent turns and, before them, the memories that the Answer Agent
selected for this input, delimited as data. It is no chat history (`history`) and no middleware
(`middleware`): those belong to other parts of LangChain. The interface is LangChain's `BaseMemory`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, PrivateAttr

from memr1_plugin.adapters._fields import DoorFields
from memr1_plugin.adapters._listener import Listener
from memr1_plugin.adapters._said import Said, digest, render_recalled
from memr1_plugin.adapters.langchain._events import HandlerEvents
from memr1_plugin.adapters.langchain._messages import content_text, messages_of, recalled_message
from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.types import MemoryItem, Turn

try:
    from langchain_classic.base_memory import BaseMemory
except ImportError:
    try:  # langchain 0.3 and older; the two cannot be installed side by side
        from langchain_core.memory import BaseMemory  # type: ignore[import-not-found, no-redef]
    except ImportError as error:
        raise MissingExtraError.of("langchain-classic", "langchain") from error

_LOADS = 64
"""How many inputs are remembered between `load_memory_variables` and `save_context`."""
_places = threading.Lock()  # one for all memories: a lock of its own would keep a memory from being copied


class MemoryR1Memory(DoorFields, BaseMemory):
    """A drop-in ``memory=`` for ConversationChain, LLMChain, ConversationalRetrievalChain and AgentExecutor.

    >>> ConversationChain(llm=llm, memory=MemoryR1Memory(path="bot.db", user_id="ana"))  # doctest: +SKIP
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    door_name: ClassVar[str] = "langchain.memory"

    memory_key: str = "history"
    """The prompt's variable."""
    input_key: str | None = None
    output_key: str | None = None
    """Which of several inputs and outputs are the dialogue; None: the one that can only be it."""
    return_messages: bool = False
    """Give messages (for a ``MessagesPlaceholder``) instead of text."""
    human_prefix: str = "Human"
    ai_prefix: str = "AI"
    recent_turns: int | None = Field(default=None, ge=0)
    """Turns shown beside the memories; None: the memory's setting (6)."""
    callbacks: list[Any] = Field(default_factory=list, exclude=True, repr=False)
    """Callback handlers that are told of recalls and recordings (``on_custom_event``). A chain asks its memory before
    its own run begins, and tells it of no handlers."""

    _loaded: OrderedDict[str, str] = PrivateAttr(default_factory=OrderedDict)
    _saved: str = PrivateAttr(default="")

    @property
    def _listener(self) -> Listener:
        return HandlerEvents(self.callbacks)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> MemoryR1Memory:
        memo = {} if memo is None else memo
        memo |= {id(handler): handler for handler in self.callbacks}  # a copy tells the same handlers
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "callbacks": []}}  # handlers hold what cannot travel

    @property
    def memory_variables(self) -> list[str]:
        """The one variable it fills."""
        return [self.memory_key]

    # -- before the model

    def load_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the recent turns and the memories selected for the input."""
        door, query = self.door, self._query(inputs)
        dialogue = door.dialogue(self._recent)
        self._note(query, dialogue.tail)
        return {self.memory_key: self._render(dialogue.turns, door.recall(query, dialogue.turns))}

    async def aload_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Async twin of `load_memory_variables`; the event loop runs on meanwhile."""
        door, query = self.door, self._query(inputs)
        dialogue = await door.adialogue(self._recent)
        self._note(query, dialogue.tail)
        return {self.memory_key: self._render(dialogue.turns, await door.arecall(query, dialogue.turns))}

    @property
    def _recent(self) -> int:
        return self._opened.memory.settings.recent_turns if self.recent_turns is None else self.recent_turns

    def _query(self, inputs: Mapping[str, Any]) -> str:
        with self.door.guarded("read"):
            return content_text(self._pick(inputs, self.input_key, "input")) if inputs else ""
        return ""

    def _render(self, turns: Sequence[Turn], items: Sequence[MemoryItem]) -> Any:
        block = render_recalled(items)
        spoken = [turn for turn in turns if turn.role in ("user", "assistant")]
        while spoken and spoken[0].role != "user":  # a cut dialogue begins with the user
            spoken = spoken[1:]
        if self.return_messages:
            return [*([recalled_message(block)] if block else []), *messages_of(spoken)]
        prefix = {"user": self.human_prefix, "assistant": self.ai_prefix}
        return "\n".join([*([block] if block else []), *(f"{prefix[t.role]}: {t.text}" for t in spoken)])

    # -- after the model

    def save_context(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Record the exchange, once: journaled whole, what the user said learned."""
        door = self.door
        with door.guarded("record"):
            query, reply = self._exchange(inputs, outputs)
            after = self._parent(query)
            if after is None:
                after = self._note(query, door.dialogue(1).tail)
            door.record(self._said(query, reply, after))

    async def asave_context(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Async twin of `save_context`."""
        door = self.door
        with door.guarded("record"):
            query, reply = self._exchange(inputs, outputs)
            after = self._parent(query)
            if after is None:
                after = self._note(query, (await door.adialogue(1)).tail)
            await door.arecord(self._said(query, reply, after))

    def _exchange(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> tuple[str, str]:
        query = content_text(self._pick(inputs, self.input_key, "input"))
        return query, content_text(self._pick(outputs, self.output_key, "output"))

    def _said(self, query: str, reply: str, after: str) -> list[Said]:
        return [Said("user", query, key=digest(after, reply)), Said("assistant", reply, key=digest(after, query))]

    def _pick(self, values: Mapping[str, Any], key: str | None, what: str) -> Any:
        """Return the value that is the dialogue's: the named one, "output", the only one, the only text."""
        if key is not None:
            if key not in values:
                raise InputError(f"{what}_key is {key!r}; the chain's {what}s are {sorted(values)}. Name one of them.")
            return values[key]
        own = {k: v for k, v in values.items() if k not in (self.memory_key, "stop")}
        texts = {k: v for k, v in own.items() if isinstance(v, str)}
        for choice in (own if len(own) == 1 else {}, {k: v for k, v in own.items() if k == what}, texts):
            if len(choice) == 1:
                return next(iter(choice.values()))
        raise InputError(f"the chain has the {what}s {sorted(own)}; expected one. Set {what}_key to the dialogue's.")

    # -- the same turn once

    def _note(self, query: str, tail: str) -> str:
        """Remember after which turn `query` came: that place makes "yes" and a later "yes" two turns."""
        with _places:
            self._loaded[query] = tail
            self._loaded.move_to_end(query)
            while len(self._loaded) > _LOADS:
                self._loaded.popitem(last=False)
        return tail

    def _parent(self, query: str) -> str | None:
        """Return the place noted for `query`; it stays until another exchange is saved, for redeliveries."""
        with _places:
            if self._saved != query:
                self._loaded.pop(self._saved, None)
                self._saved = query
            return self._loaded.get(query)

    # -- beginning anew

    def clear(self) -> None:
        """Begin the dialogue anew; the memories stay (``Memory.forget`` erases)."""
        self.door.clear()

    async def aclear(self) -> None:
        """Async twin of `clear`."""
        await self.door.aclear()
