"""The parameters that pydantic-based doors share (LangChain's and LlamaIndex's components), as a mixin.

It turns fields into a `Door` and survives what frameworks do to components: copies, pickles, changed fields.
It is no door itself and imports no framework; pydantic comes with either of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, PrivateAttr

from memr1_plugin.adapters._door import Door
from memr1_plugin.adapters._listener import Listener
from memr1_plugin.adapters._said import Address

T = TypeVar("T", bound="DoorFields")


class DoorFields(BaseModel):
    """Whose memories, in which bank, chosen by whom."""

    door_name: ClassVar[str] = "door"

    memory: Any = Field(default=None, exclude=True, repr=False)
    """An open `Memory` to share; without it, the process's one memory of ``path``."""
    path: str | Path = "memory.db"
    """The bank's database file; made if it does not exist."""
    model: str | None = None
    loras: str | Path | None = None
    write: Literal["sync", "background"] | None = None
    """"background": a turn is durable at once and managed by a thread. See `Memory.open` for all three."""
    user_id: str | None = None
    agent_id: str | None = None
    """Memories belong to (user, agent) and are shared by that user's sessions."""
    session_id: str | None = None
    """The dialogue. With neither user nor agent, it is the wall around the memories too."""
    user_name: str | None = None
    """How the user is called in memories ("Ana: I moved"); ``user_id`` if not given."""
    agent_name: str | None = None
    recall: Literal["agent", "retrieval"] = "agent"
    """Who chooses: the Answer Agent, or retrieval alone (no model call)."""
    k: int | None = Field(default=None, gt=0)
    """How many candidates are considered; None: the memory's setting."""
    on_error: Literal["log", "raise"] = "log"
    """A failing memory is logged and counted (`memr1_plugin.adapters.failures`), or raised."""

    _opened: Door = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Open the memory: a wrong path or an unreadable bank is told at construction."""
        super().model_post_init(context)
        options: dict[str, Any] = {"model": self.model, "loras": self.loras, "write": self.write}
        self._opened = Door.open(self.door_name, self.address, memory=self.memory, path=self.path, **options)
        if self.memory is not None:
            self.path = self._opened.source.path

    @property
    def address(self) -> Address:
        """Whose door it is now; follows the fields."""
        return Address.of(self.user_id, self.agent_id, self.session_id, self.user_name, self.agent_name)

    @property
    def door(self) -> Door:
        """The door that the fields describe now: a copy with another ``user_id`` is another user's."""
        return replace(
            self._opened, address=self.address, recall_by=self.recall, k=self.k, on_error=self.on_error,
            listener=self._listener,
        )  # fmt: skip

    @property
    def _listener(self) -> Listener | None:
        """Who is told of what the door does."""
        return None

    def __deepcopy__(self: T, memo: dict[int, Any] | None = None) -> T:
        """Copy the fields; the memory behind them is shared, not copied."""
        memo = {} if memo is None else memo
        memo[id(self.memory)] = self.memory
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the open memory out: it is found again by its source."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "memory": None}}
