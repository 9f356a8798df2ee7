"""The vectors of one scope in FAISS: two views, tombstones filtered inside the search.

A cache of `item_vectors`, never the truth, and without locks (`index` holds them). Exact up to `FLAT_MAX` vectors,
an inverted file above, which is trained on a sample because it has to be rebuilt from SQLite in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memr1_plugin.bank.text_index import View
from memr1_plugin.embedding import Vectors

FLAT_MAX = 50_000
"""Largest scope that is searched exactly (about 3 ms there with 384 dimensions). In a larger one an inverted file
reads as many vectors as that, of the nearest lists: half of them at 100,000, a twentieth at a million."""

FEW_DEAD = 1_000
"""Tombstones that are no reason to build a scope's index again."""

VIEWS: tuple[View, View] = ("text", "context")

_SAMPLE_PER_LIST = 40
_ITERATIONS = 5


def faiss() -> Any:
    """Import FAISS on first use: `import memr1_plugin` must not load it."""
    import faiss as module

    return module


@contextmanager
def one_thread() -> Iterator[None]:
    """Run FAISS on this thread alone: for one vector, waking the others takes longer than they save."""
    before = faiss().omp_get_max_threads()
    faiss().omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss().omp_set_num_threads(before)


class Growing:
    """A numpy column that appends in amortised constant time."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._data = values
        self._n = len(values)

    def __len__(self) -> int:
        return self._n

    @property
    def values(self) -> NDArray[Any]:
        """The (n,) values so far; writing into it writes into the column."""
        return self._data[: self._n]

    def append(self, value: Any) -> None:
        """Add one value at the end."""
        if self._n == len(self._data):
            grown = np.zeros(max(16, 2 * self._n), self._data.dtype)
            grown[: self._n] = self._data
            self._data = grown
        self._data[self._n] = value
        self._n += 1


class ScopeVectors:
    """FAISS indexes of a scope's live items, one a view; both know a vector by the same place."""

    def __init__(self, ids: NDArray[np.int64], vectors: dict[View, Vectors], dim: int) -> None:
        self._wrap({view: build(vectors[view], dim) for view in VIEWS}, ids, np.ones(len(ids), np.bool_))

    @classmethod
    def restored(cls, indexes: dict[View, Any], ids: NDArray[np.int64], live: NDArray[np.bool_]) -> ScopeVectors:
        """Wrap indexes that were read from a file."""
        made = cls.__new__(cls)
        made._wrap(indexes, ids, live)
        return made

    def _wrap(self, indexes: dict[View, Any], ids: NDArray[np.int64], live: NDArray[np.bool_]) -> None:
        self.indexes = indexes
        self.ids = Growing(ids)
        self._bits = Growing(np.packbits(live, bitorder="little"))
        places = np.flatnonzero(live)
        self._place = dict(zip(ids[places].tolist(), places.tolist(), strict=True))
        self._built = len(ids)

    def __len__(self) -> int:
        return len(self._place)

    @property
    def live(self) -> NDArray[np.bool_]:
        """(places,) whether each place holds a vector that counts."""
        return np.unpackbits(self._bits.values, count=len(self.ids), bitorder="little").astype(np.bool_)

    @property
    def stale(self) -> bool:
        """True when so much is tombstones, or so much is new, that building it again pays."""
        places = len(self.ids)
        dead = places - len(self._place)
        outgrown = places > 1.5 * FLAT_MAX and places > 3 * self._built
        flat_too_long = self._built <= FLAT_MAX and places > 1.5 * FLAT_MAX
        return dead > max(FEW_DEAD, len(self._place)) or outgrown or flat_too_long

    def put(self, item_id: int, vectors: dict[View, Vectors]) -> None:
        """Add an item's (dim,) vectors, or replace them: the old place becomes a tombstone."""
        self.remove(item_id)
        place = len(self.ids)
        with one_thread():
            for view in VIEWS:
                self.indexes[view].add(np.ascontiguousarray(vectors[view]).reshape(1, -1))
        self.ids.append(item_id)
        if place % 8 == 0:
            self._bits.append(0)
        self._bits.values[place >> 3] |= 1 << (place & 7)
        self._place[item_id] = place

    def remove(self, item_id: int) -> None:
        """Make an item's place a tombstone, if it has one."""
        place = self._place.pop(item_id, None)
        if place is not None:
            self._bits.values[place >> 3] &= ~(1 << (place & 7)) & 0xFF

    def search(self, vector: Vectors, k: int, view: View) -> list[tuple[int, float]]:
        """Return the `k` best live (item id, cosine), best first."""
        k = min(k, len(self._place))
        if k <= 0:
            return []
        index = self.indexes[view]
        lists = getattr(index, "nlist", 1)
        found = self._search(index, vector, k, math.ceil(lists * min(1, FLAT_MAX / index.ntotal)))
        # Where most of the lists that were read are tombstones, the rest is elsewhere.
        return found if len(found) == k else self._search(index, vector, k, lists)

    def _search(self, index: Any, vector: Vectors, k: int, probes: int) -> list[tuple[int, float]]:
        selector = faiss().IDSelectorBitmap(self._bits.values)
        if hasattr(index, "nlist"):
            parameters = faiss().SearchParametersIVF(sel=selector, nprobe=probes)
        else:
            parameters = faiss().SearchParameters(sel=selector)
        with one_thread():
            cosines, places = index.search(vector.reshape(1, -1), k, params=parameters)
        kept = places[0] >= 0
        ids = self.ids.values[places[0][kept]]
        return list(zip(ids.tolist(), cosines[0][kept].tolist(), strict=True))


def build(vectors: Vectors, dim: int) -> Any:
    """Build the index of (n, dim) vectors: exact for few, an inverted file for many."""
    n = len(vectors)
    index = faiss().IndexFlatIP(dim)
    if n > FLAT_MAX:
        lists = int(0.6 * np.sqrt(n))
        index = faiss().IndexIVFFlat(index, dim, lists, faiss().METRIC_INNER_PRODUCT)
        index.cp.niter = _ITERATIONS
        index.cp.max_points_per_centroid = _SAMPLE_PER_LIST
        sample = np.random.default_rng(0).choice(n, min(n, lists * _SAMPLE_PER_LIST), replace=False)
        index.train(vectors[np.sort(sample)])
    if n:
        index.add(vectors)
    return index
