"""Async twins: the same method on a thread of its object's own, off the event loop.

One body for both worlds, so that they cannot differ. The thread sees the caller's context variables, so that a trace
or a request's id goes on in it. The idea of one pipeline under thin shells is httpx's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class _HasThreads(Protocol):
    @property
    def _threads(self) -> Executor: ...

    def _check_open(self) -> None: ...


S = TypeVar("S", bound=_HasThreads)
P = ParamSpec("P")
R = TypeVar("R")


def twin(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make the async twin of a method; its name is the method's with an "a" in front."""

    @wraps(method)
    async def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._check_open()
        loop = asyncio.get_running_loop()
        work = partial(copy_context().run, partial(method, self, *args, **kwargs))
        return await loop.run_in_executor(self._threads, work)

    twin.__name__ = twin.__qualname__ = f"a{method.__name__}"
    return twin
