"""Where a door's memory is found again after a copy, a pickle or a restart.

A path and options, and a name for a `Memory` object that the caller made while it lives in this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from memr1_plugin.types import new_id

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory

_alive: WeakValueDictionary[str, Memory] = WeakValueDictionary()


@dataclass(frozen=True)
class Source:
    """Where a door's memory is found again after a copy, a pickle or a restart."""

    path: str
    options: tuple[tuple[str, Any], ...] = ()
    token: str = ""
    """Names a Memory object that the caller made, while it lives in this process."""

    def open(self) -> Memory:
        """Return the memory: the caller's own if it is alive, the process's shared one otherwise."""
        from memr1_plugin.memory import Memory

        return _alive.get(self.token) or Memory.shared(self.path, **dict(self.options))


def source_of(memory: Memory | None, path: Any, options: Mapping[str, Any]) -> Source:
    """Return the source of `memory`, or of the process's shared memory of `path` and `options`."""
    given = tuple(sorted((k, v) for k, v in options.items() if v is not None))
    if memory is None:
        return Source(str(path), given)
    token = next((t for t, m in _alive.items() if m is memory), None) or new_id()
    _alive[token] = memory
    return Source(str(memory.bank.path), given, token)
