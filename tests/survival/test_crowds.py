"""Crowds on one file: no lock reaches a user, no update is lost, every scope's history is linearisable."""

from __future__ import annotations

from pathlib import Path

import crowd
from linear import Event, order


def test_processes_and_tasks_on_one_file_are_linearisable(tmp_path: Path) -> None:
    """Three processes of eight tasks each record calls and answers; an order that explains them is searched."""
    report = crowd.run(tmp_path, processes=3, tasks=8, calls=5, seed=3, n_scopes=3)
    assert report.failures == ()


def test_the_event_loop_goes_on_while_memories_are_written(tmp_path: Path) -> None:
    """Every write is done and the loop's own thread did none of it: its work is a small part of the whole."""
    report = crowd.stalls(tmp_path, tasks=16, calls=6)
    assert report.failures == () and dict(report.numbers)["longest stall"].endswith("ms (target: 50 ms)")


def add(text: str, called: int, returned: int) -> Event:
    """An add."""
    return Event(called, returned, "add", after=text)


def read(called: int, returned: int, *seen: str) -> Event:
    """A read."""
    return Event(called, returned, "read", seen=frozenset(seen))


def replace(before: str, after: str, called: int, returned: int) -> Event:
    """An exchange of one text for another."""
    return Event(called, returned, "replace", before, after)


def test_the_search_finds_an_order_where_there_is_one() -> None:
    """Calls that overlap may take effect in any order; an add may be seen before it returned."""
    assert order([add("a", 0, 9), read(1, 2), read(3, 4, "a"), read(5, 6, "a")]) is not None
    assert order([add("a", 0, 9), add("b", 0, 9), read(1, 2, "b"), read(3, 4, "a", "b")]) is not None
    failed = Event(0, 1 << 62, "add", after="b", maybe=True)
    assert order([add("a", 0, 1), failed, read(2, 3, "a"), read(4, 5, "a", "b")]) is not None
    assert order([add("a", 0, 1), failed, read(2, 3, "a")]) is not None
    chain = [add("a", 0, 1), replace("b", "c", 2, 9), replace("a", "b", 2, 9), read(10, 11, "c")]
    found = order(chain)
    assert found is not None and [event.after for event in found[:3]] == ["a", "b", "c"]


def test_the_search_refuses_what_no_order_explains() -> None:
    """A stale read, an update of what is not there, a lost update, and a text that is back again."""
    assert order([add("a", 0, 1), read(2, 3)]) is None
    assert order([add("a", 0, 9), read(1, 2, "a"), read(3, 4)]) is None
    assert order([add("a", 0, 1), replace("a", "b", 2, 9), replace("a", "c", 2, 9)]) is None
    assert order([add("a", 0, 1), add("b", 0, 1), read(2, 5, "a"), read(2, 5, "b")]) is None
    assert order([add("a", 0, 1), Event(2, 3, "remove", before="a"), read(4, 5, "a")]) is None
