"""`MemoryR1Retriever` and `recall_runnable`: memories as LangChain documents, or as text for any prompt.

They read and never record. The retriever speaks for one scope unless its fields are made configurable; the
runnable asks each run's config who is talking.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict

from memr1_plugin.adapters._door import Door, OnError, Recall
from memr1_plugin.adapters._fields import DoorFields
from memr1_plugin.adapters._said import as_data, render_recalled
from memr1_plugin.adapters.langchain._events import RunEvents
from memr1_plugin.adapters.langchain._messages import content_text
from memr1_plugin.adapters.langchain._who import Ids
from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.types import MemoryItem

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
except ImportError as error:
    raise MissingExtraError.of("langchain-core", "langchain") from error

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory


class MemoryR1Retriever(DoorFields, BaseRetriever):
    """Memories of one user as documents: ``page_content`` is "[date] speaker: text", the rest is metadata.

    To serve many users: ``retriever.configurable_fields(user_id=ConfigurableField("user_id"))``.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    door_name: ClassVar[str] = "langchain.retriever"

    recall: Literal["agent", "retrieval"] = "retrieval"
    """A retriever retrieves; "agent" lets the Answer Agent choose among what it found."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [_document(item) for item in self._for(k).recall(query)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [_document(item) for item in await self._for(k).arecall(query)]

    def _for(self, k: int | None) -> Door:
        return self.door.considering(k)


def _document(item: MemoryItem) -> Document:
    metadata = {
        "id": item.id,
        "text": item.text,
        "speaker": item.speaker,
        "at": item.at.isoformat(),
        "turn_ids": list(item.turn_ids),
        "score": item.score,
    }
    return Document(page_content=as_data(item), metadata=metadata, id=str(item.id))


def recall_runnable(
    *,
    input_key: str = "input",
    user_id: str | None = None,
    agent_id: str | None = None,
    session_id: str | None = None,
    memory: Memory | None = None,
    path: str | Path = "memory.db",
    model: str | None = None,
    loras: str | Path | None = None,
    recall: Recall = "agent",
    k: int | None = None,
    on_error: OnError = "log",
) -> Runnable[Any, str]:
    """Return a runnable from an input to the block of memories for it, delimited as data ("" if there are none).

    ``RunnablePassthrough.assign(memories=recall_runnable(path="bot.db")) | prompt | model``. The input is a
    text, messages, or a dict that holds either under `input_key`; user, agent and session come from the
    run's ``config["configurable"]`` first.
    """
    ids = Ids(user_id, agent_id, session_id)
    base = Door.open(
        "langchain.recall", ids.address(), memory=memory, path=path, recall=recall, k=k, on_error=on_error,
        model=model, loras=loras,
    )  # fmt: skip

    def query(value: Any) -> str:
        if isinstance(value, dict):
            if input_key not in value:
                raise InputError(
                    f"the input has no {input_key!r}; it has {sorted(value)}. Set input_key to one of them."
                )
            value = value[input_key]
        return content_text(value)

    def door(config: RunnableConfig) -> Door:
        return replace(base.at(ids.address(config=config)), listener=RunEvents(config))

    def recalled(value: Any, config: RunnableConfig) -> str:
        return render_recalled(door(config).recall(query(value)))

    async def arecalled(value: Any, config: RunnableConfig) -> str:
        return render_recalled(await door(config).arecall(query(value)))

    return RunnableLambda(recalled, arecalled, name="recall_memories")
