"""What encryption at rest costs: a plain and an encrypted bank side by side, the same rows, turn by turn in turns.

Milliseconds of wall clock and of CPU for opening, for a turn with one new memory (journal, operation, index; no model)
and for a search; vectors come from a hash, so that only the bank is measured.

    python benchmarks/encryption.py [--items 2000] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from memr1_plugin import Scope
from memr1_plugin.bank.bank import Bank
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Fact, Operation, OperationKind, Turn, aware

ANA = Scope(user="ana")
KINDS = {"plain": None, "passphrase": "correct horse battery staple", "raw key": "0123456789abcdef" * 4}
WORDS = ("dog", "cat", "garden", "Lisbon", "Berlin", "nurse", "bicycle", "tea", "piano", "mountain", "sister", "boat")


def text(n: int) -> str:
    """The n-th thing that somebody said."""
    return f"My {WORDS[n % 12]} number {n} likes the {WORDS[n * 7 % 12]} of {WORDS[n * 5 % 12]}."


def add(bank: Bank, n: int) -> None:
    """Journal a turn and apply the ADD that it leads to."""
    turn = Turn(text(n), scope=ANA, id=str(n))
    bank.record([turn])
    fact = Fact(turn.text, turn.speaker, aware(None), turn.id)
    bank.apply(ANA, [Operation(OperationKind.ADD, fact)], turns=[turn])


def timed(work: Callable[[], Any], into: list[tuple[float, float]]) -> Any:
    """Run `work` and note its (wall, CPU) milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    into.append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)))
    return result


def measure(folder: Path, items: int) -> dict[str, dict[str, Any]]:
    """Open, fill and search one bank of each kind, one step of each in turn: what disturbs one disturbs all."""
    spent: dict[str, dict[str, list[tuple[float, float]]]] = {
        kind: {"open": [], "first reader": [], "add": [], "search": []} for kind in KINDS
    }
    for kind, key in KINDS.items():  # made once, then opened: a new file is another thing
        Bank.open(folder / f"{kind}.db", HashEmbedder(), key=key).close()
    for _ in range(5):
        for kind, key in KINDS.items():
            opening = partial(Bank.open, folder / f"{kind}.db", HashEmbedder(), key=key)
            bank = timed(opening, spent[kind]["open"])
            timed(bank.waiting, spent[kind]["first reader"])
            bank.close()
    banks = {kind: Bank.open(folder / f"{kind}.db", HashEmbedder(), key=key) for kind, key in KINDS.items()}
    for n in range(items):
        for kind, bank in banks.items():
            timed(partial(add, bank, n), spent[kind]["add"])
    retrievers = {kind: Retriever(bank, HashEmbedder(), Settings()) for kind, bank in banks.items()}
    for n in range(min(items, 500)):
        for kind, retriever in retrievers.items():
            timed(partial(retriever.search, text(n), ANA, 10), spent[kind]["search"])
    for bank in banks.values():
        bank.close()
    return {
        kind: {**{what: shown(rows) for what, rows in steps.items()},
               "bytes": sum(path.stat().st_size for path in folder.glob(f"{kind}.db*"))}
        for kind, steps in spent.items()
    }  # fmt: skip


def shown(rows: list[tuple[float, float]]) -> dict[str, float]:
    """Percentiles of the wall clock, and the mean of CPU time."""
    walls = sorted(wall for wall, _ in rows)
    return {
        "p50": round(statistics.median(walls), 2),
        "p95": round(walls[min(len(walls) - 1, int(0.95 * len(walls)))], 2),
        "cpu": round(statistics.fmean(cpu for _, cpu in rows), 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.items)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{arguments.items} items; milliseconds: p50 / p95 of the wall clock, mean CPU")
    for kind, steps in found.items():
        size = steps.pop("bytes")
        line = "   ".join(f"{what} {s['p50']:.2f} / {s['p95']:.2f}, {s['cpu']:.2f}" for what, s in steps.items())
        print(f"{kind:<12} {line}   {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
