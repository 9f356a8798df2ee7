"""What is kept in memory of each scope: its items' ids, lengths, expiry, and its vectors in FAISS.

A cache: loaded on use, dropped when cold, brought up to date from SQLite by the scope's version counter (own writes
and those of other processes alike), rebuilt whenever it is missing, behind or damaged. SQLite is the truth.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memr1_plugin.bank.index_files import IndexFiles, SavedIndex
from memr1_plugin.bank.text_index import View, bm25
from memr1_plugin.bank.vectors import VIEWS, Growing, ScopeVectors
from memr1_plugin.embedding import Vectors
from memr1_plugin.logs import fields

log = logging.getLogger("memr1_plugin.bank")

_ROW = "i.id, i.deleted, i.expires, i.n_text, i.n_context, v.text, v.context"
_CHUNK = 5_000
_GONE = 1 << 62  # the epoch of a scope that was erased altogether


class ScopeIndex:
    """One scope in memory. Its lock is held while it is read or brought up to date."""

    def __init__(self, scope_id: int, dim: int, files: IndexFiles | None) -> None:
        self.scope_id = scope_id
        self.dim = dim
        self.lock = threading.Lock()
        self._files = files
        self._version, self._epoch, self._saved = -1, -1, -1
        self._vectors: ScopeVectors | None = None
        self._forget_all(version=-1, epoch=-1)

    @property
    def nbytes(self) -> int:
        """Roughly what it takes in memory."""
        places = 0 if self._vectors is None else len(self._vectors.ids)
        return 4_000 + 40 * len(self._ids) + places * (2 * 4 * self.dim + 120)

    def search_vectors(
        self, connection: sqlite3.Connection, vector: Vectors, k: int, view: View, now: float
    ) -> list[tuple[int, float]]:
        """Return up to `k` (item id, cosine) of visible items, best first."""
        with self.lock:
            vectors = self._loaded(connection, self._catch_up(connection))
            self._expire(now)
            return vectors.search(vector, k, view)

    def search_text(
        self, connection: sqlite3.Connection, query: str, k: int, view: View, now: float
    ) -> list[tuple[int, float]]:
        """Return up to `k` (item id, BM25) of visible items that share a word with the query, best first."""
        with self.lock:
            self._catch_up(connection)
            self._expire(now)
            ids, lengths, live = self._ids.values, self._lengths[view].values, self._live.values
            scores = bm25(connection, self.scope_id, query, view, ids, lengths, live)
            hits = np.flatnonzero(scores)
            if len(hits) > k:
                hits = hits[np.argpartition(-scores[hits], k - 1)[:k]]
            # Of equals the newest first: it is what was said last.
            best = hits[np.lexsort((-ids[hits], -scores[hits]))]
            return list(zip(ids[best].tolist(), scores[best].tolist(), strict=True))

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Bring what is loaded to the version that the connection sees."""
        with self.lock:
            self._catch_up(connection)

    def _catch_up(self, connection: sqlite3.Connection) -> tuple[int, int]:
        row = connection.execute("SELECT version, epoch FROM scopes WHERE id = ?", (self.scope_id,)).fetchone()
        version, epoch = row or (0, _GONE)
        if epoch > self._epoch:
            self._forget_all(version, epoch)
            self._load(connection)
        elif epoch == self._epoch and version > self._version:
            self._apply(self._changed(connection, self._version))
            self._version = version
        if self._vectors is not None and self._vectors.stale:
            self._vectors = None
        return version, epoch

    def save(self) -> None:
        """Write the vectors' index file, if the scope is large enough for one and has changed since."""
        with self.lock:
            if self._files is None or self._vectors is None or self._saved == self._version:
                return
            if self._files.write(self.scope_id, SavedIndex(self._version, self._epoch, self._vectors)):
                self._saved = self._version

    def _forget_all(self, version: int, epoch: int) -> None:
        self._version, self._epoch, self._saved = version, epoch, -1
        self._ids = Growing(np.empty(0, np.int64))
        self._live = Growing(np.empty(0, np.bool_))
        self._expires = Growing(np.empty(0, np.float64))
        self._lengths: dict[View, Growing] = {view: Growing(np.empty(0, np.float32)) for view in VIEWS}
        self._next_expiry = float(np.inf)
        self._vectors = None

    def _load(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(
            "SELECT id, deleted, expires, n_text, n_context FROM items WHERE scope_id = ? ORDER BY id", (self.scope_id,)
        ).fetchall()
        if not rows:
            return
        ids, deleted, expires, n_text, n_context = zip(*rows, strict=True)
        self._ids = Growing(np.array(ids, np.int64))
        self._live = Growing(~np.array(deleted, np.bool_))
        self._expires = Growing(np.array([np.inf if e is None else e for e in expires], np.float64))
        text, context = np.array(n_text, np.float32), np.array(n_context, np.float32)
        self._lengths = {"text": Growing(text), "context": Growing(text + context)}
        self._next_expiry = float(np.min(self._expires.values[self._live.values], initial=np.inf))

    def _changed(self, connection: sqlite3.Connection, since: int) -> Iterable[tuple[Any, ...]]:
        columns = _ROW if self._vectors is not None else _ROW.replace("v.text, v.context", "NULL, NULL")
        join = "JOIN item_vectors v ON v.item_id = i.id" if self._vectors is not None else ""
        return connection.execute(
            f"SELECT {columns} FROM items i {join} WHERE i.scope_id = ? AND i.version > ? ORDER BY i.id",
            (self.scope_id, since),
        )

    def _apply(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for item_id, deleted, expires, n_text, n_context, text, context in rows:
            at = int(np.searchsorted(self._ids.values, item_id))
            if at == len(self._ids):
                for column in (self._ids, self._live, self._expires, *self._lengths.values()):
                    column.append(0)
                self._ids.values[at] = item_id
            self._live.values[at] = not deleted
            self._expires.values[at] = np.inf if expires is None else expires
            self._lengths["text"].values[at] = n_text
            self._lengths["context"].values[at] = n_text + n_context
            if not deleted:
                self._next_expiry = min(self._next_expiry, self._expires.values[at])
            if self._vectors is not None:
                self._move_vector(item_id, deleted, text, context)

    def _move_vector(self, item_id: int, deleted: int, text: bytes, context: bytes | None) -> None:
        assert self._vectors is not None
        if deleted:
            self._vectors.remove(item_id)
        else:
            own = np.frombuffer(text, np.float32)
            self._vectors.put(item_id, {"text": own, "context": np.frombuffer(context, np.float32) if context else own})

    def _expire(self, now: float) -> None:
        """Take out what has passed its time since the last look."""
        if now < self._next_expiry:
            return
        past = (self._expires.values <= now) & self._live.values
        self._live.values[past] = False
        if self._vectors is not None:
            for item_id in self._ids.values[past].tolist():
                self._vectors.remove(item_id)
        self._next_expiry = float(np.min(self._expires.values[self._live.values], initial=np.inf))

    def _loaded(self, connection: sqlite3.Connection, seen: tuple[int, int]) -> ScopeVectors:
        if self._vectors is None:
            # Another thread may have read a newer version than this connection sees: what is loaded here is of the
            # older one, and the next look brings it up to date (putting an item twice does no harm).
            self._version, self._epoch = seen
            self._vectors = self._from_file(connection) or self._from_rows(connection)
            for item_id in self._ids.values[~self._live.values].tolist():
                self._vectors.remove(item_id)
        return self._vectors

    def _from_file(self, connection: sqlite3.Connection) -> ScopeVectors | None:
        found = self._files.read(connection, self.scope_id) if self._files is not None else None
        if found is None or found.epoch != self._epoch or found.version > self._version:
            return None
        self._vectors, self._saved = found.vectors, found.version
        for item_id, deleted, _, _, _, text, context in self._changed(connection, found.version):
            self._move_vector(item_id, deleted, text, context)
        return self._vectors if not self._vectors.stale else None

    def _from_rows(self, connection: sqlite3.Connection) -> ScopeVectors:
        where = "FROM items i JOIN item_vectors v ON v.item_id = i.id WHERE i.scope_id = ? AND i.deleted = 0"
        n = connection.execute(f"SELECT count(*) {where}", (self.scope_id,)).fetchone()[0]
        cursor = connection.execute(f"SELECT v.item_id, v.text, v.context {where} ORDER BY i.id", (self.scope_id,))
        return ScopeVectors(*_read(cursor, n, self.dim), self.dim)


def _read(cursor: sqlite3.Cursor, n: int, dim: int) -> tuple[NDArray[np.int64], dict[View, Vectors]]:
    """Read `n` rows of (item id, text blob, context blob or None) into arrays."""
    ids = np.empty(n, np.int64)
    text, context = np.empty((n, dim), np.float32), np.empty((n, dim), np.float32)
    done = 0
    while rows := cursor.fetchmany(_CHUNK):
        part = slice(done, done + len(rows))
        ids[part] = [row[0] for row in rows]
        text[part] = np.frombuffer(b"".join(row[1] for row in rows), np.float32).reshape(-1, dim)
        context[part] = np.frombuffer(b"".join(row[2] or row[1] for row in rows), np.float32).reshape(-1, dim)
        done += len(rows)
    return ids, {"text": text, "context": context}


class IndexCache:
    """The scopes' indexes in memory, the longest unused dropped when they take more than `max_bytes`."""

    def __init__(self, dim: int, files: IndexFiles | None, max_bytes: int) -> None:
        self._dim = dim
        self._files = files
        self._max_bytes = max_bytes
        self._scopes: OrderedDict[int, tuple[ScopeIndex, int]] = OrderedDict()
        self._bytes = 0
        self._guard = threading.Lock()

    def of(self, scope_id: int) -> ScopeIndex:
        """Return the scope's index, empty if it is not in memory; it catches up when it is asked something."""
        with self._guard:
            if scope_id in self._scopes:
                self._scopes.move_to_end(scope_id)
            else:
                self._scopes[scope_id] = (ScopeIndex(scope_id, self._dim, self._files), 0)
            return self._scopes[scope_id][0]

    def loaded(self, scope_id: int) -> ScopeIndex | None:
        """Return the scope's index if it is in memory."""
        with self._guard:
            found = self._scopes.get(scope_id)
            return found[0] if found else None

    def weigh(self, index: ScopeIndex) -> None:
        """Count what an index takes now, and drop cold ones if all take too much; never this one."""
        dropped: list[ScopeIndex] = []
        with self._guard:
            if self._scopes.get(index.scope_id, (None, 0))[0] is index:
                self._bytes += index.nbytes - self._scopes[index.scope_id][1]
                self._scopes[index.scope_id] = (index, index.nbytes)
            while self._bytes > self._max_bytes and next(iter(self._scopes)) != index.scope_id:
                _, (cold, taken) = self._scopes.popitem(last=False)
                self._bytes -= taken
                dropped.append(cold)
        for cold in dropped:
            log.debug(
                "scope %d dropped from memory", cold.scope_id, extra=fields("index_unloaded", scope_id=cold.scope_id)
            )
            cold.save()

    def drop(self, scope_id: int | None = None) -> None:
        """Forget a scope's index, or all, in memory and on disk."""
        with self._guard:
            gone = list(self._scopes) if scope_id is None else [scope_id]
            for one in gone:
                self._bytes -= self._scopes.pop(one, (None, 0))[1]
        if self._files is not None:
            self._files.erase(scope_id)

    def save(self) -> None:
        """Write the index files of the large scopes in memory."""
        with self._guard:
            indexes = [index for index, _ in self._scopes.values()]
        for index in indexes:
            index.save()
