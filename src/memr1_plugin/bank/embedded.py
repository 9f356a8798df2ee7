"""Vectors of texts, computed before a transaction and looked up inside it.

An embedder may take seconds and must not hold the write lock. A write that finds inside its transaction that it
needs a text nobody embedded raises `Unembedded`; the bank rolls back, embeds, and runs it again.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from memr1_plugin.embedding import Embedder, Vectors, embed_questions
from memr1_plugin.errors import MemoryR1Error, ModelError
from memr1_plugin.types import Fact, MemoryItem

BATCH = 256

Vectorised = tuple[Vectors, "Vectors | None"]
"""The (dim,) vectors of an item's two views; None for the second where it is the first."""


class Unembedded(Exception):  # noqa: N818 - not an error: the bank catches it and embeds
    """These texts are needed inside a transaction and have no vectors yet."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(f"{len(texts)} texts without vectors")
        self.texts = texts


class Embedded:
    """Texts and their vectors, for one write."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._vectors: dict[str, Vectors] = {}

    @staticmethod
    def texts_of(item: MemoryItem | Fact) -> list[str]:
        """Return the texts of an item's views, or a fact's: itself, and behind the turn before it if there was one."""
        own = f"{item.speaker}: {item.text}"
        return [own, f"{item.context} {own}"] if item.context else [own]

    def add(self, texts: Iterable[str]) -> None:
        """Embed the texts that have no vector yet, in batches of `BATCH`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            self._vectors.update(zip(part, embed(self._embedder, part), strict=True))

    def of(self, item: MemoryItem) -> Vectorised:
        """Return the vectors of an item's views; `Unembedded` if they are not here."""
        texts = self.texts_of(item)
        if any(text not in self._vectors for text in texts):
            raise Unembedded(texts)
        return self._vectors[texts[0]], self._vectors[texts[1]] if len(texts) > 1 else None


def embed(embedder: Embedder, texts: list[str], *, questions: bool = False) -> Vectors:
    """Return (n, dim) float32 unit vectors, or raise `ModelError` if the embedder failed or returned something else."""
    try:
        vectors = np.asarray(embed_questions(embedder, texts) if questions else embedder.embed(texts), np.float32)
    except MemoryR1Error:
        raise
    except Exception as error:
        raise ModelError(
            f"embedder {embedder.id} failed on {len(texts)} texts ({type(error).__name__}: {error}). "
            "Nothing was written."
        ) from error
    if vectors.shape != (len(texts), embedder.dim):
        raise ModelError(
            f"embedder {embedder.id} returned shape {vectors.shape} for {len(texts)} texts; "
            f"expected {(len(texts), embedder.dim)}. Nothing was written."
        )
    if not np.isfinite(vectors).all():
        raise ModelError(f"embedder {embedder.id} returned a vector that is not finite. Nothing was written.")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)
