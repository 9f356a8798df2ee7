"""A bank built anew from a journal, by other agents or another extractor.

It writes a new file and leaves the old one as it is. What is in quarantine there is in quarantine here; what the
journal gives out has passed the guard, or was released by a person, and is not looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import InputError
from memr1_plugin.guard import Guard
from memr1_plugin.types import Scope

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory
    from memr1_plugin.meter import Stats


def replay(
    memory: Memory, scope: Scope | None, into: str | Path, progress: Callable[[int, int], None] | None = None
) -> Stats:
    """Replay the journal of `memory`, of one scope or of all, with its agents into a new bank."""
    if str(into) != ":memory:" and Path(into).exists():
        raise InputError(f"{into} exists already; expected a new path. Replay never writes over a bank.")
    scopes = [scope] if scope is not None else memory.bank.scopes()
    turns = [turn for each in scopes for turn in memory.bank.turns(each)]
    held = memory.bank.quarantine.held(scope)
    bank = Bank.open(into, memory.embedder, key=memory.bank.key)
    with type(memory)(
        bank,
        engine=memory.engine,
        embedder=memory.embedder,
        extractor=memory.extractor,
        settings=memory.settings,
        guard=Guard(replace(memory.settings, screen=False, redact="off")),
    ) as copy:
        bank.record([one.turn for one in held], caught=[one.rules for one in held])
        for done, turn in enumerate(turns, 1):
            copy.observe(turn)
            if progress is not None:
                progress(done, len(turns))
        return copy.stats()
