"""Text to vectors: one protocol, and sentence-transformers behind it.

Not here: where weights are found (`agents.models`), the index (`bank.index`). Any LangChain
``Embeddings`` or LlamaIndex ``BaseEmbedding`` is accepted through `as_embedder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""(n, dim) float32, each row of length 1, so that a dot product is the cosine."""


@runtime_checkable
class Embedder(Protocol):
    """What the bank and retrieval need. Implementations are thread-safe."""

    @property
    def id(self) -> str:
        """Name and version of the vectors ("all-MiniLM-L6-v2"): stored in the bank, compared at open."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 unit vectors."""
