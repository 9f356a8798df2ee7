"""What a memory did and what it cost: counters that any thread may add to.

Numbers of this process, read with `Memory.stats`; as spans and metrics they go to `telemetry`, where opentelemetry is
installed, and as records at DEBUG to the log. No text passes here, and nothing leaves the process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from memr1_plugin.agents.engine import Completion
from memr1_plugin.bank.reading import BankStats
from memr1_plugin.logs import fields
from memr1_plugin.operations import Rejection
from memr1_plugin.telemetry import Queue, Telemetry, telemetry
from memr1_plugin.types import Change, Fact

log = logging.getLogger("memr1_plugin.memory")
_tally: ContextVar[Counter[str] | None] = ContextVar("memr1_tally", default=None)
"""What was counted in the act that this thread or task is in."""


@dataclass(frozen=True)
class Stats:
    """What the bank holds, and what this process did and spent since the memory was opened."""

    bank: BankStats
    counts: Mapping[str, int]
    """"turns", "facts", "recalled", "quarantined", "model_calls", "prompt_tokens", "cached_tokens", "output_tokens",
    "rejected:<reason>", "failed:<door> <act>", "<OPERATION>:<source>" (e.g. "ADD:rule")."""
    seconds: Mapping[str, float]
    """Wall-clock seconds by stage: "journal", "extract", "retrieve", "manage", "apply", "answer"."""


class Meter:
    """Thread-safe counters and seconds by stage."""

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._telemetry = telemetry

    @classmethod
    def of(cls, bank: Queue) -> Meter:
        """Make the meter of a memory on `bank`, which telemetry then watches too."""
        found = telemetry()
        if found is not None:
            found.watch(bank)
        return cls(found)

    def add(self, name: str, n: int = 1) -> None:
        """Add `n` to the counter `name`."""
        with self._lock:
            self._counts[name] += n
        if n and (tally := _tally.get()) is not None:
            tally[name] += n
        if n and self._telemetry is not None:
            self._telemetry.count(name, n)

    def spent(self, completion: Completion | None) -> None:
        """Count one model call and its tokens; None is no call."""
        if completion is None:
            return
        self.add("model_calls")
        self.add("prompt_tokens", completion.prompt_tokens)
        self.add("cached_tokens", completion.cached_tokens)
        self.add("output_tokens", completion.output_tokens)

    def managed(self, facts: Sequence[Fact], changes: Iterable[Change], rejections: Iterable[Rejection]) -> None:
        """Count what managing one turn came to."""
        self.add("facts", len(facts))
        for change in changes:
            self.add(f"{change.kind.value}:{change.source}")
        for rejection in rejections:
            self.add(f"rejected:{rejection.reason}")

    def caught(self, rules_of_turns: Iterable[Sequence[str]]) -> None:
        """Count the turns that screening caught, and say so; a turn without rules was not."""
        for rules in filter(None, rules_of_turns):
            self.add("quarantined")
            log.warning(
                "a turn went into quarantine (%s); `Memory.quarantine` shows it",
                ", ".join(rules),
                extra=fields("quarantined", rules=list(rules)),
            )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to the stage `name`, also when the block raises."""
        start = time.perf_counter()
        try:
            with nullcontext() if self._telemetry is None else self._telemetry.stage(name):
                yield
        finally:
            with self._lock:
                self._seconds[name] += time.perf_counter() - start

    @contextmanager
    def act(self, name: str) -> Iterator[None]:
        """What somebody asked for, whole: a span and a line at DEBUG, with what was counted meanwhile."""
        tally, start, error = Counter[str](), time.perf_counter(), None
        outer = _tally.get()
        token = _tally.set(tally)
        try:
            with nullcontext() if self._telemetry is None else self._telemetry.act(name, tally):
                yield
        except BaseException as failed:
            error = failed
            raise
        finally:
            _tally.reset(token)
            if outer is not None:
                outer.update(tally)
            _say(name, time.perf_counter() - start, tally, error)

    @property
    def counts(self) -> Mapping[str, int]:
        """A copy of the counters."""
        with self._lock:
            return dict(self._counts)

    @property
    def seconds(self) -> Mapping[str, float]:
        """A copy of the seconds by stage."""
        with self._lock:
            return dict(self._seconds)


def _say(name: str, seconds: float, tally: Mapping[str, int], error: BaseException | None) -> None:
    if not log.isEnabledFor(logging.DEBUG):
        return
    said = ", ".join(f"{n} {what}" for what, n in sorted(tally.items())) or "nothing counted"
    values = dict(tally) if error is None else {**tally, "error": type(error).__name__}
    failed = "" if error is None else f", failed with {type(error).__name__}"
    extra = fields(name, seconds=round(seconds, 6), **values)
    log.debug("%s: %s%s (%.1f ms)", name, said, failed, 1000 * seconds, extra=extra)


class _HasMeter(Protocol):
    @property
    def meter(self) -> Meter: ...


S = TypeVar("S", bound=_HasMeter)
P = ParamSpec("P")
R = TypeVar("R")


def act(name: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Make a method of an object that has a meter one act of that meter."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @wraps(method)
        def measured(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Any:
            with self.meter.act(name):
                return method(self, *args, **kwargs)

        return measured

    return decorate
