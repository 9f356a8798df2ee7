"""The backlog: turns that wait to be managed, worked off scope by scope, and none held up by another's failure.

The journal is the queue and lives in the bank; here is only the order: scopes whose last try failed come last, so that
a turn that no model can read delays its own scope and nobody else's. How a scope is managed is `memory`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container

from memr1_plugin.errors import MemoryR1Error
from memr1_plugin.logs import fields, told
from memr1_plugin.types import Scope

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Scopes that may fail in one round before it ends: then it is the model that is down, not a turn that is bad."""


class Backlog:
    """Works off what waits. Thread-safe as far as `manage` is."""

    def __init__(
        self, waiting: Callable[[], list[Scope]], manage: Callable[[Scope], object], *, retry_s: float
    ) -> None:
        """`waiting` lists the scopes with pending turns, `manage` manages some turns of one."""
        self._waiting, self._manage, self._retry_s = waiting, manage, retry_s
        self._failing: frozenset[Scope] = frozenset()
        self._next_try = 0.0
        self.tried = False
        """True once `catch_up` has looked for what an earlier process left."""

    def work(self, but: Container[Scope] = ()) -> None:
        """Manage turns of each scope that waits, once; then raise the first failure, if there was one."""
        failures: dict[Scope, MemoryR1Error] = {}
        waiting = [scope for scope in self._waiting() if scope not in but]
        if waiting:
            log.debug("turns of %d scopes wait", len(waiting), extra=fields("backlog", scopes=len(waiting)))
        for scope in sorted(waiting, key=self._failing.__contains__):
            try:
                self._manage(scope)
            except MemoryR1Error as error:
                failures[scope] = error
                if len(failures) == MAX_FAILURES:
                    break
        still = self._failing.intersection(waiting) if len(failures) == MAX_FAILURES else ()
        self._failing = frozenset((*failures, *still))
        if failures:
            raise next(iter(failures.values()))

    def catch_up(self, but: Container[Scope] = ()) -> None:
        """Work off what waits unless that was done; a failure is logged, not raised: it is not the caller's turn.

        Tried again `retry_s` after a failure. Scopes in `but` are left to the caller.
        """
        if time.monotonic() < self._next_try:
            return
        self.tried, self._next_try = True, float("inf")
        try:
            self.work(but)
        except MemoryR1Error as error:
            self.failed()
            log.warning(
                "turns of other scopes stay pending (%s), next try in %.0f s or at flush",
                told(error),
                self._retry_s,
                extra=fields("catch_up_failed", error=type(error).__name__, retry_s=self._retry_s),
            )

    def failed(self) -> None:
        """Note that a turn was left pending, so that `catch_up` looks again."""
        self._next_try = time.monotonic() + self._retry_s
