"""One open memory per file and options in a process: what doors open, and nobody closes before the process ends.

It opens nothing itself: how is the caller's. Files are told apart by their real path, options by value or identity.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from memr1_plugin.settings import Settings


class _Closes(Protocol):
    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...


M = TypeVar("M", bound=_Closes)


class OnePerFile(Generic[M]):
    """Opened memories by file and options."""

    def __init__(self) -> None:
        self._open: dict[object, M] = {}
        self._lock = threading.Lock()
        atexit.register(self._close)

    def get(self, path: str | Path, options: Mapping[str, Any], opened: Callable[..., M]) -> M:
        """Return the one memory of `path` and `options`, opened if it is not, or was closed."""
        place = str(path) if str(path) == ":memory:" else str(Path(path).expanduser().resolve())
        key = (place, tuple(sorted((name, _identity(value)) for name, value in options.items())))
        with self._lock:
            memory = self._open.get(key)
            if memory is None or memory.closed:
                memory = self._open[key] = opened(path, **options)
            return memory

    def _close(self) -> None:
        for memory in self._open.values():
            memory.close()


def _identity(value: Any) -> object:
    """Return a hashable stand-in: values by value, objects (engines, embedders) by identity."""
    return value if isinstance(value, (str, int, float, bool, type(None), Path, Settings)) else id(value)
