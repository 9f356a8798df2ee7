"""`MemoryR1Middleware`: long-term memory for agents made by LangChain's ``create_agent``.

It recalls once when a run begins, shows what it recalled to the model at each step without a trace in the
saved messages, and records the exchange once when the run ends. Interrupts, resumes and tool steps lie in
between and are nothing to it. The interface is LangChain's `AgentMiddleware`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from memr1_plugin.adapters._door import Door, OnError, Recall, Write
from memr1_plugin.adapters._said import Said, render_recalled
from memr1_plugin.adapters.langchain._events import RunEvents
from memr1_plugin.adapters.langchain._messages import add_recalled, content_text, said_of
from memr1_plugin.adapters.langchain._who import Ids, run_config
from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.types import Turn

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState
    from langchain.agents.middleware.types import ModelRequest, ModelResponse, PrivateStateAttr
    from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
    from langchain_core.runnables import RunnableConfig
    from langgraph.runtime import Runtime
    from typing_extensions import NotRequired
except ImportError as error:
    raise MissingExtraError.of("langchain>=1.0", "langchain") from error

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory

NO_CONFIG: RunnableConfig = {}
_SHOWN = 40
"""How many of a thread's newest messages are compared with what was recalled, to leave out repetitions."""


@dataclass
class MemoryR1Context:
    """A ready-made ``context_schema``; any context, dict or object with these names will do."""

    user_id: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    user_name: str | None = None


class MemoryR1State(AgentState[Any]):
    """What the middleware keeps during a run, invisible in the agent's input and output."""

    memr1_recalled: NotRequired[Annotated[str, PrivateStateAttr]]


class MemoryR1Middleware(AgentMiddleware[MemoryR1State, Any]):
    """Memory for an agent; one instance serves all users and threads.

    >>> create_agent(model, tools, middleware=[MemoryR1Middleware(path="bot.db")])  # doctest: +SKIP

    Who is talking is asked of each run: ``context`` (`MemoryR1Context`, or your own with ``user_id``), then
    ``config["configurable"]``, then the ids given here. The thread is the session.
    """

    state_schema = MemoryR1State

    def __init__(
        self,
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
        insert: Literal["user", "system"] = "user",
        tools: bool = False,
        on_error: OnError = "log",
    ) -> None:
        """Open the memory: `memory` if given, the process's one memory of `path` otherwise.

        Args:
            insert: where memories are shown: at the head of the newest user message ("user", so that what
                someone once said never speaks with the system's authority), or after the system prompt.
            tools: also give the agent tools to search, add, correct and forget memories.
        """
        super().__init__()
        if insert not in ("user", "system"):
            raise InputError(f'insert is {insert!r}; expected "user" or "system".')
        self._ids = Ids(user_id, agent_id, session_id, user_name, agent_name)
        self._insert = insert
        self._door = Door.open(
            "langchain.middleware", self._ids.address(), memory=memory, path=path, recall=recall, k=k,
            on_error=on_error, model=model, loras=loras, write=write,
        )  # fmt: skip
        if tools:
            from memr1_plugin.adapters.langchain.tools import memory_tools

            ids: dict[str, Any] = {
                "user_id": user_id,
                "agent_id": agent_id,
                "session_id": session_id,
                "user_name": user_name,
            }
            self.tools = memory_tools(memory=self._door.memory, on_error=on_error, **ids)

    # LangGraph hands ``config`` to hooks that ask for it by this name and annotation; the context variable that
    # `run_config` reads does not reach async hooks on Python 3.10.
    def _here(self, runtime: Runtime[Any], config: RunnableConfig) -> Door:
        door = self._door.at(self._ids.address(runtime.context, config or run_config()))
        return replace(door, listener=RunEvents(config or None))

    # -- once, when a run begins

    def before_agent(
        self, state: MemoryR1State, runtime: Runtime[Any], config: RunnableConfig = NO_CONFIG
    ) -> dict[str, Any]:
        """Recall for the newest user message."""
        with self._door.guarded("recall"):
            door = self._here(runtime, config)
            return {"memr1_recalled": render_recalled(door.recall(_query(state["messages"]), _shown(door, state)))}
        return {"memr1_recalled": ""}

    async def abefore_agent(
        self, state: MemoryR1State, runtime: Runtime[Any], config: RunnableConfig = NO_CONFIG
    ) -> dict[str, Any]:
        """Async twin of `before_agent`."""
        with self._door.guarded("recall"):
            door = self._here(runtime, config)
            items = await door.arecall(_query(state["messages"]), _shown(door, state))
            return {"memr1_recalled": render_recalled(items)}
        return {"memr1_recalled": ""}

    # -- at each model call

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Show what was recalled to the model, in a copy of the request."""
        return handler(self._with_recalled(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Async twin of `wrap_model_call`."""
        return await handler(self._with_recalled(request))

    def _with_recalled(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        block = str(request.state.get("memr1_recalled") or "")
        if not block:
            return request
        if self._insert == "system":
            return _after_system(request, block)
        messages: list[Any] = list(request.messages)
        place = _last_human(messages)
        if place is None:
            return request.override(messages=[HumanMessage(block), *messages])
        messages[place] = add_recalled(messages[place], block)
        return request.override(messages=messages)

    # -- once, when a run ends

    def after_agent(self, state: MemoryR1State, runtime: Runtime[Any], config: RunnableConfig = NO_CONFIG) -> None:
        """Record the exchange: what the user said, and the agent's last words."""
        with self._door.guarded("record"):
            self._here(runtime, config).record(_exchange(state["messages"]))

    async def aafter_agent(
        self, state: MemoryR1State, runtime: Runtime[Any], config: RunnableConfig = NO_CONFIG
    ) -> None:
        """Async twin of `after_agent`."""
        with self._door.guarded("record"):
            await self._here(runtime, config).arecord(_exchange(state["messages"]))


def _after_system(request: ModelRequest[Any], block: str) -> ModelRequest[Any]:
    if not hasattr(request, "system_message"):  # langchain 1.0 has the prompt as a text
        prompt = "\n\n".join(filter(None, [request.system_prompt, block]))
        return request.override(system_prompt=prompt)  # type: ignore[call-arg]
    old = request.system_message
    if old is None:
        return request.override(system_message=SystemMessage(block))
    text = old.content if isinstance(old.content, str) else None
    content = [*old.content, {"type": "text", "text": block}] if text is None else f"{text}\n\n{block}"
    return request.override(system_message=old.model_copy(update={"content": content}))


def _by_user(message: BaseMessage) -> bool:
    """Tell whether a user said it: a summary that other middleware wrote in the user's name is not."""
    return message.type == "human" and "lc_source" not in message.additional_kwargs


def _last_human(messages: Sequence[BaseMessage]) -> int | None:
    return next((n for n in range(len(messages) - 1, -1, -1) if messages[n].type == "human"), None)


def _query(messages: Sequence[BaseMessage]) -> str:
    return next((content_text(message.content) for message in reversed(messages) if _by_user(message)), "")


def _shown(door: Door, state: MemoryR1State) -> list[Turn]:
    """Return the turns of the messages that the model sees anyway."""
    return door.turns([said_of(message) for message in state["messages"][-_SHOWN:] if message.type == "human"])


def _exchange(messages: Sequence[BaseMessage]) -> list[Said]:
    """Return this run's part of a thread: the last user messages, and the last words that followed.

    The state holds all turns of the thread; the old ones were recorded by their own runs, or are older
    than the memory and not ours to learn.
    """
    last = next((n for n in range(len(messages) - 1, -1, -1) if _by_user(messages[n])), None)
    if last is None:
        return []
    first = last
    while first > 0 and _by_user(messages[first - 1]):
        first -= 1
    replies = [m for m in messages[last + 1 :] if m.type == "ai" and content_text(m.content).strip()]
    return [said_of(message) for message in [*messages[first : last + 1], *replies[-1:]]]
