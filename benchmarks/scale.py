"""Many users of one engine, and a large bank: what the memory costs beside the model, and how it grows.

    python benchmarks/scale.py users --conversation locomo_dev.json     # 1, 8 and 64 users at once
    python benchmarks/scale.py items                                    # 1,000,000 items over 10,000 scopes

`users`: every user has a scope of the one bank with some memories in it, and a thread that observes turns. Its
prompts are recorded and given to the same engine again, from as many threads and with no memory around it; what
the first takes longer is the memory's overhead (embedding, search, parsing, the transaction). In processor
seconds too, which a machine that does other things beside does not stretch.

`items`: imported scope by scope as `Memory.import_` does it, in transactions of --chunk items. The vectors are
`HashEmbedder`'s, for a million texts would take MiniLM hours; their length is what --dim says.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from memr1_plugin import Memory, Scope, Turn
from memr1_plugin.agents.engine import Completion, Engine, Prompt, Role
from memr1_plugin.bank.bank import Bank
from memr1_plugin.embedding import as_embedder
from memr1_plugin.evaluation.datasets import load
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind

USERS = (1, 8, 64)
KNOWN = 12
"""Memories that each user has before the clock starts."""
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of the processor in all threads."""

    wall: float
    cpu: float

    @staticmethod
    def by(call: Callable[[], object]) -> Took:
        """Time one call."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return Took(time.perf_counter() - wall, time.process_time() - cpu)


class Recorder:
    """An engine that passes prompts on and keeps them."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.id, self.lora, self.close = engine, engine.id, engine.lora, engine.close
        self._lock = threading.Lock()
        self.calls: list[tuple[Role, Prompt]] = []

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Complete on the real engine."""
        with self._lock:
            self.calls += [(role, prompt) for prompt in prompts]
        return self._engine.complete(prompts, role)


def together(n: int, jobs: Sequence[Callable[[], object]]) -> None:
    """Run jobs on `n` threads; the first failure is raised."""
    with ThreadPoolExecutor(n) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def users(turns: Sequence[Turn], n: int, calls: int, engine: Engine, embedder: Any) -> dict[str, Any]:
    """Let `n` users observe `calls` turns in all; return what that took, and the engine alone."""
    recorder = Recorder(engine)
    scopes = [Scope(user=f"user{u}") for u in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory.open(
            Path(folder) / "m.db", engine=recorder, embedder=embedder, settings=Settings(certain=False)
        )
        with memory:
            before = resident_mb()
            for u, scope in enumerate(scopes):
                for turn in turns[u % 8 : u % 8 + KNOWN]:
                    remember(memory, _of(turn, scope))
            embedder.embed([turn.text for turn in turns])
            each = calls // n
            told = [turns[KNOWN + 8 + k :: max(1, len(turns) // each)][:each] for k in range(n)]

            def user(u: int) -> None:
                for turn in told[u]:
                    memory.observe(_of(turn, scopes[u]))

            observed = Took.by(lambda: together(n, [lambda u=u: user(u) for u in range(n)]))  # type: ignore[misc]
            grown = resident_mb() - before
            stages = memory.stats().seconds
    jobs = [lambda role=role, prompt=prompt: engine.complete([prompt], role) for role, prompt in recorder.calls]
    alone = Took.by(lambda: together(n, jobs))
    return {
        "users": n,
        "turns": each * n,
        "calls": len(recorder.calls),
        "turns/s": each * n / observed.wall,
        "raw calls/s": len(recorder.calls) / alone.wall,
        "overhead, by the clock": observed.wall / alone.wall - 1,
        "processor s a turn": observed.cpu / (each * n),
        "processor s a raw call": alone.cpu / len(recorder.calls),
        "overhead, of the processor": observed.cpu / alone.cpu - 1,
        "MB a user": grown / n,
        "s in stages": {name: round(seconds / (each * n), 4) for name, seconds in stages.items()},
    }


def remember(memory: Memory, turn: Turn) -> None:
    """Make every fact of a turn a memory, with no Manager."""
    memory.bank.record([turn])
    facts = memory.extractor.extract(turn, None)
    memory.bank.apply(turn.scope, [Operation(OperationKind.ADD, fact) for fact in facts], turns=[turn])


def _of(turn: Turn, scope: Scope) -> Turn:
    return Turn(turn.text, turn.speaker, scope, turn.at, f"{scope.user}-{turn.id}", session=turn.session)


def resident_mb() -> float:
    """Return the process's resident memory in MB (Linux; 0 elsewhere)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# -- a large bank -------------------------------------------------------------------------------------------


def rows(rng: np.random.Generator, scope: Scope, first: int, n: int) -> Iterator[dict[str, Any]]:
    """Yield `n` items of ten words from a vocabulary of 5,000, frequent ones first, as `export` writes them."""
    for k, drawn in enumerate(np.minimum(rng.zipf(1.2, size=(n, 10)), 5_000), first):
        at = START + timedelta(minutes=k)
        text = " ".join(f"w{w}" for w in drawn)
        yield {"type": "item", **MemoryItem(k, scope, text, "user", at, created_at=at, updated_at=at).to_json()}


def items(args: argparse.Namespace) -> dict[str, Any]:
    """Import, close, open, search and insert; bounded by --minutes, and it says how far it came."""
    embedder, rng = HashEmbedder(args.dim), np.random.default_rng(0)
    each = args.items // args.scopes
    scopes = [Scope(user=f"user{n}") for n in range(args.scopes)]
    step = max(1, args.chunk // each)
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "large.db"
        done, spent = 0, Took(0.0, 0.0)
        with Bank.open(path, embedder) as bank:
            while done < len(scopes) and time.monotonic() < until:
                some = scopes[done : done + step]
                part = [row for n, scope in enumerate(some, done) for row in rows(rng, scope, 1 + n * each, each)]
                took = Took.by(lambda part=part: bank.import_(part))  # type: ignore[misc]
                done, spent = done + len(some), Took(spent.wall + took.wall, spent.cpu + took.cpu)
        banks: list[Bank] = []
        opened = Took.by(lambda: banks.append(Bank.open(path, embedder)))
        with banks[0] as bank:
            result = {
                "items": done * each,
                "scopes": done,
                "dim": args.dim,
                "import s": spent.wall,
                "import processor s": spent.cpu,
                "items/processor s": done * each / max(spent.cpu, 1e-9),
                "file MB": sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 1e6,
                "open s": opened.wall,
                **_asked(bank, rng, scopes[:done], args.calls),
            }
            result["resident MB"] = resident_mb()
    return result


def _asked(bank: Bank, rng: np.random.Generator, scopes: Sequence[Scope], n: int) -> dict[str, float]:
    """Search and insert in `n` scopes drawn at random, cold: nobody asked them since the bank was opened."""
    retriever = Retriever(bank, bank.embedder, Settings())
    drawn = [scopes[i] for i in rng.integers(0, len(scopes), n)]
    found: dict[str, float] = {}
    for name in ("first search", "next search", "insert"):
        taken = [_call(name, bank, retriever, rng, scope, k) for k, scope in enumerate(drawn)]
        p50, p95 = np.percentile([1_000 * t.wall for t in taken], [50, 95])
        cpu = 1_000 * float(np.mean([t.cpu for t in taken]))
        found |= {f"{name} p50 ms": float(p50), f"{name} p95 ms": float(p95), f"{name} processor ms": cpu}
    return found


def _call(name: str, bank: Bank, retriever: Retriever, rng: np.random.Generator, scope: Scope, k: int) -> Took:
    text = " ".join(f"w{w}" for w in np.minimum(rng.zipf(1.2, size=6), 5_000))
    if name == "insert":
        at = START + timedelta(days=1_000, minutes=k)
        operation = Operation(OperationKind.ADD, Fact(text, "user", at, f"new{k}"))
        return Took.by(lambda: bank.apply(scope, [operation]))
    return Took.by(lambda: retriever.search(text, scope, 10))


def many(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure 1, 8 and 64 users."""
    from memr1_plugin.agents.engine import Role
    from memr1_plugin.agents.local import LocalEngine

    [conversation] = [c for c in load(args.conversation) if c.id == args.id]
    embedder = as_embedder(None)
    engine = LocalEngine()
    engine.complete([Prompt("", "Loaded before the clock starts", max_tokens=1)], Role.MANAGER)
    return [users(conversation.turns, n, args.turns, engine, embedder) for n in args.users or USERS]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print JSON."""
    default = Path(os.environ.get("MEMR1_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("users", "items"))
    parser.add_argument("--conversation", type=Path, default=default / "locomo" / "locomo_dev.json")
    parser.add_argument("--id", default="conv-30", help="of the conversation in that file")
    parser.add_argument("--users", type=int, nargs="*", help=f"default: {USERS}")
    parser.add_argument("--turns", type=int, default=64, help="observed in all, shared by the users")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--scopes", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=64, help="of a vector; MiniLM's are 384")
    parser.add_argument("--chunk", type=int, default=10_000, help="items in one import")
    parser.add_argument("--calls", type=int, default=200, help="searches and inserts")
    parser.add_argument("--minutes", type=float, default=60, help="longest import")
    parser.add_argument("--folder", type=Path, help="for the database, 1 GB; default: the system's")
    args = parser.parse_args(argv)
    print(json.dumps(many(args) if args.what == "users" else items(args), indent=1))


if __name__ == "__main__":
    main()
