"""`MemoryR1ChatHistory`: a durable chat history for ``RunnableWithMessageHistory``, and for anything that takes one.

It gives back exactly the messages it was given, tool calls and images included, and what users say becomes
memories on the way. It never slips recalled memories in among the messages: the framework counts them
(put `recall_runnable` into the prompt for that). The interface is LangChain's `BaseChatMessageHistory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1_plugin.adapters._door import Door, OnError, Write
from memr1_plugin.adapters._said import Address, Said, digest
from memr1_plugin.adapters.langchain._events import RunEvents
from memr1_plugin.adapters.langchain._messages import messages_of, said_of
from memr1_plugin.errors import MissingExtraError
from memr1_plugin.types import new_id

try:
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.messages import BaseMessage
except ImportError as error:
    raise MissingExtraError.of("langchain-core", "langchain") from error

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory


class MemoryR1ChatHistory(BaseChatMessageHistory):
    """The messages of one session, in the bank's journal. Made anew at each call, it is the same history.

    >>> RunnableWithMessageHistory(  # doctest: +SKIP
    ...     chain, lambda session_id: MemoryR1ChatHistory(session_id, path="bot.db"),
    ...     input_messages_key="input", history_messages_key="history")
    """

    def __init__(
        self,
        session_id: str | None = None,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        user_name: str | None = None,
        agent_name: str | None = None,
        memory: Memory | None = None,
        path: str | Path = "memory.db",
        model: str | None = None,
        loras: str | Path | None = None,
        write: Write | None = None,
        on_error: OnError = "log",
    ) -> None:
        """Open the session's history: on `memory` if given, on the process's one memory of `path` otherwise."""
        address = Address.of(user_id, agent_id, session_id, user_name, agent_name)
        self._door = Door.open(
            "langchain.history",
            address,
            memory=memory,
            path=path,
            on_error=on_error,
            model=model,
            loras=loras,
            write=write,
            listener=RunEvents(),
        )
        self._last: tuple[list[BaseMessage], str] = ([], "")

    @property
    def messages(self) -> list[BaseMessage]:
        """The session's messages, oldest first: a new list at each look."""
        return messages_of(self._door.dialogue().turns)

    @messages.setter
    def messages(self, messages: Sequence[BaseMessage]) -> None:
        """Make `messages` the dialogue (as trimming code does). What the journal holds already is not learned again."""
        self._door.rewrite([said_of(message) for message in messages])

    async def aget_messages(self) -> list[BaseMessage]:
        """Async twin of ``messages``."""
        return messages_of((await self._door.adialogue()).turns)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Record `messages` in one transaction; the same delivery twice is recorded once."""
        with self._door.guarded("record"):
            self._door.record(self._said(messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Async twin of `add_messages`."""
        with self._door.guarded("record"):
            await self._door.arecord(self._said(messages))

    def _said(self, messages: Sequence[BaseMessage]) -> list[Said]:
        """Give each message its identity: the delivery it came in, and its place there.

        A delivery is known again by its messages' ids, or, where none has an id, by being the very same
        objects as the last one. A user's second "yes" is neither.
        """
        said = [said_of(message) for message in messages]
        if any(each.key for each in said):
            key = digest("delivery", [(each.key, each.role, each.text) for each in said])
        else:
            last, key = self._last
            same = len(last) == len(messages) and all(a is b for a, b in zip(last, messages, strict=True))
            key = key if same else new_id()
            self._last = (list(messages), key)
        return [replace(each, key=digest(key, place)) for place, each in enumerate(said)]

    def clear(self) -> None:
        """Begin the dialogue anew; the memories stay (``Memory.forget`` erases)."""
        self._door.clear()

    async def aclear(self) -> None:
        """Async twin of `clear`."""
        await self._door.aclear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": ([], "")}
