"""One process of the crowd: many async tasks on one memory file, each call and answer recorded with its times.

Run as a program with a job in JSON. Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.errors import BankBusyError, UnknownItemError
from memr1_plugin.memory import Memory
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Change, Scope

COUNTER = Scope(user="counter")
SETTINGS = Settings(certain=False, screen=False, related_floor=0.0)
_COUNT = re.compile(r"^1\. \[[^\]]*\] [^:\n]*: count (\w+)", re.MULTILINE)


def reply(prompt: Prompt, role: Role) -> str:
    """Add everything; but "count" adds one to the number that the memory says, and so tells of every lost update."""
    facts = re.findall(r"^- .*$", prompt.body, re.MULTILINE)
    if facts and facts[0].endswith(": count one"):
        found = _COUNT.search(prompt.body)
        number = {"one": 1}.get(found[1]) or int(found[1]) if found else 0
        return f"UPDATE 1: count {number + 1}" if number else "ADD"
    return "\n".join("ADD" for _ in facts)


def scopes(n: int) -> list[Scope]:
    """The scopes that the crowd meets in."""
    return [Scope(user=f"user {k}") for k in range(n)]


class Process:
    """The tasks of one process and what they recorded."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.scopes = scopes(job["scopes"])
        embedder = HashEmbedder(16)
        self.memory = Memory.open(job["path"], engine=ScriptedModel(reply), embedder=embedder, settings=SETTINGS)
        self.events: list[dict[str, Any]] = []
        self.problems: list[str] = []

    async def work(self) -> None:
        """Run all tasks to their end."""
        await asyncio.gather(*(self._task(n) for n in range(self.job["tasks"])))

    async def _task(self, n: int) -> None:
        rng = random.Random(f"{self.job['seed']}-{self.job['name']}-{n}")
        for k in range(self.job["calls"]):
            kind = rng.choice(["add", "add", "replace", "replace", "remove", "read", "read", "count"])
            scope = rng.choice(self.scopes)
            called = time.monotonic_ns()
            try:
                await getattr(self, f"_{kind}")(scope, f"{self.job['name']}-{n}-{k}", rng)
            except UnknownItemError:
                continue  # another task removed it between the look and the call
            except Exception as error:  # noqa: BLE001 - whatever reaches a user here is what is looked for
                self.problems.append(f"{type(error).__name__}: {error}")
                if kind in ("add", "count"):  # the others write once and say that nothing was written
                    unit = {"scope": COUNTER.user if kind == "count" else scope.user, "kind": kind, "maybe": True}
                    times = {"called": called, "returned": 1 << 62}
                    self.events.append({**unit, **times, "after": f"text {self.job['name']}-{n}-{k}"})

    def _record(self, scope: Scope, called: int, kind: str, **what: Any) -> None:
        times = {"called": called, "returned": time.monotonic_ns()}
        self.events.append({"scope": scope.user, "kind": kind, **times, **what})

    async def _add(self, scope: Scope, name: str, rng: random.Random) -> None:
        called = time.monotonic_ns()
        await self.memory.aobserve(f"text {name}", scope=scope, id=name)
        self._record(scope, called, "add", after=f"text {name}")

    async def _count(self, scope: Scope, name: str, rng: random.Random) -> None:
        await self.memory.aobserve("count one", scope=COUNTER, id=name)
        self.events.append({"scope": COUNTER.user, "kind": "count"})

    async def _replace(self, scope: Scope, name: str, rng: random.Random) -> None:
        if (item_id := await self._some(scope, rng)) is not None:
            called = time.monotonic_ns()
            self._changed(scope, called, "replace", await self.memory.acorrect(item_id, f"new {name}", scope=scope))

    async def _remove(self, scope: Scope, name: str, rng: random.Random) -> None:
        if (item_id := await self._some(scope, rng)) is not None:
            called = time.monotonic_ns()
            self._changed(scope, called, "remove", await self.memory.aremove(item_id, scope=scope))

    def _changed(self, scope: Scope, called: int, kind: str, change: Change) -> None:
        assert change.before is not None and change.after is not None
        self._record(scope, called, kind, before=change.before.text, after=change.after.text, hint=change.id)

    async def _read(self, scope: Scope, name: str, rng: random.Random) -> None:
        called = time.monotonic_ns()
        items = await asyncio.to_thread(self.memory.bank.items, scope)
        self._record(scope, called, "read", seen=[item.text for item in items])

    async def _some(self, scope: Scope, rng: random.Random) -> int | None:
        items = await asyncio.to_thread(self.memory.bank.items, scope)
        return rng.choice(items).id if items else None


def main(job: dict[str, Any]) -> None:
    """Wait for the common start, work, and write what was recorded."""
    process = Process(job)
    time.sleep(max(0.0, job["start"] - time.time()))
    asyncio.run(process.work())
    process.memory.close()
    record = {"events": process.events, "problems": process.problems, "busy": BankBusyError.__name__}
    Path(job["out"]).write_text(json.dumps(record))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
