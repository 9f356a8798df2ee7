"""Crowds: processes full of async tasks on one file. Nobody meets a lock, no update is lost, scopes are linearisable.

Also how long the event loop stands still while a memory writes in the background, beside what it does without one.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crowd_worker import COUNTER, scopes
from linear import Event, order
from report import Report

from memr1_plugin.bank.bank import Bank
from memr1_plugin.memory import Memory
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Scope

HERE = Path(__file__).resolve().parent


def run(folder: Path, *, processes: int, tasks: int, calls: int, seed: int, n_scopes: int = 8) -> Report:
    """Let `processes` x `tasks` make `calls` calls each on one file, and check what they recorded."""
    path = folder / "bank.db"
    Bank.open(path, HashEmbedder(16)).close()
    common = {
        "path": str(path),
        "tasks": tasks,
        "calls": calls,
        "seed": seed,
        "scopes": n_scopes,
        "start": time.time() + 2,
    }
    jobs = [{**common, "name": f"p{n}", "out": str(folder / f"p{n}.json")} for n in range(processes)]
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    workers = [
        subprocess.Popen([sys.executable, str(HERE / "crowd_worker.py"), json.dumps(job)], env=environment)
        for job in jobs
    ]
    codes = [worker.wait(timeout=900) for worker in workers]
    failures = [f"process {n} ended with {code}" for n, code in enumerate(codes) if code]
    records = [json.loads(Path(job["out"]).read_text()) for job in jobs if Path(job["out"]).exists()]
    failures += [f"reached a user: {problem}" for record in records for problem in record["problems"]]
    events = [event for record in records for event in record["events"]]
    wall = time.perf_counter() - start
    with Bank.open(path, HashEmbedder(16)) as bank:
        failures += [f"check: {line}" for line in bank.check()]
        if bank.waiting():
            failures.append(f"{bank.waiting()} turns are pending though every observe returned")
        counted_events = [event for event in events if event["kind"] == "count"]
        counts, unsure = len(counted_events), sum("maybe" in event for event in counted_events)
        [counted] = [item.text for item in bank.items(COUNTER)] or ["nothing"]
        if counts > 1 and counted not in {f"count {n}" for n in range(counts - unsure, counts + 1)}:
            failures.append(f"{counts} turns each added one, and the memory says {counted!r}: updates were lost")
        checked = [_linearisable(bank, scope, events, failures) for scope in scopes(n_scopes)]
    numbers = (
        ("calls recorded", f"{len(events):,}"),
        ("scopes linearisable", f"{sum(checked)} of {n_scopes}"),
        ("counted without loss", f"{counts:,}"),
        ("wall seconds", f"{wall:.0f}"),
    )
    return Report("crowds", f"{processes} processes x {tasks} tasks on one file", tuple(failures), numbers, seed)


def _linearisable(bank: Bank, scope: Scope, recorded: Sequence[dict[str, Any]], failures: list[str]) -> bool:
    """Check one scope's history, with a last look at the file as its last read."""
    hints = {change.after.text: change.id for change in bank.history(scope) if change.after and change.kind == "ADD"}
    events, last = [], 0
    for event in recorded:
        if event["scope"] == scope.user:
            what = {key: value for key, value in event.items() if key not in ("scope", "seen")}
            what.setdefault("hint", hints.get(event.get("after", ""), 0))
            events.append(Event(**what, seen=frozenset(event.get("seen", ()))))
            last = max(last, 0 if "maybe" in event else event["returned"])
    final = Event(last + 1, last + 2, "read", seen=frozenset(item.text for item in bank.items(scope)))
    try:
        found = order([*events, final])
    except RuntimeError as error:
        failures.append(f"{scope.user}: {error}")
        return False
    if found is None:
        failures.append(f"the {len(events)} calls of {scope.user} have no order that explains their answers")
    return found is not None


async def _ticks(done: asyncio.Event) -> list[tuple[float, float]]:
    """Sleep for a millisecond again and again: (wall seconds too late, this thread's own CPU seconds meanwhile)."""
    found = []
    while not done.is_set():
        wall, cpu = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.001)
        found.append((time.perf_counter() - wall - 0.001, time.thread_time() - cpu))
    return found


async def _stalls(memory: Memory | None, tasks: int, calls: int) -> list[tuple[float, float]]:
    done = asyncio.Event()
    ticker = asyncio.create_task(_ticks(done))

    async def talk(n: int) -> None:
        for k in range(calls):
            if memory is None:
                await asyncio.sleep(0.02)
            elif k % 4 == 3:
                await memory.asearch(f"What of number {k}?", scope=Scope(user=f"user {n % 8}"))
            else:
                await memory.aobserve(f"My number {k} is {n}.", speaker="Ana", scope=Scope(user=f"user {n % 8}"))

    await asyncio.gather(*(talk(n) for n in range(tasks)))
    if memory is not None:
        await memory.aflush()
    done.set()
    return await ticker


def stalls(folder: Path, *, tasks: int, calls: int, real: bool = False) -> Report:
    """Measure the event loop's longest stall while `tasks` tasks talk to a memory that writes in the background.

    With `real` the default model manages, loaded before; without it one that decides by words.
    """
    cold = "faiss" not in sys.modules
    idle = asyncio.run(_stalls(None, tasks, calls))
    doubles: dict[str, Any] = {"engine": ScriptedModel.heuristic(), "embedder": HashEmbedder()}
    with Memory.open(folder / "bank.db", **({} if real else doubles), write="background") as memory:
        if real:
            memory.observe("I live in Rome. I moved there from Berlin.", speaker="Ana")
            memory.answer("Where does Ana live?")
            memory.flush()
        first = asyncio.run(_stalls(memory, 1, 4))
        busy = asyncio.run(_stalls(memory, tasks, calls))
        written = sum(memory.stats().bank.changes.values())
    late = sorted(wall for wall, _ in busy)
    numbers = [
        ("longest stall", f"{1000 * late[-1]:.1f} ms (target: 50 ms)"),
        ("99.9 % of ticks within", f"{1000 * late[int(0.999 * len(late))]:.1f} ms"),
        ("longest stretch of the loop's own CPU", f"{1000 * max(cpu for _, cpu in busy):.1f} ms"),
        ("longest stall of an idle loop beside it", f"{1000 * max(wall for wall, _ in idle):.1f} ms"),
        ("load average of the machine", f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"),
    ]
    if cold:
        numbers.append(("longest stall while FAISS is loaded, once", f"{1000 * max(wall for wall, _ in first):.1f} ms"))
    who = "SmolLM2-135M in 4 bits" if real else "a model that decides by words"
    return Report("event loop", f"{who}, {tasks} tasks, {written:,} background changes", (), tuple(numbers))
