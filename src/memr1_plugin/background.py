"""The background writer: one thread that manages what the journal holds and the Manager has not seen.

The journal is the queue, so nothing is lost with the thread: a turn is durable before `wake` is called,
and a process that dies leaves it pending for the next one. It decides nothing and touches no bank itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from memr1_plugin.errors import MemoryR1Error
from memr1_plugin.logs import fields, told

log = logging.getLogger(__name__)
MAX_RETRY_S = 60.0
_LOOK_S = 0.5
"""How often a caller who is held back looks at the queue: a round of the writer is many turns."""


class BackgroundWriter:
    """Calls `work` whenever it is woken, until `work` says that nothing is pending."""

    def __init__(self, work: Callable[[], bool], *, retry_s: float) -> None:
        """`work` manages some pending turns and returns whether there are more."""
        self._work = work
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._dirty = False
        self._idle = True
        self._closing = False
        self._retry_now = False
        self._attempt = self._failed_attempt = 0
        self.failure: BaseException | None = None
        """Why the last attempt failed; None after one that did not."""
        self._thread = threading.Thread(target=self._run, name="memr1-writer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that the journal holds something new."""
        with self._changed:
            self._dirty = True
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float | None) -> bool:
        """Wait until everything known at this moment is managed; False when the time ran out or it fails.

        A writer that waits to try again after a failure tries now; an attempt that was under way before this call and
        fails is no answer to it.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            under_way = self._attempt
            self._dirty = self._retry_now = True
            if self._thread.is_alive():
                self.failure = None
            self._changed.notify_all()
            while self._dirty or not self._idle:
                failed = self.failure is not None and self._failed_attempt > under_way
                if failed or not self._thread.is_alive():
                    return False
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def wait_until(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough` says that the queue is short enough; not while managing fails, nor after `close`."""
        with self._changed:
            while not enough() and self.failure is None and self._thread.is_alive() and not self._closing:
                self._changed.wait(_LOOK_S)

    def close(self) -> None:
        """Stop after the turn in progress; what is still pending stays in the journal."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        retry_s = self._retry_s
        while self._next():
            try:
                more = self._work()
            except MemoryR1Error as error:
                log.warning(
                    "managing turns failed (%s); they stay pending, next try in %.0f s",
                    told(error),
                    retry_s,
                    extra=fields("writer_failed", error=type(error).__name__, retry_s=retry_s),
                )
                self._pause(error, retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_S)
                continue
            except BaseException as error:
                with self._changed:
                    self.failure = error
                    self._idle = True
                    self._changed.notify_all()
                log.error(
                    "the background writer stopped (%s); turns are still journaled and stay pending",
                    told(error),
                    extra=fields("writer_stopped", error=type(error).__name__),
                )
                raise
            retry_s = self._retry_s
            with self._changed:
                self.failure = None
                self._dirty = self._dirty or more
                self._idle = True
                self._changed.notify_all()

    def _next(self) -> bool:
        with self._changed:
            while not self._dirty and not self._closing:
                self._changed.wait()
            self._dirty, self._idle = False, False
            self._attempt += 1
            return not self._closing

    def _pause(self, error: BaseException, retry_s: float) -> None:
        with self._changed:
            self.failure, self._failed_attempt, self._dirty = error, self._attempt, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closing or self._retry_now, timeout=retry_s)
            self._retry_now = False
