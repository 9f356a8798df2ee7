"""What a door did, as LangChain's custom events: handlers' ``on_custom_event``, and ``astream_events``.

"memr1.recall" carries the door's name and the ids of the memories, "memr1.record" how many turns; both belong to the
run that the door is part of. Retrievers and tools have callbacks of their own, which LangChain itself fires.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from memr1_plugin.errors import MissingExtraError

try:
    from langchain_core.callbacks import (
        BaseCallbackHandler,
        CallbackManager,
        adispatch_custom_event,
        dispatch_custom_event,
    )
    from langchain_core.runnables import RunnableConfig
    from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config
except ImportError as error:
    raise MissingExtraError.of("langchain-core", "langchain") from error


class RunEvents:
    """Tells the handlers of the run that a door is part of; nobody outside of a run."""

    def __init__(self, config: RunnableConfig | None = None) -> None:
        """Name the run; without `config` it is asked of the context, which not every async hook has."""
        self._config = config

    def told(self, event: str, values: Mapping[str, Any]) -> None:
        """Dispatch `event`."""
        if (config := self._run()) is not None:
            dispatch_custom_event(event, dict(values), config=config)

    async def atold(self, event: str, values: Mapping[str, Any]) -> None:
        """Dispatch `event` from the event loop."""
        if (config := self._run()) is not None:
            await adispatch_custom_event(event, dict(values), config=config)

    def _run(self) -> RunnableConfig | None:
        config = ensure_config(self._config)
        return config if get_callback_manager_for_config(config).parent_run_id is not None else None

    def __reduce__(self) -> Any:
        return RunEvents, ()  # a door that travels leaves its run behind


class HandlerEvents:
    """Tells handlers that were given to a classic memory: its chain calls it before the chain's run begins."""

    def __init__(self, handlers: Sequence[BaseCallbackHandler]) -> None:
        self._handlers = list(handlers)

    def told(self, event: str, values: Mapping[str, Any]) -> None:
        """Dispatch `event` under an id of its own."""
        if self._handlers:
            manager = CallbackManager(handlers=list(self._handlers))
            manager.on_custom_event(event, dict(values), run_id=uuid4())

    async def atold(self, event: str, values: Mapping[str, Any]) -> None:
        """The same: LangChain runs async handlers of a sync manager beside the event loop."""
        self.told(event, values)
