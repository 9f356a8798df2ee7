"""Index files beside the bank, so that a large scope need not be rebuilt at every start.

Only a cache of a cache: written whole or not at all, checked by a checksum, and a file that is torn, foreign, older
than an erasure or missing is dropped with a line in the log and built again from SQLite. Small scopes have none.

The bank notes each file's mark. A bank that was restored from a backup does not know the mark of a later file, whose
vectors may be of memories that it never had; and a scope that was erased from meanwhile gets no file back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import struct
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from memr1_plugin.bank.store import Store
from memr1_plugin.bank.vectors import VIEWS, ScopeVectors, faiss
from memr1_plugin.errors import BankError
from memr1_plugin.logs import fields

log = logging.getLogger("memr1_plugin.bank")

MAGIC = b"memr1 index 1\n"
PERSIST_FROM = 20_000
"""Items from which a scope gets a file; below, reading SQLite takes less than half a second."""

_DIGEST = 32


@dataclass(frozen=True)
class SavedIndex:
    """A scope's vectors as of a version of the scope."""

    version: int
    epoch: int
    vectors: ScopeVectors


class IndexFiles:
    """The folder `<db>.index/` with one file per large scope."""

    def __init__(self, store: Store, bank: str, embedder: str, persist_from: int = PERSIST_FROM) -> None:
        self.folder = Path(f"{store.path}.index")
        self._store = store
        self._origin = {"bank": bank, "embedder": embedder}
        self._persist_from = persist_from

    def path(self, scope_id: int) -> Path:
        """Return where a scope's file is, or would be."""
        return self.folder / f"{scope_id}.faiss"

    def write(self, scope_id: int, saved: SavedIndex) -> bool:
        """Write a scope's file if it is large enough; False if not, or if the disk would not have it."""
        if len(saved.vectors) < self._persist_from:
            return False
        path, mark = self.path(scope_id), uuid4().hex
        torn = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            _write(torn, self._parts(saved, mark))
            os.replace(torn, path)
            if not self._note(scope_id, saved, mark):
                _drop(path)
                return False
        except (OSError, BankError) as error:
            log.warning(
                "index file %s not written (%s); it will be rebuilt from the bank",
                path,
                error,
                extra=fields("index_not_written", scope_id=scope_id),
            )
            _drop(torn)
            return False
        return True

    def _note(self, scope_id: int, saved: SavedIndex, mark: str) -> bool:
        """Keep the file's mark in the bank; False if something was erased from the scope since it was read."""
        with self._store.writing() as connection:
            row = connection.execute("SELECT epoch FROM scopes WHERE id = ?", (scope_id,)).fetchone()
            if row is None or row[0] != saved.epoch:
                return False
            connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (_key(scope_id), mark))
        return True

    def read(self, connection: sqlite3.Connection, scope_id: int) -> SavedIndex | None:
        """Read a scope's file; None, and the file gone, if there is none that is whole and known to the bank."""
        path = self.path(scope_id)
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (_key(scope_id),)).fetchone()
        try:
            return self._parse(np.fromfile(path, np.uint8), row[0] if row else "")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, struct.error) as error:
            log.warning(
                "index file %s is of no use (%s); rebuilding it from the bank",
                path,
                error,
                extra=fields("index_dropped", scope_id=scope_id),
            )
            _drop(path)
            return None

    def erase(self, scope_id: int | None = None) -> None:
        """Delete a scope's file, or all of them; half-written ones too."""
        try:
            for path in self.folder.glob("*.faiss*" if scope_id is None else f"{scope_id}.faiss*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise BankError(
                f"an index file of {self.folder} cannot be deleted ({error}). Delete it yourself."
            ) from error

    def _parts(self, saved: SavedIndex, mark: str) -> list[bytes]:
        arrays = [
            saved.vectors.ids.values,
            np.packbits(saved.vectors.live),
            *(faiss().serialize_index(saved.vectors.indexes[view]) for view in VIEWS),
        ]
        header = json.dumps(
            {
                **self._origin,
                "mark": mark,
                "version": saved.version,
                "epoch": saved.epoch,
                "places": len(saved.vectors.ids),
                "sizes": [a.nbytes for a in arrays],
            }
        ).encode()
        return [MAGIC, struct.pack("<I", len(header)), header, *(a.tobytes() for a in arrays)]

    def _parse(self, data: NDArray[np.uint8], mark: str) -> SavedIndex:
        # Views into one array throughout: a large scope's file has hundreds of megabytes.
        body, digest = data[:-_DIGEST], data[-_DIGEST:].tobytes()
        if body[: len(MAGIC)].tobytes() != MAGIC or hashlib.blake2b(body.data, digest_size=_DIGEST).digest() != digest:
            raise ValueError("torn, or not an index file")
        at = len(MAGIC) + 4
        size = struct.unpack("<I", body[len(MAGIC) : at].tobytes())[0]
        header: dict[str, Any] = json.loads(body[at : at + size].tobytes())
        if {key: header[key] for key in self._origin} != self._origin:
            raise ValueError("it belongs to another bank or embedder")
        if header["mark"] != mark:
            raise ValueError("the bank does not know it, as after restoring a backup")
        ends = np.cumsum([at + size, *header["sizes"]]).tolist()
        ids, live, *indexes = (body[start:end] for start, end in pairwise(ends))
        wrapped = {view: faiss().deserialize_index(part) for view, part in zip(VIEWS, indexes, strict=True)}
        kept = np.unpackbits(live, count=header["places"]).astype(np.bool_)
        vectors = ScopeVectors.restored(wrapped, np.frombuffer(ids.tobytes(), np.int64).copy(), kept)
        return SavedIndex(header["version"], header["epoch"], vectors)


def _key(scope_id: int) -> str:
    return f"index:{scope_id}"


def forget_mark(connection: sqlite3.Connection, scope_id: int) -> None:
    """Forget which index file a scope had (inside a write transaction)."""
    connection.execute("DELETE FROM meta WHERE key = ?", (_key(scope_id),))


def _drop(path: Path) -> None:
    # A file that cannot be deleted either will be refused again: its checksum is looked at first.
    with suppress(OSError):
        path.unlink()


def _write(path: Path, parts: list[bytes]) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
