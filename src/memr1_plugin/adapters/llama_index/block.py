"""`MemoryR1Block`: long-term memory as a block of LlamaIndex's own ``Memory``.

LlamaIndex keeps the dialogue; the block learns from each message that passes and gives back what matters. A
block of LlamaIndex's sees nothing before short-term memory overflows; this one reads the dialogue whenever it
is asked, so that a fact is remembered after one turn. The interface is LlamaIndex's `BaseMemoryBlock`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict

from memr1_plugin.adapters._door import Door
from memr1_plugin.adapters._fields import DoorFields
from memr1_plugin.adapters._listener import Listener
from memr1_plugin.adapters._said import Said, render_recalled
from memr1_plugin.adapters.llama_index._messages import said_of
from memr1_plugin.adapters.llama_index.events import DispatcherEvents
from memr1_plugin.errors import MissingExtraError

try:
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.memory import BaseMemoryBlock, InsertMethod
    from llama_index.core.memory import Memory as LlamaIndexMemory
    from llama_index.core.utils import get_tokenizer
except ImportError as error:
    raise MissingExtraError.of("llama-index-core", "llama-index") from error


class MemoryR1Block(DoorFields, BaseMemoryBlock[str]):
    """A memory block: one for many sessions, each with its own dialogue; walls between users.

    >>> memory = MemoryR1Block(path="bot.db", user_id="ana").in_memory(session_id="monday")  # doctest: +SKIP
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    door_name: ClassVar[str] = "llama_index.block"

    name: str = "long_term_memory"
    description: str | None = "What the user said in earlier conversations."
    priority: int = 1

    @property
    def _listener(self) -> Listener:
        return DispatcherEvents()

    def in_memory(self, session_id: str | None = None, **kwargs: Any) -> LlamaIndexMemory:
        """Return LlamaIndex's ``Memory`` with this block in it, set up so that it works as it should.

        Memories go into the newest user message, since ReActAgent and CodeActAgent lose a system message;
        what overflows is flushed as it overflows and not in lumps.
        """
        kwargs = {"insert_method": InsertMethod.USER, "token_flush_size": 1, **kwargs}
        blocks = [self, *kwargs.pop("memory_blocks", [])]
        session = session_id if session_id is not None else self.session_id
        return LlamaIndexMemory.from_defaults(session_id=session, memory_blocks=blocks, **kwargs)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        messages = messages or []
        door = self._in(block_kwargs.get("session_id"))
        turns = door.turns(_said(messages))
        await door.afollow(_said(messages))
        query = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
        heard = {turn.text for turn in turns}
        items = await door.arecall(query)
        return render_recalled([item for item in items if item.text not in heard])

    async def _aput(self, messages: list[ChatMessage]) -> None:
        sessions = [message.additional_kwargs.get("session_id") for message in messages]
        await self._in(next(filter(None, sessions), None)).afollow(_said(messages))

    def _in(self, session_id: str | None) -> Door:
        """Return the door for the session that LlamaIndex names; it never reads another's dialogue."""
        if session_id is None or self.session_id is not None:
            return self.door
        return self.door.at(self.model_copy(update={"session_id": session_id}).address)

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """Drop the least relevant memories until at least `tokens_to_truncate` are saved."""
        count = get_tokenizer()
        lines, saved = content.splitlines(), 0
        while len(lines) > 2 and saved < tokens_to_truncate:
            saved += len(count(lines.pop(-2)))
        return "\n".join(lines) if len(lines) > 2 else None


def _said(messages: list[ChatMessage]) -> list[Said]:
    plain = (said_of(message) for message in messages)
    return [Said(each.role, each.text) for each in plain if each.text.strip()]
