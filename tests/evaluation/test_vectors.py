"""Vectors are kept in a file: a text is embedded once, in this run and the next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memr1_plugin.embedding import Vectors
from memr1_plugin.evaluation.vectors import KeptEmbedder
from memr1_plugin.testing import HashEmbedder


class Counting(HashEmbedder):
    """An embedder that keeps what it was asked for."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__(dim)
        self.calls: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(list(texts))
        return super().embed(texts)


def test_a_text_is_embedded_once_over_runs(tmp_path: Path) -> None:
    """The file gives the same vectors as the embedder, which is asked for new texts alone, shortest first."""
    inner, texts = Counting(), ["my cat is called Rex", "Rome", "", "Rome"]
    kept = KeptEmbedder(inner, tmp_path / "v.db")
    first = kept.embed(texts)
    assert np.array_equal(first, HashEmbedder(64).embed(texts))
    assert inner.calls == [["", "Rome", "my cat is called Rex"]]
    kept.close()
    again = KeptEmbedder(inner, tmp_path / "v.db")
    assert np.array_equal(again.embed(texts), first) and len(inner.calls) == 1
    assert (again.id, again.dim, again.embed([]).shape) == (inner.id, 64, (0, 64))
    again.close()


def test_vectors_of_another_embedder_are_not_taken(tmp_path: Path) -> None:
    """The same text by another embedder is another vector."""
    one, other = Counting(64), Counting(32)
    for inner in (one, other):
        kept = KeptEmbedder(inner, tmp_path / "v.db")
        assert kept.embed(["Rome"]).shape == (1, inner.dim)
        kept.close()
    assert len(other.calls) == 1


def test_threads_share_the_file(tmp_path: Path) -> None:
    """Banks are filled by several threads at once."""
    kept = KeptEmbedder(HashEmbedder(64), tmp_path / "v.db")
    found: list[bool] = []

    def work(n: int) -> None:
        texts = [f"text {i % 20}" for i in range(n, n + 30)]
        found.append(np.array_equal(kept.embed(texts), HashEmbedder(64).embed(texts)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept.close()
    assert found == [True] * 8
