"""The Bank: what a bot knows, in one file. Turns in, operations applied, items found again, erased on demand.

SQLite holds everything (`store`, `migrations`), FAISS and FTS5 find it (`index`, `text_index`). Not here: which
operations are right (`agents`), how the two searches are fused (`retrieval`). The operations are Memory-R1's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np

from memr1_plugin.bank import applying, feedback, journal, portability, reading, upkeep
from memr1_plugin.bank.applying import Writing
from memr1_plugin.bank.embedded import Embedded, Unembedded
from memr1_plugin.bank.encryption import Key, driver
from memr1_plugin.bank.forgetting import Forgotten, forget_item, forget_scope, wipe, wipe_pending
from memr1_plugin.bank.index import IndexCache
from memr1_plugin.bank.index_files import PERSIST_FROM, IndexFiles
from memr1_plugin.bank.journal import Quarantined
from memr1_plugin.bank.quarantine import Held, Quarantine
from memr1_plugin.bank.reading import BankStats
from memr1_plugin.bank.rows import dump, next_version, scope_row, scope_row_or_new
from memr1_plugin.bank.store import MEMORY, Store
from memr1_plugin.bank.text_index import View
from memr1_plugin.embedding import Embedder, Vectors
from memr1_plugin.errors import InputError
from memr1_plugin.operations import Rejection
from memr1_plugin.types import Answer, Change, MemoryItem, Operation, Scope, Turn, aware

__all__ = ["Bank", "BankStats", "Forgotten", "Held"]

CACHE_BYTES = 512 * 1024 * 1024
"""Memory that loaded scopes may take before the longest unused are dropped (one large scope may take more)."""

R = TypeVar("R")


class Bank:
    """An open memory bank. Thread-safe; several processes may open the same file.

    Durable: what `record`, `apply`, `undo` and `forget` returned from is on the disk (WAL, synchronous=FULL): it
    survives a SIGKILL and a power cut.
    """

    def __init__(self, store: Store, embedder: Embedder, *, cache_bytes: int, persist_from: int) -> None:
        self._store = store
        self.quarantine = Quarantine(store)
        self.key: Key = None
        """As it was given; what opens a bank beside this one (`replay`) hands it on."""
        self._cache_bytes, self._persist_from = cache_bytes, persist_from
        self._use(embedder)

    @classmethod
    def open(
        cls,
        path: str | Path,
        embedder: Embedder,
        *,
        busy_timeout_s: float = 30.0,
        key: Key = None,
        cache_bytes: int = CACHE_BYTES,
        persist_from: int = PERSIST_FROM,
        reembed: bool = False,
    ) -> Bank:
        """Open a bank, or make one. ":memory:" is private to this object.

        Args:
            path: the file; it is created readable by its owner alone.
            embedder: must be the one the bank was made with, or see `reembed`.
            busy_timeout_s: how long a write waits for another process's.
            key: encrypts the file (extra `encrypt`); None: the environment variable MEMR1_KEY, or no encryption.
            cache_bytes: memory that loaded indexes may take.
            persist_from: items from which a scope gets an index file beside the bank.
            reembed: embed everything again if the bank was made with another embedder.

        Raises:
            BankError: the file cannot be opened, or is no bank; BankVersionError: it is of a newer version;
            EmbedderMismatchError: another embedder made it.
        """
        how = driver(key, memory=str(path) == MEMORY)
        store = Store(
            path, busy_timeout_s=busy_timeout_s, connect=how.connect, errors=how.errors, encrypted=how.encrypted
        )
        try:
            with store.writing() as connection:
                mine = upkeep.introduce(connection, embedder, bank_id=uuid4().hex)
                if not reembed:
                    upkeep.check_embedder(connection, embedder, store.path)
                upkeep.refresh_words(connection)
            bank = cls(store, embedder, cache_bytes=cache_bytes, persist_from=persist_from)
            bank.key = key
            if not mine:
                bank.reembed(embedder)
            if wipe_pending(store):
                bank._indexes.drop()  # which scope's file shows vectors of the erased is not known any more
                wipe(store)
        except BaseException:
            store.close()
            raise
        return bank

    def _use(self, embedder: Embedder) -> None:
        self.embedder = embedder
        files = None
        if not self._store.memory and not self._store.encrypted:  # an index file would show the vectors
            with self._store.reading() as connection:
                bank_id = upkeep.meta(connection)["bank"]
            files = IndexFiles(self._store, bank_id, embedder.id, self._persist_from)
        self._indexes = IndexCache(embedder.dim, files, self._cache_bytes)

    @property
    def path(self) -> str:
        """The file, or ":memory:"."""
        return self._store.path

    @property
    def encrypted(self) -> bool:
        """True if the file is a SQLCipher database."""
        return self._store.encrypted

    # -- the journal -----------------------------------------------------------------------------------

    def record(
        self,
        turns: Sequence[Turn],
        *,
        managed: Sequence[bool] | None = None,
        caught: Sequence[Sequence[str]] | None = None,
    ) -> list[bool]:
        """Journal turns, durably, in one transaction; True for each that is new (same scope and id: not new).

        Args:
            managed: for each turn whether there is nothing to manage in it; None: there may be in all.
            caught: for each turn the rules that caught it; with any, it goes into quarantine and is not managed.
        """
        if not turns:
            return []
        with self._store.writing() as connection:
            return journal.record(connection, turns, managed=managed, caught=caught)

    def pending(self, scope: Scope | None = None, limit: int | None = None) -> list[Turn]:
        """Return turns recorded and not yet managed, oldest first; of all scopes if none is given."""
        with self._store.reading() as connection:
            return journal.pending(connection, scope, limit)

    def waiting(self) -> int:
        """Count the turns recorded and not yet managed."""
        with self._store.reading() as connection:
            return journal.waiting(connection)

    def waiting_scopes(self) -> list[Scope]:
        """Return the scopes that hold turns not yet managed, the longest waiting first."""
        with self._store.reading() as connection:
            return journal.waiting_scopes(connection)

    def turns(
        self,
        scope: Scope,
        *,
        session: str | None = None,
        limit: int | None = None,
        quarantined: Quarantined = "out",
    ) -> list[Turn]:
        """Return the newest `limit` turns in the order they were recorded; those in quarantine only if asked for."""
        with self._store.reading() as connection:
            return journal.turns(connection, scope, session, limit, quarantined)

    def previous_turn(self, turn: Turn) -> Turn | None:
        """Return the turn before this one in its scope and session."""
        with self._store.reading() as connection:
            return journal.previous(connection, turn)

    # -- changing items --------------------------------------------------------------------------------

    def apply(
        self,
        scope: Scope,
        operations: Sequence[Operation],
        *,
        turns: Sequence[Turn] = (),
        source: str = "manager",
        sources: Sequence[str] | None = None,
        rejections: Sequence[Rejection] = (),
        expires_at: datetime | None = None,
        decided_on: int | None = None,
    ) -> list[Change]:
        """Apply a turn's operations in one transaction, mark its turns managed in it, then update the index.

        Turns that are managed already are left alone with their operations: of several processes that manage one
        pending turn exactly one wins, and the others get []. An operation whose target is gone becomes a rejection.

        Args:
            turns: the turns these operations are about; recorded if they were not.
            source: who decided, for all operations; `sources`: for each.
            rejections: lines of the completion that meant nothing; counted.
            expires_at: when items added here stop being visible.
            decided_on: the scope's `version` that the decision saw; if it is another now, nothing is written.

        Raises:
            Outdated: somebody wrote to the scope after `decided_on`. Read again, decide again.
        """
        applying.check(scope, operations, turns, sources)
        sources = sources or [source] * len(operations)
        decided = list(zip(operations, sources, strict=True))
        expires_at = None if expires_at is None else aware(expires_at)

        def write(writing: Writing, embedded: Embedded) -> list[Change]:
            won = journal.claim(writing.connection, writing.scope_id, turns)
            if turns and not won:
                raise applying.Lost  # rolled back: a version that nothing was written in would outdate others
            if decided_on is not None and writing.version != decided_on + 1:
                raise applying.Outdated
            applying.reject(writing, rejections, won[0].id if won else "")
            mine = [(op, who) for op, who in decided if not applying.lost(op, turns, won)]
            default = won[0].id if len(won) == 1 else ""
            made = [applying.apply_one(writing, op, who, default, expires_at, embedded) for op, who in mine]
            return [change for change in made if change is not None]

        try:
            return self._write(scope, write, applying.texts(scope, operations, aware(None)))
        except applying.Lost:
            return []

    def undo(self, scope: Scope, change_id: int) -> Change:
        """Take one change back: itself a change, and undoing that does the first one again.

        Raises:
            UnknownItemError: the scope has no such change.
            InputError: it was undone already, it is a NOOP, or a later change of the item stands (named).
        """
        return self._write(scope, lambda writing, embedded: applying.undo(writing, change_id, embedded))

    def set_expiry(self, scope: Scope, item_id: int, expires_at: datetime | None, *, source: str = "user") -> Change:
        """Give an item a time after which nobody sees it (None: none). A change like others, and undoable."""
        expires_at = None if expires_at is None else aware(expires_at)
        return self._write(
            scope, lambda w, _: applying.amend(w, item_id, lambda item: replace(item, expires_at=expires_at), source)
        )

    def set_metadata(self, scope: Scope, item_id: int, metadata: Mapping[str, Any], *, source: str = "user") -> Change:
        """Replace an item's metadata. A change like others, and undoable."""
        dump(metadata, "the metadata")
        return self._write(
            scope, lambda w, _: applying.amend(w, item_id, lambda item: replace(item, metadata=dict(metadata)), source)
        )

    def expire(self, now: datetime | None = None) -> int:
        """Make tombstones of all items past their time (they are invisible already); return how many."""
        at = aware(now)
        with self._store.reading() as connection:
            due = upkeep.expired(connection, at)
        n = 0
        for scope in due:
            n += self._write(scope, lambda writing, _: applying.expire(writing, at))
        return n

    def forget(self, scope: Scope, item_id: int | None = None) -> Forgotten:
        """Erase an item, or a whole scope, everywhere: no byte of its texts is left in any file of the bank.

        With an item go its history, its vectors and words, the turns it came from, what other items quote of those
        turns as context, and the feedback that shows it. Takes time in the size of the file: it is writing anew.
        """
        with self._store.writing() as connection:
            scope_id = scope_row(connection, scope)
            if item_id is not None:
                gone = forget_item(connection, scope, scope_id, item_id)
            else:
                gone = forget_scope(connection, scope_id)
        if scope_id is not None:
            self._indexes.drop(scope_id)
        wipe(self._store)
        return gone

    def _write(self, scope: Scope, write: Callable[[Writing, Embedded], R], texts: Iterable[str] = ()) -> R:
        """Run `write` in a transaction, embedding outside of it whatever it turns out to need, then the index."""
        embedded = Embedded(self.embedder)
        embedded.add(texts)
        while True:
            try:
                with self._store.writing() as connection:
                    upkeep.check_embedder(connection, self.embedder, self.path)
                    scope_id = scope_row_or_new(connection, scope)
                    version = next_version(connection, scope_id)
                    made = write(Writing(connection, scope, scope_id, version, aware(None)), embedded)
                break
            except Unembedded as missing:
                embedded.add(missing.texts)
        self._follow(scope_id)
        return made

    def _follow(self, scope_id: int) -> None:
        index = self._indexes.loaded(scope_id)
        if index is not None:
            with self._store.reading() as connection:
                index.catch_up(connection)
            self._indexes.weigh(index)

    # -- reading ---------------------------------------------------------------------------------------

    def version(self, scope: Scope) -> int:
        """Return how many writes to the scope's items there have been: what `apply` compares a decision with."""
        with self._store.reading() as connection:
            return reading.version(connection, scope)

    def get(self, scope: Scope, item_id: int) -> MemoryItem:
        """Return a visible item; UnknownItemError says if it was deleted or has expired."""
        with self._store.reading() as connection:
            return reading.get(connection, scope, item_id, _now())

    def items(
        self,
        scope: Scope,
        *,
        ids: Sequence[int] | None = None,
        as_of: datetime | None = None,
        include_deleted: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[MemoryItem]:
        """Return items by id; those of `ids` in the order of `ids`, unknown ones left out.

        `as_of` shows them as they stood after everything that had been said by then.
        """
        with self._store.reading() as connection:
            if as_of is not None:
                return reading.items_as_of(
                    connection,
                    scope,
                    aware(as_of),
                    ids=ids,
                    include_deleted=include_deleted,
                    limit=limit,
                    offset=offset,
                )
            return reading.items(
                connection, scope, _now(), ids=ids, include_deleted=include_deleted, limit=limit, offset=offset
            )

    def history(self, scope: Scope, item_id: int | None = None, limit: int | None = None) -> list[Change]:
        """Return the newest `limit` changes of an item, or of the scope, oldest first."""
        with self._store.reading() as connection:
            return reading.history(connection, scope, item_id, limit)

    def search_vectors(self, scope: Scope, vector: Vectors, k: int, *, view: View) -> list[tuple[int, float]]:
        """Return up to `k` (item id, cosine) of the scope's visible items, best first.

        Args:
            vector: (dim,) float32.
            view: "text" (what was said) or "context" (that, and the turn before it).
        """
        vector = np.ascontiguousarray(vector, np.float32).reshape(-1)
        if vector.shape != (self.embedder.dim,):
            raise InputError(f"the vector has {vector.size} numbers; expected the embedder's {self.embedder.dim}.")
        norm = float(np.linalg.norm(vector))
        with self._store.reading() as connection:
            upkeep.check_embedder(connection, self.embedder, self.path)
            if k <= 0 or not norm or (scope_id := scope_row(connection, scope)) is None:
                return []
            index = self._indexes.of(scope_id)
            found = index.search_vectors(connection, vector / norm, k, view, _now())
        self._indexes.weigh(index)
        return found

    def search_text(self, scope: Scope, query: str, k: int, *, view: View) -> list[tuple[int, float]]:
        """Return up to `k` (item id, BM25) of visible items that share a word with the query, best first.

        The statistics are those of this scope alone; stop words are out, words are stemmed, nothing is syntax.
        """
        with self._store.reading() as connection:
            if k <= 0 or (scope_id := scope_row(connection, scope)) is None:
                return []
            index = self._indexes.of(scope_id)
            found = index.search_text(connection, query, k, view, _now())
        self._indexes.weigh(index)
        return found

    def scopes(self) -> list[Scope]:
        """Return all scopes that hold or held something."""
        with self._store.reading() as connection:
            return reading.scopes(connection)

    def stats(self, scope: Scope | None = None) -> BankStats:
        """Count what a scope holds, or the whole bank."""
        with self._store.reading() as connection:
            return reading.stats(connection, scope, _now(), upkeep.size(self._store.path))

    # -- feedback --------------------------------------------------------------------------------------

    def add_feedback(self, answer: Answer, correct: str) -> None:
        """Keep what the right answer would have been, with the memories that were shown."""
        with self._store.writing() as connection:
            feedback.add(connection, answer, correct)

    def feedback(self, scope: Scope | None = None) -> list[tuple[Answer, str]]:
        """Return answers with their corrections, oldest first."""
        with self._store.reading() as connection:
            return feedback.read(connection, scope)

    # -- moving and mending ----------------------------------------------------------------------------

    def snapshot(self, scope: Scope) -> Bank:
        """Return a private in-memory bank with a copy of the scope's visible items, under the same ids."""
        copy = Bank.open(":memory:", self.embedder)
        with self._store.reading() as source, copy._store.writing() as target:
            portability.copy_scope(source, target, scope, _now())
        return copy

    def export(self, scope: Scope | None = None) -> Iterator[dict[str, Any]]:
        """Yield JSON rows: turns, items, their history, feedback; of one scope or of all."""
        with self._store.reading() as connection:
            rows = portability.export(connection, scope)
            # A bank in memory has one connection: it is not held for as long as the caller takes over the rows.
            yield from (list(rows) if self._store.memory else rows)

    def import_(self, rows: Iterable[Mapping[str, Any]], *, scope: Scope | None = None) -> int:
        """Take in rows that `export` yielded, all or none, into `scope` or their own; return how many were new.

        Raises:
            DataError: a row cannot be used; it names the row, and nothing was imported.
        """
        bundle = portability.read(rows, scope)
        embedded = Embedded(self.embedder)
        embedded.add(text for item in bundle.items for text in Embedded.texts_of(item))
        with self._store.writing() as connection:
            upkeep.check_embedder(connection, self.embedder, self.path)
            n = portability.write(connection, bundle, embedded)
        return n

    def check(self) -> list[str]:
        """Look for damage; return it in words, [] if there is none."""
        with self._store.reading() as connection:
            return upkeep.check(connection, self.embedder)

    def reembed(self, embedder: Embedder, *, batch: int = 256) -> int:
        """Embed every item again, with another embedder; return how many."""
        n = upkeep.reembed(self._store, embedder, batch)
        self._indexes.drop()
        self._use(embedder)
        return n

    def close(self) -> None:
        """Write the large scopes' index files and close. Twice does no harm."""
        if not self._store.closed:
            self._indexes.save()
        self._store.close()

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _now() -> float:
    return aware(None).timestamp()
