"""The memory of a bot: observe what is said, search it, answer from it.

This file is the data flow, top to bottom: a turn is journaled, facts are extracted, related memories
retrieved, operations decided, and applied in one transaction. What each step does is in its own module;
frameworks are met in `adapters`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from memr1_plugin.agents.answerer import Answerer
from memr1_plugin.agents.engine import Engine
from memr1_plugin.agents.manager import Manager
from memr1_plugin.background import BackgroundWriter
from memr1_plugin.backlog import Backlog
from memr1_plugin.bank.applying import Outdated
from memr1_plugin.bank.bank import Bank, Forgotten, Held
from memr1_plugin.bank.encryption import Key
from memr1_plugin.bank.journal import Quarantined
from memr1_plugin.embedding import Embedder, as_embedder
from memr1_plugin.errors import InputError, MemoryR1Error, ModelError, UnknownItemError
from memr1_plugin.extraction import Extractor, as_extractor, extract
from memr1_plugin.guard import Guard, Redactor
from memr1_plugin.locks import ScopeLocks
from memr1_plugin.logs import fields
from memr1_plugin.meter import Meter, Stats, act
from memr1_plugin.retrieval import Retriever
from memr1_plugin.screening import Screener
from memr1_plugin.settings import Settings
from memr1_plugin.shared import OnePerFile
from memr1_plugin.twins import twin as _twin
from memr1_plugin.types import Answer, Change, Fact, MemoryItem, Operation, OperationKind, Scope, Turn, aware, new_id

log = logging.getLogger(__name__)
NOBODY = Scope()


_shared: OnePerFile[Memory] = OnePerFile()


class Memory:
    """A bank, two agents, and the flow between them. Thread-safe; open one per database file and share it."""

    def __init__(
        self,
        bank: Bank,
        *,
        engine: Engine,
        embedder: Embedder,
        extractor: Extractor,
        settings: Settings | None = None,
        guard: Guard | None = None,
        write: Literal["sync", "background"] = "sync",
    ) -> None:
        """Join parts that exist. `Memory.open` finds and makes them."""
        if write not in ("sync", "background"):
            raise InputError(f'write is {write!r}; expected "sync" or "background".')
        self.bank, self.engine, self.embedder = bank, engine, embedder
        self.settings = settings or Settings()
        self.extractor = extractor
        self.guard = guard or Guard(self.settings)
        self.retriever = Retriever(bank, embedder, self.settings)
        self.manager = Manager(engine, self.settings)
        self.answerer = Answerer(engine)
        self.meter = Meter.of(bank)
        self._locks = ScopeLocks()
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="memr1")
        self._backlog = Backlog(
            bank.waiting_scopes, partial(self._manage_scope, limit=None if write == "sync" else 16),
            retry_s=self.settings.retry_s,
        )  # fmt: skip
        self._closed = False
        self._writer: BackgroundWriter | None = None
        if write == "background":
            self._writer = BackgroundWriter(self._manage_some, retry_s=self.settings.retry_s)
            self._writer.wake()

    @classmethod
    def open(
        cls,
        path: str | Path = "memory.db",
        *,
        model: str | Path | None = None,
        loras: str | Path | None = None,
        engine: Engine | None = None,
        embedder: Embedder | Any | None = None,
        extractor: Extractor | Any | None = None,
        settings: Settings | None = None,
        screener: Screener | None = None,
        redactor: Redactor | None = None,
        key: Key = None,
        write: Literal["sync", "background"] = "sync",
    ) -> Memory:
        """Open the memory in the database file `path`, made if it does not exist.

        Nothing heavy happens here: the model and the embedder load when they are first needed, and all
        memories of a process share them.

        Args:
            path: the SQLite file; ":memory:" for one that is gone when closed.
            model: a preset, a hub id or a local folder of a causal LM; None: SmolLM2-135M in 4-bit.
            loras: a folder with ``manager/`` and ``answer/`` inside; None: those that ship for the model.
            engine: any `Engine`, instead of `model` and `loras`.
            embedder: any `Embedder`, LangChain ``Embeddings`` or LlamaIndex embedding; None: MiniLM.
            extractor: any `Extractor`, "verbatim" (None), or a LangChain / LlamaIndex LLM that extracts;
                "llm" lets the memory's own model extract.
            settings: the few knobs.
            screener: any `Screener`, instead of the rules that keep instructions out of the memory.
            redactor: any `Redactor`, instead of the libraries of the extra `redact`.
            key: encrypts the file (extra `encrypt`): a passphrase, or a function that returns it; None: MEMR1_KEY.
            write: "sync" manages a turn before `observe` returns; "background" journals it (durable) and
                lets a thread manage it.

        Raises:
            BankError: the file is from a newer version, or made with another embedder, or not a bank.
            InputError: `model` and `engine` are both given.
        """
        if engine is not None and (model is not None or loras is not None):
            raise InputError("both an engine and a model or loras were given; expected one. An engine brings its own.")
        if engine is None:
            from memr1_plugin.agents.choice import shared_engine

            engine = shared_engine(model, loras)
        made_embedder, settings = as_embedder(embedder), settings or Settings()
        guard = Guard(settings, screener=screener, redactor=redactor)
        return cls(
            Bank.open(path, made_embedder, key=key),
            engine=engine,
            embedder=made_embedder,
            extractor=as_extractor(extractor, engine),
            settings=settings,
            guard=guard,
            write=write,
        )

    @classmethod
    def shared(cls, path: str | Path = "memory.db", **options: Any) -> Memory:
        """Return this process's one memory of `path` and `options` (those of `open`), opened if need be."""
        return _shared.get(path, options, cls.open)

    # -- writing ---------------------------------------------------------------------------------------

    def observe(
        self,
        text: str | Turn,
        *,
        speaker: str = "user",
        scope: Scope = NOBODY,
        at: datetime | None = None,
        id: str | None = None,
        role: str = "user",
        session: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Change]:
        """Take in one turn: durable before anything else happens, then managed.

        Returns the changes to the bank; in background mode an empty list at once. The same `id` twice in
        one scope is one turn.

        Raises:
            InputError: the turn cannot be stored (empty, too long, not text); nothing was written.
            ModelError: the Manager's model failed; the turn is journaled and managed later.
        """
        if isinstance(text, Turn):
            return self.observe_many([text])
        turn = Turn(text, speaker, scope, aware(at), id or new_id(), role, session, dict(metadata or {}))
        return self.observe_many([turn])

    @act("observe")
    def observe_many(self, turns: Sequence[Turn]) -> list[Change]:
        """Take in several turns in order, as `observe` does one; all are journaled in one transaction."""
        self._check_open()
        turns = [self.guard.clean(turn) for turn in turns]
        caught = [self.guard.caught(turn) for turn in turns]
        # What is never remembered (the bot's own words) is managed as it stands: no commit of its own for that.
        managed = [turn.role not in self.settings.remember_roles for turn in turns]
        with self.meter.stage("journal"):
            new = self.bank.record(turns, managed=managed, caught=caught)
        self.meter.add("turns", sum(new))
        self.meter.caught(rules for rules, is_new in zip(caught, new, strict=True) if is_new)
        return self._manage_or_wake(dict.fromkeys(turn.scope for turn in turns))

    def _manage_or_wake(self, scopes: Collection[Scope]) -> list[Change]:
        if self._writer is not None:
            self._writer.wake()
            most = self.settings.max_waiting
            self._writer.wait_until(lambda: self.bank.waiting() <= most)
            return []
        self._backlog.catch_up(but=scopes)
        try:
            return [change for scope in scopes for change in self._manage_scope(scope)]
        except MemoryR1Error:
            self._backlog.failed()
            raise

    def _manage_scope(self, scope: Scope, limit: int | None = None) -> list[Change]:
        """Manage the scope's pending turns, oldest first: one at a time, whoever else is managing them."""
        changes: list[Change] = []
        with self._locks.of(scope):
            for turn in self.bank.pending(scope, limit=limit):
                if self._closed:  # the background writer stops after the turn in progress
                    break
                changes += self._manage(turn)
        return changes

    @act("manage")
    def _manage(self, turn: Turn) -> list[Change]:
        """Manage one turn; anew if another process wrote to its scope meanwhile, so that no write of it is lost."""
        while True:
            try:
                return self._decide_and_apply(turn, decided_on=self.bank.version(turn.scope))
            except Outdated:
                self.meter.add("decided_again")
                log.debug("a turn is decided again: its scope was written to", extra=fields("decided_again"))

    def _decide_and_apply(self, turn: Turn, decided_on: int) -> list[Change]:
        """Turn -> facts -> related memories -> operations -> changes."""
        facts = self._extract(turn)
        if (rules := self.guard.of_facts(facts)) and self.bank.quarantine.hold(turn, rules):
            self.meter.caught([rules])
            return []
        with self.meter.stage("retrieve"):
            self.retriever.look_ahead(facts)
            related = [self.retriever.related(fact, turn.scope) for fact in facts]
        with self.meter.stage("manage"):
            decision = self.manager.decide(facts, related)
        self.meter.spent(decision.completion)
        with self.meter.stage("apply"):
            changes = self.bank.apply(
                turn.scope,
                decision.operations,
                turns=[turn],
                sources=decision.sources,
                rejections=decision.rejections,
                decided_on=decided_on,
            )
        self.meter.managed(facts, changes, decision.rejections)
        return changes

    def _extract(self, turn: Turn) -> list[Fact]:
        if turn.role not in self.settings.remember_roles:
            return []
        previous = self.guard.previous(self.bank.previous_turn(turn))
        with self.meter.stage("extract"):
            return extract(self.extractor, turn, previous)

    def _manage_some(self) -> bool:
        """One round of the background writer: the oldest turns of each scope that waits; says whether more wait."""
        self._backlog.work()
        return bool(self.bank.waiting())

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every journaled turn is managed.

        Raises:
            ModelError: the model failed, or the time ran out; the turns stay pending and lose nothing.
        """
        self._check_open()
        if self._writer is None:
            self._backlog.work()
            return
        if not self._writer.wait_idle(timeout_s):
            n, why = self.bank.waiting(), self._writer.failure
            raise ModelError(
                f"{n} turns are still pending ({why or f'{timeout_s} s were not enough'}). They are journaled; "
                "flush again, or let the next process that opens this memory manage them."
            ) from why

    # -- reading ---------------------------------------------------------------------------------------

    @act("search")
    def search(
        self,
        query: str,
        *,
        scope: Scope = NOBODY,
        k: int = 10,
        as_of: datetime | None = None,
        speaker: str | None = None,
    ) -> list[MemoryItem]:
        """Return at most `k` memories of `scope` that are relevant to `query`, best first; no model call."""
        settings = self.settings
        return self._recall(
            lambda: self.retriever.search(
                query, scope, k, as_of=as_of, speaker=speaker, per_speaker=settings.per_speaker, floor=settings.floor
            )
        )

    @act("search")
    def _candidates(self, question: str, scope: Scope, k: int | None) -> list[MemoryItem]:
        return self._recall(lambda: self.retriever.candidates(question, scope, k or self.settings.candidates))

    def _recall(self, find: Callable[[], list[MemoryItem]]) -> list[MemoryItem]:
        self._check_open()
        if self._writer is None and not self._backlog.tried:
            self._backlog.catch_up()
        with self.meter.stage("retrieve"):
            found = find()
        self.meter.add("recalled", len(found))
        return found

    @act("select")
    def select(
        self, query: str, *, scope: Scope = NOBODY, k: int | None = None, at: datetime | None = None
    ) -> list[MemoryItem]:
        """Return the memories that the Answer Agent finds to matter for `query` (memory distillation alone)."""
        items = self._candidates(query, scope, k)
        with self.meter.stage("answer"):
            selected, completion = self.answerer.select(query, items, aware(at))
        self.meter.spent(completion)
        return selected

    @act("answer")
    def answer(
        self, question: str, *, scope: Scope = NOBODY, k: int | None = None, at: datetime | None = None
    ) -> Answer:
        """Answer from the memories of `scope`, naming the ones used, or abstain.

        Raises:
            ModelError: the Answer Agent's model failed.
        """
        items = self._candidates(question, scope, k)
        with self.meter.stage("answer"):
            [(answer, completion)] = self.answerer.answer_many([(question, items, aware(at))], scope=scope)
        self.meter.spent(completion)
        return answer

    def turns(
        self,
        *,
        scope: Scope = NOBODY,
        session: str | None = None,
        limit: int | None = 20,
        quarantined: Quarantined = "withheld",
    ) -> list[Turn]:
        """Return the newest `limit` turns of the journal, oldest first; of one dialogue if `session` is given.

        Turns in quarantine keep their place without their words, unless `quarantined` is "out" or "shown".
        """
        self._check_open()
        return self.bank.turns(scope, session=session, limit=limit, quarantined=quarantined)

    def history(self, item_id: int | None = None, *, scope: Scope = NOBODY) -> list[Change]:
        """Return what happened to one memory item, or to all of the scope, oldest first."""
        self._check_open()
        return self.bank.history(scope, item_id)

    def stats(self, scope: Scope | None = None) -> Stats:
        """Return what the bank holds (of `scope`, or in all) and what this process did and spent."""
        self._check_open()
        return Stats(self.bank.stats(scope), self.meter.counts, self.meter.seconds)

    # -- taking back, correcting, erasing --------------------------------------------------------------

    def undo(self, change: Change | int, *, scope: Scope = NOBODY) -> Change:
        """Take one change back; it is itself a change, and the history keeps both."""
        self._check_open()
        return self.bank.undo(scope, change.id if isinstance(change, Change) else change)

    def correct(self, item_id: int, text: str, *, scope: Scope = NOBODY) -> Change:
        """Let the user replace the text of one memory item.

        Raises:
            InputError: the text was caught by screening; it is in quarantine, and nothing was replaced.
        """
        turn = self.guard.clean(Turn(text, scope=scope, metadata={"corrects": item_id}))
        if rules := self.guard.rules([turn.text]):
            self.meter.caught([rules] if self.bank.record([turn], caught=[rules])[0] else [])
            raise InputError(
                f"memory {item_id} stays as it is: the text looks like instructions to a model ({', '.join(rules)}). "
                f"It is in quarantine as turn {turn.id}; `release` lets it go."
            )
        return self._by_user(scope, Operation(OperationKind.UPDATE, target=item_id, text=turn.text))

    def remove(self, item_id: int, *, scope: Scope = NOBODY) -> Change:
        """Let the user delete one memory item: a tombstone that `undo` lifts. `forget` erases."""
        return self._by_user(scope, Operation(OperationKind.DELETE, target=item_id))

    def _by_user(self, scope: Scope, operation: Operation) -> Change:
        self._check_open()
        with self._locks.of(scope):
            if operation.target is not None:
                self.bank.get(scope, operation.target)
            changes = self.bank.apply(scope, [operation], source="user")
        if not changes:  # deleted by another process since it was read
            raise UnknownItemError(f"memory item {operation.target} was deleted meanwhile. `undo` brings it back.")
        return changes[0]

    @act("forget")
    def forget(self, item_id: int | None = None, *, scope: Scope = NOBODY) -> Forgotten:
        """Erase one memory item and the turns it came from, or the whole scope, from everywhere. No undo."""
        self._check_open()
        with self._locks.of(scope):
            return self.bank.forget(scope, item_id)

    def quarantine(self, scope: Scope | None = None) -> list[Held]:
        """Return the turns that screening caught, of `scope` or of all, oldest first. Show them to people alone."""
        self._check_open()
        return self.bank.quarantine.held(scope)

    def release(self, turn_id: str, *, scope: Scope = NOBODY) -> list[Change]:
        """Let a turn out of quarantine: it is managed as if it had never been there."""
        self._check_open()
        self.bank.quarantine.release(scope, turn_id)
        return self._manage_or_wake([scope])

    def discard(self, turn_id: str, *, scope: Scope = NOBODY) -> Forgotten:
        """Erase a turn in quarantine from everywhere. No undo."""
        self._check_open()
        return self.bank.quarantine.discard(scope, turn_id)

    # -- training data, portability --------------------------------------------------------------------

    def feedback(self, answer: Answer, *, correct: str) -> None:
        """Keep what the right answer would have been: a question record for training."""
        self._check_open()
        clean = self.guard.clean_value
        shown = Answer.from_json(clean(answer.to_json(), answer.scope))
        self.bank.add_feedback(shown, clean(correct, answer.scope))

    def replay(
        self, scope: Scope | None = None, *, into: str | Path, progress: Callable[[int, int], None] | None = None
    ) -> Stats:
        """Rebuild a bank from the journal with this memory's agents, into a new file.

        Args:
            scope: replay one scope; None: all of them.
            into: path of the new bank; it must not exist.
            progress: called with (turns done, turns in all).
        """
        self._check_open()
        from memr1_plugin.replay import replay

        return replay(self, scope, into, progress)

    def export(self, scope: Scope | None = None) -> Iterator[dict[str, Any]]:
        """Yield the JSON rows of one scope, or of all: turns, items and their history."""
        self._check_open()
        return self.bank.export(scope)

    def import_(self, rows: Iterable[Mapping[str, Any]], *, trusted: bool = False) -> int:
        """Take in rows that `export` yielded; returns how many were new. All or none.

        Args:
            trusted: take memories in as they are, without screening and redaction: a backup of your own.
        """
        self._check_open()
        return self.bank.import_(rows if trusted else self.guard.rows(rows))

    # -- the async twins -------------------------------------------------------------------------------

    aobserve = _twin(observe)
    aobserve_many = _twin(observe_many)
    aflush = _twin(flush)
    asearch = _twin(search)
    aselect = _twin(select)
    aanswer = _twin(answer)
    aturns = _twin(turns)
    ahistory = _twin(history)
    astats = _twin(stats)
    aundo = _twin(undo)
    acorrect = _twin(correct)
    aremove = _twin(remove)
    aforget = _twin(forget)
    aquarantine = _twin(quarantine)
    arelease = _twin(release)
    adiscard = _twin(discard)
    afeedback = _twin(feedback)
    areplay = _twin(replay)

    # -- life ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the writer after its turn in progress and close the file; pending turns stay journaled."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        self._threads.shutdown(wait=True)
        self.bank.close()

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._closed

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("this memory is closed; open it again with Memory.open.")
