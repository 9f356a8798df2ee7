"""What a memory did and what it cost: counters that any thread may add to.

Not a tracer and not telemetry: numbers of this process, read with `Memory.stats`. Nothing leaves it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from memr1_plugin.agents.engine import Completion
from memr1_plugin.bank.reading import BankStats


@dataclass(frozen=True)
class Stats:
    """What the bank holds, and what this process did and spent since the memory was opened."""

    bank: BankStats
    counts: Mapping[str, int]
    """"turns", "facts", "model_calls", "prompt_tokens", "cached_tokens", "output_tokens", "rejected:<reason>",
    "<OPERATION>:<source>" (e.g. "ADD:rule")."""
    seconds: Mapping[str, float]
    """Wall-clock seconds by stage: "journal", "extract", "retrieve", "manage", "apply", "answer"."""


class Meter:
    """Thread-safe counters and seconds by stage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, n: int = 1) -> None:
        """Add `n` to the counter `name`."""
        with self._lock:
            self._counts[name] += n

    def spent(self, completion: Completion | None) -> None:
        """Count one model call and its tokens; None is no call."""
        if completion is None:
            return
        with self._lock:
            self._counts["model_calls"] += 1
            self._counts["prompt_tokens"] += completion.prompt_tokens
            self._counts["cached_tokens"] += completion.cached_tokens
            self._counts["output_tokens"] += completion.output_tokens

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to the stage `name`, also when the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[name] += time.perf_counter() - start

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
