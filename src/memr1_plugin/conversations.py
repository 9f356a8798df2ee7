"""Taking a recorded conversation into a memory, turn by turn, so that it can stop and go on.

Not a loader: files are read by `evaluation.datasets`. Turn ids make it idempotent: what the journal holds is
not taken in again, so the same call after a crash or Ctrl-C goes on where it stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memr1_plugin.errors import DataError, InputError
from memr1_plugin.evaluation.datasets import Conversation, load
from memr1_plugin.memory import Memory
from memr1_plugin.types import Change, Scope


@dataclass(frozen=True)
class Intake:
    """What taking in one conversation did, and what each turn cost."""

    conversation: str
    scope: Scope
    turns: int
    """Turns of the conversation."""
    new: int
    """Turns that the journal did not hold before."""
    changes: Mapping[str, int]
    """Operations by kind and who decided: {"ADD:rule": 3, "UPDATE:manager": 1, ...}."""
    seconds: Sequence[float]
    """Wall-clock seconds of each new turn, in order."""

    @property
    def operations(self) -> dict[str, int]:
        """Operations by kind alone: {"ADD": 3, "UPDATE": 1}."""
        kinds: Counter[str] = Counter()
        for name, n in self.changes.items():
            kinds[name.partition(":")[0]] += n
        return dict(kinds)

    def seconds_at(self, share: float) -> float:
        """Seconds that `share` of the new turns stayed within (0.5: the median); 0 if there were none."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what `memr1 add --conversation --json` prints of one conversation."""
        total = sum(self.seconds)
        return {
            "conversation": self.conversation,
            "scope": self.scope.to_json(),
            "turns": self.turns,
            "new": self.new,
            "operations": self.operations,
            "changes": dict(self.changes),
            "seconds": round(total, 3),
            "seconds_per_turn": {
                "mean": round(total / self.new, 3) if self.new else 0.0,
                "p50": round(self.seconds_at(0.5), 3),
                "p95": round(self.seconds_at(0.95), 3),
            },
        }


def read(path: str | Path, *, only: str | None = None, scope: Scope | None = None) -> list[Conversation]:
    """Read the conversations of a file, or the one called `only`.

    Each goes into a scope of its own, ``Scope(user=<conversation id>)``; `scope` puts a single one elsewhere.
    """
    conversations = load(path)
    ids = [c.id for c in conversations]
    if only is not None:
        conversations = [c for c in conversations if c.id == only]
    if not conversations:
        raise DataError(f"{path} holds no conversation {only!r}; it has {_some(ids)}.")
    if scope is None or scope == Scope():
        return conversations
    if len(conversations) > 1:
        raise InputError(
            f"{path} holds {len(conversations)} conversations ({_some(ids)}), which one scope would mix. "
            "Name one of them, or leave the scope out: each then gets its own."
        )
    return [replace(c, turns=tuple(replace(t, scope=scope) for t in c.turns)) for c in conversations]


def _some(ids: Sequence[str], n: int = 8) -> str:
    return ", ".join(ids[:n]) + (f" and {len(ids) - n} more" if len(ids) > n else "")


def add(
    memory: Memory, conversation: Conversation, progress: Callable[[int, int], None] = lambda done, total: None
) -> Intake:
    """Take in a conversation's turns, oldest first; those that the journal holds already are only counted.

    Args:
        memory: where to.
        conversation: from `read`.
        progress: called with (turns done, turns in all).
    """
    memory.flush()  # what an interrupted run left pending comes first
    scope = conversation.turns[0].scope if conversation.turns else conversation.scope
    known = {turn.id for turn in memory.turns(scope=scope, limit=None)}
    changes: Counter[str] = Counter()
    seconds: list[float] = []
    for done, turn in enumerate(conversation.turns, 1):
        if turn.id not in known:
            start = time.perf_counter()
            changes.update(_names(memory.observe(turn)))
            seconds.append(time.perf_counter() - start)
        progress(done, len(conversation.turns))
    memory.flush()
    return Intake(conversation.id, scope, len(conversation.turns), len(seconds), dict(changes), seconds)


def _names(changes: Iterable[Change]) -> list[str]:
    return [f"{change.kind.value}:{change.source}" for change in changes]
