"""How fast the bank is: insert, delete, search, rebuild and memory, with many small scopes and with one large one.

    python benchmarks/bank.py                                  # 100,000 items: over 1,000 scopes, then in one
    python benchmarks/bank.py --items 20000 --scopes 1 --json

Embedding is left out: vectors are drawn around topic centres (384 dimensions, as MiniLM's), texts from a Zipf
vocabulary of 30,000 words. Every insert and delete is a transaction of its own, on the disk when it returns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import Vectors
from memr1_plugin.types import Fact, Operation, OperationKind, Scope

DIM = 384
TOPICS = 400
VOCABULARY = 30_000
START = datetime(2026, 1, 1, tzinfo=timezone.utc)

TARGETS = {
    "insert p95 ms": 5.0,
    "delete p95 ms": 5.0,
    "search vectors p95 ms": 20.0,
    "search text p95 ms": 20.0,
    "rebuild vectors/s": 50_000.0,
}


class TopicEmbedder:
    """Vectors around the centre of the topic that a text names, at the price of a random draw."""

    id = "topics-384"
    dim = DIM

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)
        self._centres = self._rng.normal(size=(TOPICS, DIM)).astype(np.float32)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, 384) unit vectors; a text is of the topic of its last word."""
        topics = [zlib.crc32(text.rsplit(" ", 1)[-1].encode()) % TOPICS for text in texts]
        vectors = self._centres[topics] + self._rng.normal(size=(len(texts), DIM)).astype(np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


class Sayings:
    """Texts of about twelve words, drawn with Zipf's frequencies."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(2)
        share = 1 / np.arange(10, VOCABULARY + 10) ** 0.95
        self._edges = np.cumsum(share / share.sum())
        letters = np.array(list("aeioubcdfghklmnprst"))
        self._words = ["".join(self._rng.choice(letters, 3 + n % 6)) for n in range(VOCABULARY)]

    def text(self, n: int) -> str:
        """Return one text of `n` words."""
        return " ".join(self._words[i] for i in np.searchsorted(self._edges, self._rng.random(n)).tolist())

    def operation(self, n: int) -> Operation:
        """Return an ADD of one fact with the turn before it."""
        fact = Fact(self.text(12), f"speaker{n % 2}", START + timedelta(minutes=n), f"t{n}", context=self.text(12))
        return Operation(OperationKind.ADD, fact)


@dataclass(frozen=True)
class Timed:
    """Milliseconds of some calls, one a call: by the clock, and of the processor."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]

    def row(self, name: str) -> dict[str, float]:
        """Return p50 and p95 by the clock, and of the processor, which no disk and no other work stretches."""
        rows = ((f"{name}", self.wall), (f"{name} cpu", self.cpu))
        return {f"{what} p{q} ms": float(np.percentile(taken, q)) for what, taken in rows for q in (50, 95)}

    @property
    def seconds(self) -> float:
        """All calls together, by the clock."""
        return float(self.wall.sum()) / 1_000


def timed(calls: Sequence[Callable[[], object]]) -> Timed:
    """Run the calls one after the other."""
    wall, cpu = [], []
    for call in calls:
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        wall.append(1_000 * (time.perf_counter() - start))
        cpu.append(1_000 * (time.process_time() - start_cpu))
    return Timed(np.array(wall), np.array(cpu))


def resident_mb() -> float:
    """Return the process's resident memory in MB (Linux; 0 elsewhere)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6


def fill(bank: Bank, scopes: Sequence[Scope], sayings: Sayings, first: int, n: int) -> None:
    """Add `n` items, evenly over the scopes, many to a transaction."""
    batch = max(1, min(500, n // len(scopes)))
    for start in range(first, first + n, batch):
        operations = [sayings.operation(i) for i in range(start, min(start + batch, first + n))]
        bank.apply(scopes[(start // batch) % len(scopes)], operations)


def writes(
    bank: Bank, scopes: Sequence[Scope], sayings: Sayings, embedder: TopicEmbedder, first: int
) -> dict[str, float]:
    """Insert 300 items one by one into scopes whose index is loaded, then delete them one by one."""
    busy = scopes[:20]
    for scope in busy:
        bank.search_vectors(scope, embedder.embed(["warm up"])[0], 5, view="text")
    places = [busy[i % len(busy)] for i in range(300)]
    added: list[int] = []

    def insert(i: int) -> None:
        [change] = bank.apply(places[i], [sayings.operation(first + i)])
        assert change.item_id is not None
        added.append(change.item_id)

    found = timed([lambda i=i: insert(i) for i in range(300)]).row("insert")  # type: ignore[misc]
    deletes = [Operation(OperationKind.DELETE, target=item_id) for item_id in added]
    calls = [lambda s=s, d=d: bank.apply(s, [d]) for s, d in zip(places, deletes, strict=True)]  # type: ignore[misc]
    return found | timed(calls).row("delete")


def searches(bank: Bank, scopes: Sequence[Scope], sayings: Sayings, embedder: TopicEmbedder) -> dict[str, float]:
    """Search 400 times in scopes that are loaded: one view, 60 best."""
    rng = np.random.default_rng(3)
    places = [scopes[i] for i in rng.integers(0, len(scopes), 400)]
    for scope in dict.fromkeys(places):
        bank.search_vectors(scope, embedder.embed(["warm up"])[0], 5, view="text")
    vectors = embedder.embed([sayings.text(6) for _ in places])
    queries = [sayings.text(6) for _ in places]
    by_vector = [
        lambda s=s, v=v: bank.search_vectors(s, v, 60, view="context")  # type: ignore[misc]
        for s, v in zip(places, vectors, strict=True)
    ]
    by_text = [
        lambda s=s, q=q: bank.search_text(s, q, 60, view="context")  # type: ignore[misc]
        for s, q in zip(places, queries, strict=True)
    ]
    found = timed(by_vector).row("search vectors") | timed(by_text).row("search text")
    return found | {"search vectors recall@10": recall(bank, places[:40], vectors[:40])}


def recall(bank: Bank, scopes: Sequence[Scope], vectors: Vectors) -> float:
    """Return the share of the truly nearest ten that the index finds."""
    hits = []
    for scope, vector in zip(scopes, vectors, strict=True):
        with bank._store.reading() as connection:
            rows = connection.execute(
                "SELECT v.item_id, coalesce(v.context, v.text) FROM item_vectors v JOIN items i ON i.id = v.item_id "
                "JOIN scopes s ON s.id = i.scope_id WHERE s.key = ? AND i.deleted = 0",
                (scope.key,),
            ).fetchall()
        cosines = np.frombuffer(b"".join(blob for _, blob in rows), np.float32).reshape(-1, DIM) @ vector
        nearest = {rows[place][0] for place in np.argsort(-cosines)[:10]}
        hits.append(len(nearest & {item_id for item_id, _ in bank.search_vectors(scope, vector, 10, view="context")}))
    return sum(hits) / (10 * len(hits))


def loads(path: Path, scopes: Sequence[Scope], embedder: TopicEmbedder, items: int, *, files: bool) -> dict[str, float]:
    """Open the bank anew and bring every scope's index up, from SQLite or from index files."""
    with Bank.open(path, embedder, cache_bytes=8 << 30, persist_from=20_000 if files else 1 << 60) as bank:
        vector = embedder.embed(["warm up"])[0]
        taken = timed([lambda s=s: bank.search_vectors(s, vector, 5, view="text") for s in scopes])  # type: ignore[misc]
        seconds = taken.seconds
        if files:
            return {"load from file s": seconds}
        return {
            "rebuild s": seconds,
            "rebuild cpu s": float(taken.cpu.mean()) * len(scopes) / 1_000,
            "rebuild vectors/s": 2 * items / seconds,
            "loaded RSS MB": resident_mb(),
        }


def run(items: int, n_scopes: int) -> dict[str, float]:
    """Measure one shape of a bank."""
    scopes = [Scope(user=f"user {n}") for n in range(n_scopes)]
    sayings, embedder, found = Sayings(), TopicEmbedder(), {"items": float(items), "scopes": float(n_scopes)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.db"
        with Bank.open(path, embedder) as bank:
            found["bare RSS MB"] = resident_mb()
            done = 0
            for size in [size for size in (1_000, 20_000) if size < items]:
                fill(bank, scopes, sayings, done, size - done)
                done = size
                found |= {f"{k} at {size}": v for k, v in writes(bank, scopes, sayings, embedder, 10**7 + size).items()}
            start = time.perf_counter()
            fill(bank, scopes, sayings, done, items - done)
            found["bulk insert items/s"] = (items - done) / (time.perf_counter() - start)
            found |= writes(bank, scopes, sayings, embedder, 2 * 10**7)
            found |= searches(bank, scopes, sayings, embedder)
            found["file MB"] = bank.stats().bytes / 1e6
        found |= loads(path, scopes, embedder, items, files=False)
        if n_scopes == 1:
            found |= loads(path, scopes, embedder, items, files=True)
        with Bank.open(path, embedder) as bank:
            [item] = bank.items(scopes[0], limit=1)
            found["forget one item s"] = timed([lambda: bank.forget(scopes[0], item.id)]).seconds
    return found


def show(results: Sequence[dict[str, float]]) -> None:
    """Print a table, one column a shape, with the targets."""
    table = Table("measure", *(f"{r['items']:,.0f} items, {r['scopes']:,.0f} scopes" for r in results), "target")
    for name in dict.fromkeys(name for result in results for name in result):
        target = TARGETS.get(name.split(" at ")[0])
        bound = "" if target is None else f"{'>' if name.endswith('/s') else '<'} {target:,.0f}"
        table.add_row(name, *(f"{r[name]:,.2f}" if name in r else "" for r in results), bound)
    Console().print(table)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--items", type=int, default=100_000, help="items in the bank")
    parser.add_argument("--scopes", type=int, action="append", help="scopes they are in (may be given more than once)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    results = [run(arguments.items, n) for n in arguments.scopes or [1_000, 1]]
    if arguments.json:
        print(json.dumps(results))
    else:
        show(results)


if __name__ == "__main__":
    main()
