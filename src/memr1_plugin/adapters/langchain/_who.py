"""Who is talking: ids from a run's context or config, or else those that the door was made with.

One agent or chain serves thousands of users, so its doors ask at every call. Nothing here reads a bank.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memr1_plugin.adapters._said import Address

_NAMES = ("user_id", "agent_id", "session_id", "user_name", "agent_name")


@dataclass(frozen=True)
class Ids:
    """The ids a door was made with: what holds when a run does not say otherwise."""

    user_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    user_name: str | None = None
    agent_name: str | None = None

    def address(self, context: Any = None, config: Mapping[str, Any] | None = None) -> Address:
        """Return whose door it is in this run.

        For each id, the first that is set: the run's ``context`` (object or dict), the config's
        ``configurable``, the door's own. Without a session, the thread is the session.
        """
        configurable = dict((config or {}).get("configurable") or {})
        context = _runtime_context() if context is None else context
        found = {name: _first(name, context, configurable, self) for name in _NAMES}
        if found["session_id"] is None:
            found["session_id"] = configurable.get("thread_id")
        return Address.of(**{name: None if value is None else str(value) for name, value in found.items()})


def _first(name: str, *places: Any) -> Any:
    values = (place.get(name) if isinstance(place, Mapping) else getattr(place, name, None) for place in places)
    return next((value for value in values if value not in (None, "")), None)


def _runtime_context() -> Any:
    """Return the context of the LangGraph run that this call is part of, if there is one."""
    if "langgraph.runtime" not in sys.modules:
        return None
    from langgraph.runtime import get_runtime

    try:
        return getattr(get_runtime(), "context", None)  # None outside of a run, in some versions
    except (RuntimeError, KeyError):  # and an error in others
        return None


def run_config() -> Mapping[str, Any]:
    """Return the config of the run that this call is part of; empty outside of one."""
    from langchain_core.runnables.config import ensure_config

    return ensure_config()
