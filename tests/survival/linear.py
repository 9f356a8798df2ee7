"""Is a recorded history linearisable? A Wing and Gong search with Lowe's memory of states seen, for a set of texts.

The object is a scope's memories as a set of texts that are all different: `add` puts one in, `replace` exchanges one,
`remove` takes one out, `read` returns all. A history is linearisable if its operations can be put in one order that
keeps real time (what returned before another was called comes first) and in which every answer is right.
"Testing and verifying concurrent objects", Wing and Gong 1993; "Testing for linearizability", Lowe 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_STATES = 200_000
"""States after which a search gives up; with the order of the change ids to try first, it needs about one a write."""

State = frozenset[str]


@dataclass(frozen=True)
class Event:
    """One operation: called at, returned at (ns of one clock for all processes), what it was and what it said."""

    called: int
    returned: int
    kind: str
    before: str = ""
    """Of replace and remove: the text that it says stood there."""
    after: str = ""
    """Of add and replace: the text that stands there from now on."""
    seen: State = frozenset()
    """Of read: all texts."""
    hint: int = 0
    """Which to try first, e.g. a change id. It decides nothing."""
    maybe: bool = False
    """It failed for its caller: it may have happened at any time after the call, or never."""


def step(event: Event, state: State) -> State | None:
    """Return the state after a write, or None if its answer is wrong in this state."""
    if event.kind == "add":
        return None if event.after in state else state | {event.after}
    if event.before not in state:
        return None
    rest = state - {event.before}
    return rest | {event.after} if event.kind == "replace" else rest


def order(events: Sequence[Event]) -> list[Event] | None:
    """Return a linearisation that starts from nothing, or None if there is none.

    Raises:
        RuntimeError: too many states: neither is known.
    """
    events = sorted(events, key=lambda event: (event.hint, event.called))
    wanted = sum(1 << n for n, event in enumerate(events) if not event.maybe)
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State, tuple[int, ...]]] = [(0, frozenset(), ())]
    while stack:
        done, state, path = stack.pop()
        done, path = _read_all(events, done, state, path)
        if done & wanted == wanted:
            return [events[n] for n in path]
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > MAX_STATES:
            raise RuntimeError(f"undecided after {MAX_STATES:,} states")
        for n in reversed(_next(events, done)):
            if events[n].kind != "read" and (after := step(events[n], state)) is not None:
                stack.append((done | 1 << n, after, (*path, n)))
    return None


def _read_all(events: Sequence[Event], done: int, state: State, path: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Take every read that fits here: it changes nothing, so taking it now forbids nothing later."""
    while fitting := [n for n in _next(events, done) if events[n].kind == "read" and events[n].seen == state]:
        for n in fitting:
            done |= 1 << n
        path = (*path, *fitting)
    return done, path


def _next(events: Sequence[Event], done: int) -> list[int]:
    """Return the operations that may come next: called before any of the others that are left returned."""
    left = [n for n in range(len(events)) if not done >> n & 1]
    first = min((events[n].returned for n in left), default=0)
    return [n for n in left if events[n].called <= first]
