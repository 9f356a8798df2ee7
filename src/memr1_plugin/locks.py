"""One lock for each scope that somebody is writing to, and none for the others.

Within a process: that two threads do not manage one scope's turns at a time. Between processes the bank sees to it.
"""

from __future__ import annotations

import threading
import weakref

from memr1_plugin.types import Scope


class _Lock:
    """A re-entrant lock that a weak dictionary can hold: scopes come and go, their locks with them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class ScopeLocks:
    """Locks by scope, made when asked for."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, _Lock] = weakref.WeakValueDictionary()
        self._guard = threading.Lock()

    def of(self, scope: Scope) -> _Lock:
        """Return the scope's lock: the same one for as long as somebody holds it."""
        with self._guard:
            lock = self._locks.get(scope.key)
            if lock is None:
                lock = self._locks[scope.key] = _Lock()
            return lock
