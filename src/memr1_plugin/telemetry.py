"""OpenTelemetry: spans and metrics of what `meter` sees, where opentelemetry-api is installed (extra `observe`).

Without the package nothing is imported and nothing is spent; with it and no SDK, some microseconds a call. Numbers and
names only: no text, no user, no file. This module exports nothing itself and opens no socket: where spans and metrics
go is the decision of whoever sets up the SDK. Instruments are named after OpenTelemetry's conventions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from memr1_plugin.errors import BankError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Counter, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider

NAME = "memr1_plugin"
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Buckets of durations: a search takes milliseconds, a model on a slow machine half a minute."""
_COUNTERS: Mapping[str, tuple[str, str]] = {
    "turns": ("{turn}", "Turns journalled, each once."),
    "facts": ("{fact}", "Facts shown to the Manager."),
    "operations": ("{operation}", "Changes to banks, by kind and by who decided."),
    "rejections": ("{line}", "Lines of completions that changed nothing, by reason."),
    "quarantined": ("{turn}", "Turns that screening caught."),
    "recalled": ("{item}", "Memories found for questions."),
    "model.calls": ("{call}", "Completions of the local model."),
    "model.tokens": ("{token}", "Tokens, by type: prompt, cached (part of the prompt), output."),
    "door.failures": ("{failure}", "Failures that doors let pass, by door and act."),
}
_PLAIN = {"turns": "turns", "facts": "facts", "quarantined": "quarantined", "recalled": "recalled",
          "model_calls": "model.calls"}  # fmt: skip


class Queue(Protocol):
    """A bank, as far as its queue goes."""

    @property
    def path(self) -> str:
        """Its file."""

    def waiting(self) -> int:
        """Turns journalled and not yet managed."""


class Telemetry:
    """Where `Meter` reports to. Thread-safe."""

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        """Make the instruments, with the providers given or else the process's."""
        from opentelemetry import metrics, trace

        self._tracer = trace.get_tracer(NAME, tracer_provider=tracer_provider)
        self._error = trace.Status(trace.StatusCode.ERROR)
        meter = metrics.get_meter(NAME, meter_provider=meter_provider)
        self._counters: dict[str, Counter] = {
            name: meter.create_counter(f"memr1.{name}", unit, what) for name, (unit, what) in _COUNTERS.items()
        }
        self._seconds = {
            kind: meter.create_histogram(
                f"memr1.{kind}.duration", "s", what, explicit_bucket_boundaries_advisory=SECONDS
            )
            for kind, what in (("act", "Seconds of what was asked for."), ("stage", "Seconds of its parts."))
        }
        self._queues: WeakSet[Queue] = WeakSet()
        self._queues_lock = threading.Lock()
        meter.create_observable_gauge(
            "memr1.queue.depth", [self._depth], "{turn}", "Turns journalled and not yet managed, in all open banks."
        )
        self._observation: Callable[[int], Observation] = metrics.Observation

    def count(self, name: str, n: int) -> None:
        """Add to the instrument of one of `Meter`'s counters; a counter that has none is left out."""
        instrument, attributes = _instrument(name)
        if instrument:
            self._counters[instrument].add(n, attributes)

    def act(self, name: str, tally: Mapping[str, int]) -> AbstractContextManager[None]:
        """A span for what somebody asked for; at its end, `tally` is its attributes."""
        return self._timed("act", name, tally)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A span for a part of an act."""
        return self._timed("stage", name, {})

    @contextmanager
    def _timed(self, kind: str, name: str, tally: Mapping[str, int]) -> Iterator[None]:
        start, attributes = time.perf_counter(), {f"memr1.{kind}": name}
        span_name = f"memr1.{name}" if kind == "act" else f"memr1.{kind}.{name}"
        # Without the tracer's own note of an exception: its words may be a user's.
        with self._tracer.start_as_current_span(
            span_name, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                attributes["error.type"] = type(error).__name__
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(self._error)
                raise
            finally:
                span.set_attributes({f"memr1.{what.replace(':', '.')}": n for what, n in tally.items()})
                self._seconds[kind].record(time.perf_counter() - start, attributes)

    def watch(self, queue: Queue) -> None:
        """Let the gauge of the queue look at a bank for as long as somebody holds it."""
        with self._queues_lock:
            self._queues.add(queue)

    def _depth(self, options: CallbackOptions) -> Iterable[Observation]:
        with self._queues_lock:
            by_file = {(queue.path, id(queue) if queue.path == ":memory:" else 0): queue for queue in self._queues}
        depth = 0
        for queue in by_file.values():
            try:
                depth += queue.waiting()
            except BankError:  # closed, or its disk is gone: whoever uses the bank is told
                continue
        return [self._observation(depth)]


def _instrument(name: str) -> tuple[str, dict[str, str]]:
    if name in _PLAIN:
        return _PLAIN[name], {}
    head, _, tail = name.partition(":")
    if head == "rejected":
        return "rejections", {"memr1.reason": tail}
    if head == "failed":
        door, _, act = tail.partition(" ")
        return "door.failures", {"memr1.door": door, "memr1.act": act}
    if head.isupper():
        return "operations", {"memr1.kind": head, "memr1.source": tail}
    if name.endswith("_tokens"):
        return "model.tokens", {"memr1.type": name.removesuffix("_tokens")}
    return "", {}


_lock = threading.Lock()
_made: list[Telemetry] = []


def telemetry() -> Telemetry | None:
    """Return the process's one `Telemetry`, made when it is first asked for; None without opentelemetry-api."""
    with _lock:
        if not _made and _installed():
            _made.append(Telemetry())
        return _made[0] if _made else None


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.metrics") is not None and find_spec("opentelemetry.trace") is not None
    except ModuleNotFoundError:  # no package `opentelemetry` at all
        return False
