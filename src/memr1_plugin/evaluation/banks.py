"""The banks that an evaluation reads: one a conversation and way of keeping it, filled once for all systems.

Two systems whose Manager is the same, down to its weights, read the same bank (`System.bank`); all systems without a
Manager read the raw one. A bank is a file of the run's folder, filled from where an earlier run stopped. Several
conversations are filled at once, so that their Managers' prompts are computed together.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from memr1_plugin.agents.belief import certain
from memr1_plugin.agents.engine import Engine
from memr1_plugin.agents.manager import Decision, Manager
from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import Embedder
from memr1_plugin.evaluation.datasets import Conversation
from memr1_plugin.evaluation.systems import System
from memr1_plugin.extraction import VerbatimExtractor
from memr1_plugin.memory import Memory
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Scope, Turn

AT_ONCE = 8
"""Conversations whose managed banks are filled at the same time."""
CHUNK = 64
"""Turns of a raw bank written in one transaction, their facts embedded together."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, of)."""


class AlwaysAdd(Manager):
    """The Manager that decides nothing: what is certain goes by the rules, everything else is an ADD."""

    def decide(self, facts: Sequence[Fact], related: Sequence[Sequence[MemoryItem]]) -> Decision:
        """Add every fact that is not certain, without a model call."""
        by_rule = [certain(f, r) if self.settings.certain else None for f, r in zip(facts, related, strict=True)]
        operations = [op or Operation(OperationKind.ADD, f) for f, op in zip(facts, by_rule, strict=True)]
        return Decision(tuple(operations), ("rule",) * len(operations))


@dataclass(frozen=True)
class BankRow:
    """One bank of a run: what it holds, and what it took to fill."""

    bank: str
    conversation: str
    turns: int
    items: int
    """Visible at the end."""
    changes: dict[str, int]
    """Operations by kind."""
    rejections: dict[str, int]
    seconds: float
    """Wall-clock seconds of filling it, over all runs that did. Of conversations filled at once, each counts the
    seconds that passed divided by how many there were."""
    model_calls: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Kept:
    """What a bank kept of one conversation, to be asked."""

    bank: Bank
    retriever: Retriever
    scope: Scope
    settings: Settings

    def search(self, question: str, k: int) -> list[MemoryItem]:
        """The `k` memories that serving would find for `question`, best first."""
        settings = self.settings
        return self.retriever.search(question, self.scope, k, per_speaker=settings.per_speaker, floor=settings.floor)

    def candidates(self, question: str, k: int) -> list[MemoryItem]:
        """Those of them that serving would show the Answer Agent."""
        return self.retriever.candidates(question, self.scope, k)

    def of_turns(self, turn_ids: Collection[str]) -> list[MemoryItem]:
        """The memories that these turns left, oldest first."""
        return [item for item in self.bank.items(self.scope) if set(turn_ids) & set(item.turn_ids)]

    def left(self, conversation: Conversation) -> list[Turn]:
        """The turns that the bank has not managed yet."""
        known = {turn.id for turn in self.bank.turns(self.scope, quarantined="shown")}
        known -= {turn.id for turn in self.bank.pending(self.scope)}
        return [turn for turn in conversation.turns if turn.id not in known]


class Banks:
    """The banks in a run's folder."""

    def __init__(self, folder: Path, embedder: Embedder, settings: Settings) -> None:
        self.folder, self.embedder, self.settings = folder, embedder, settings
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def open(
        self, system: System, conversations: Sequence[Conversation], engine: Callable[[], Engine], progress: Progress
    ) -> Iterator[dict[str, Kept]]:
        """Yield the filled banks that `system` reads, by conversation id; {} if it reads none.

        Args:
            engine: gives the engine of the Manager; not asked when nothing is left to manage.
        """
        if system.bank is None:
            yield {}
            return
        with ExitStack() as stack:
            kept = {c.id: self._open(system, c, stack) for c in conversations}
            todo = [(c, turns) for c in conversations if (turns := kept[c.id].left(c))]
            if todo and system.reads == "managed":
                self._fill_managed(system, todo, engine(), progress)
            for done, (conversation, turns) in enumerate(todo if system.reads != "managed" else (), 1):
                with self._timed(system, conversation):
                    add_raw(kept[conversation.id].bank, turns, self.settings.remember_roles)
                progress(f"{system.bank} banks", done, len(todo))
            yield kept

    def rows(self, system: System, kept: Mapping[str, Kept]) -> list[BankRow]:
        """What the open banks of `system` hold, and what they cost."""
        return [self._row(system, name, one) for name, one in kept.items()]

    def _row(self, system: System, name: str, kept: Kept) -> BankRow:
        held, place = kept.bank.stats(kept.scope), self._path(system, name, "json")
        cost = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
        return BankRow(
            bank=str(system.bank),
            conversation=name,
            turns=held.turns - held.pending,
            items=held.items,
            changes=dict(held.changes),
            rejections=dict(held.rejections),
            seconds=cost.get("seconds", 0.0),
            **{name: cost.get(name, 0) for name in _SPENT},
        )

    def _path(self, system: System, conversation: str, ending: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_." else f"%{ord(c):x}" for c in conversation)
        return self.folder / f"{system.bank}-{safe}.{ending}"

    def _open(self, system: System, conversation: Conversation, stack: ExitStack) -> Kept:
        bank = stack.enter_context(Bank.open(self._path(system, conversation.id, "db"), self.embedder))
        retriever = Retriever(bank, self.embedder, self.settings)
        return Kept(bank, retriever, conversation.scope, self.settings)

    def _fill_managed(
        self,
        system: System,
        todo: Sequence[tuple[Conversation, Sequence[Turn]]],
        engine: Engine,
        progress: Progress,
    ) -> None:
        total, done = sum(len(turns) for _, turns in todo), count(1)
        stop = threading.Event()
        at_once = min(AT_ONCE, len(todo))

        def fill(conversation: Conversation, turns: Sequence[Turn]) -> None:
            with self._managing(system, conversation, engine) as memory, self._timed(
                system, conversation, memory, at_once
            ):  # fmt: skip
                for turn in turns:
                    if stop.is_set():
                        return
                    memory.observe(turn)
                    progress(f"{system.bank} banks, turns", next(done), total)

        with ThreadPoolExecutor(at_once, thread_name_prefix="memr1-eval") as threads:
            running = [threads.submit(fill, conversation, turns) for conversation, turns in todo]
            try:
                for one in running:
                    one.result()
            finally:
                stop.set()  # one that failed, or Ctrl-C, stops the others after their turn

    @contextmanager
    def _managing(self, system: System, conversation: Conversation, engine: Engine) -> Iterator[Memory]:
        path = self._path(system, conversation.id, "db")
        with Memory.open(path, engine=engine, embedder=self.embedder, settings=self.settings) as memory:
            if system.always_add:
                memory.manager = AlwaysAdd(engine, self.settings)
            yield memory

    @contextmanager
    def _timed(
        self, system: System, conversation: Conversation, memory: Memory | None = None, at_once: int = 1
    ) -> Iterator[None]:
        """Add what the block cost to the bank's own record, also when it fails half-way."""
        place = self._path(system, conversation.id, "json")
        before = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
        began = time.perf_counter()
        try:
            yield
        finally:
            counts = memory.meter.counts if memory is not None else {}
            cost = {name: before.get(name, 0) + counts.get(name, 0) for name in _SPENT}
            seconds = before.get("seconds", 0.0) + (time.perf_counter() - began) / at_once
            place.write_text(json.dumps({**cost, "seconds": seconds}), encoding="utf-8")


_SPENT = ("model_calls", "prompt_tokens", "output_tokens")


def add_raw(bank: Bank, turns: Sequence[Turn], roles: Collection[str] = ("user",)) -> None:
    """Remember the turns of one scope as they stand, with no Manager: every fact of these roles is an ADD."""
    extractor = VerbatimExtractor()
    for start in range(0, len(turns), CHUNK):
        chunk = turns[start : start + CHUNK]
        bank.record(chunk)
        told = [turn for turn in chunk if turn.role in roles]
        facts = [fact for turn in told for fact in extractor.extract(turn, bank.previous_turn(turn))]
        bank.apply(turns[0].scope, [Operation(OperationKind.ADD, f) for f in facts], turns=chunk, source="rule")


def added_up(banks: Sequence[BankRow]) -> dict[str, Any]:
    """Return the banks of several conversations as one, as JSON."""
    turns = sum(one.turns for one in banks)
    kinds = sorted({kind for one in banks for kind in one.changes})
    return {
        "name": banks[0].bank,
        "turns": turns,
        "items": sum(one.items for one in banks),
        "changes": {kind: sum(one.changes.get(kind, 0) for one in banks) for kind in kinds},
        "rejections": sum(sum(one.rejections.values()) for one in banks),
        "seconds_per_turn": sum(one.seconds for one in banks) / turns if turns else None,
        "model_calls": sum(one.model_calls for one in banks),
        "prompt_tokens": sum(one.prompt_tokens for one in banks),
        "output_tokens": sum(one.output_tokens for one in banks),
    }
