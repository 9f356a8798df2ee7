"""Vectors of texts kept in a file: the same turns and questions are embedded once, for all systems and all runs.

Not an index and not a bank: a table from text to vector, which can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memr1_plugin.embedding import Embedder, QuestionEmbedder, Vectors

BATCH = 256
"""Texts computed and written together: what an interrupted run loses at most."""


class KeptEmbedder:
    """An `Embedder` that looks in a file before it computes. Thread-safe."""

    def __init__(self, embedder: Embedder, path: str | Path) -> None:
        self._embedder = embedder
        self._lock = threading.Lock()
        self._known: dict[bytes, Vectors] = {}
        self._file = sqlite3.connect(path, check_same_thread=False)
        self._file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        for key, vector in self._file.execute("SELECT key, vector FROM vectors"):
            self._known[key] = np.frombuffer(vector, np.float32)

    @property
    def id(self) -> str:
        """The id of the embedder behind it: the vectors are the same."""
        return self._embedder.id

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._embedder.dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors, computing those that the file lacks, by length."""
        keys = [hashlib.sha256(f"{self.id}\n{text}".encode()).digest() for text in texts]
        with self._lock:
            new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
            by_length = sorted(new.items(), key=lambda pair: len(pair[1]))
            for start in range(0, len(by_length), BATCH):
                self._compute(by_length[start : start + BATCH])
            return np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, self.dim), np.float32)

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """As `embed`, where questions are read like any text; else computed anew: what reads them has no name here."""
        inner = self._embedder
        return inner.embed_questions(texts) if isinstance(inner, QuestionEmbedder) else self.embed(texts)

    def _compute(self, batch: Sequence[tuple[bytes, str]]) -> None:
        vectors = np.ascontiguousarray(self._embedder.embed([text for _, text in batch]), np.float32)
        rows = [(key, vector.tobytes()) for (key, _), vector in zip(batch, vectors, strict=True)]
        with self._file:
            self._file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        self._known.update((key, vector) for (key, _), vector in zip(batch, vectors, strict=True))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
