"""Tools for agents that manage their memory themselves: search, remember, correct, forget.

Each is a LangChain tool of its own, natively sync and async. Who is talking is asked of each run's config;
an agent that names a memory that is not there is told so in words, as with any tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from memr1_plugin.adapters._door import Door, Flow, OnError, Recall, Write, call
from memr1_plugin.adapters._fields import DoorFields
from memr1_plugin.adapters._said import Said, render_recalled
from memr1_plugin.adapters.langchain._who import Ids
from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.types import Change, OperationKind

try:
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import ArgsSchema, BaseTool
except ImportError as error:
    raise MissingExtraError.of("langchain-core", "langchain") from error

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory

_FAILED = "The memory is not available at the moment."


class _Query(BaseModel):
    query: str = Field(description="What to look for, in plain words.")


class _Text(BaseModel):
    text: str = Field(description="One fact in a full sentence that can be understood on its own.")


class _Correction(BaseModel):
    memory_id: int = Field(description="The number of the memory, as search_memory shows it.")
    text: str = Field(description="What is true instead, in a full sentence.")


class _Id(BaseModel):
    memory_id: int = Field(description="The number of the memory, as search_memory shows it.")


class MemoryTool(DoorFields, BaseTool):
    """What the four tools share: whose memory, and how a wrong id or a failing memory is told."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    door_name: ClassVar[str] = "langchain.tools"
    handle_tool_error: Any = True

    def _act(self, door: Door, **arguments: Any) -> Flow[str]:
        raise NotImplementedError

    def _run(self, config: RunnableConfig, **arguments: Any) -> str:
        door = self._here(config)
        return door.run(self.name, self._told(self._act(door, **arguments)), _FAILED)

    async def _arun(self, config: RunnableConfig, **arguments: Any) -> str:
        door = self._here(config)
        return await door.arun(self.name, self._told(self._act(door, **arguments)), _FAILED)

    def _here(self, config: RunnableConfig) -> Door:
        ids = Ids(self.user_id, self.agent_id, self.session_id, self.user_name, self.agent_name)
        return self.door.at(ids.address(config=config))

    @staticmethod
    def _told(flow: Flow[str]) -> Flow[str]:
        """Turn what the agent got wrong into an answer that it can read; other failures stay failures."""
        try:
            return (yield from flow)
        except InputError as error:
            return f"Not done: {error}"


class SearchMemory(MemoryTool):
    """Look memories up; the answer shows their numbers."""

    name: str = "search_memory"
    description: str = "Search what is remembered about the user from earlier conversations."
    args_schema: ArgsSchema | None = _Query
    recall: Recall = "retrieval"

    def _act(self, door: Door, query: str = "") -> Flow[str]:  # type: ignore[override]
        items = yield from door.recalling(query)
        return render_recalled(items, numbered=True) or "No memory covers this."


class Remember(MemoryTool):
    """Put a fact into memory; the Manager decides whether it is new, an update, or known."""

    name: str = "remember"
    description: str = "Remember one lasting fact about the user for later conversations."
    args_schema: ArgsSchema | None = _Text

    def _act(self, door: Door, text: str = "") -> Flow[str]:  # type: ignore[override]
        turns = door.turns([Said("user", text)])
        if not turns:
            raise InputError("the text is empty; expected a fact in words.")
        changes: list[Change] = yield call("observe_many", turns)
        kept = [c.after for c in changes if c.after and not c.after.deleted and c.kind is not OperationKind.NOOP]
        return f"Remembered.\n{render_recalled(kept, numbered=True)}" if kept else "Noted."


class CorrectMemory(MemoryTool):
    """Replace the text of a memory; the old text stays in its history."""

    name: str = "correct_memory"
    description: str = "Correct one memory that turned out to be wrong or out of date."
    args_schema: ArgsSchema | None = _Correction

    def _act(self, door: Door, memory_id: int = 0, text: str = "") -> Flow[str]:  # type: ignore[override]
        change: Change = yield call("correct", memory_id, text, scope=door.address.scope)
        return f"Corrected.\n{render_recalled([change.after] if change.after else [], numbered=True)}"


class ForgetMemory(MemoryTool):
    """Take a memory away: a tombstone that can be undone, or, with ``erase``, every trace of it."""

    name: str = "forget_memory"
    description: str = "Forget one memory because the user asks for it."
    args_schema: ArgsSchema | None = _Id
    erase: bool = False
    """Erase the memory and the turns it came from, everywhere and for good."""

    def _act(self, door: Door, memory_id: int = 0) -> Flow[str]:  # type: ignore[override]
        yield call("forget" if self.erase else "remove", memory_id, scope=door.address.scope)
        return f"Memory {memory_id} is forgotten."


def memory_tools(
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
    k: int | None = None,
    erase: bool = False,
    on_error: OnError = "log",
) -> Sequence[BaseTool]:
    """Return the four tools, for ``create_agent(tools=...)``, an AgentExecutor or ``bind_tools``."""
    shared: dict[str, Any] = {
        "memory": memory, "path": path, "model": model, "loras": loras, "write": write, "user_id": user_id,
        "agent_id": agent_id, "session_id": session_id, "user_name": user_name, "k": k, "on_error": on_error,
    }  # fmt: skip
    return [SearchMemory(**shared), Remember(**shared), CorrectMemory(**shared), ForgetMemory(erase=erase, **shared)]
