"""Kills: writers die at random moments and at every labelled step, and the file is compared with what they witnessed.

After each kill the bank is opened and must hold every acknowledged turn and change, no half of a turn, nothing that
was forgotten, and an index that equals its rebuild. What was found is from then on as good as acknowledged.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crash_writer
import numpy as np
from crash_writer import DIM, PERSIST_FROM, SCOPES, STEPS
from report import Report

from memr1_plugin.bank.bank import Bank
from memr1_plugin.bank.vectors import VIEWS
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Scope

HERE = Path(__file__).resolve().parent
KILLS_PER_FILE = 25
"""Kills that one bank lives through before the next begins."""
_WORD = re.compile(r"\b[a-z]{14}\b")


@dataclass
class Known:
    """What must be in the bank, by the witnesses and by earlier openings."""

    turns: dict[tuple[str, str], str] = field(default_factory=dict)
    """(user, turn id): text."""
    changes: dict[int, dict[str, Any]] = field(default_factory=dict)
    gone_words: set[str] = field(default_factory=set)
    """Words of forgotten memories: no file may hold them."""
    unsure: list[tuple[str, int | None]] = field(default_factory=list)
    """(user, item) of a forgetting that was begun and not acknowledged."""

    def hear(self, witness: Path) -> int:
        """Read what a writer acknowledged; return how many events."""
        n = 0
        for line in witness.read_bytes().split(b"\n")[:-1] if witness.exists() else []:
            event = json.loads(line)
            n += 1
            for user, turn_id, text in event.get("turns", ()) if event["what"] == "observed" else ():
                self.turns[user, turn_id] = text
            for change in event.get("changes", ()):
                self.changes[change["id"]] = {**change, "user": event["scope"]}
            if event["what"] == "will forget":
                self.unsure.append((event["scope"], event["item"]))
            if event["what"] == "forgot":
                self.unsure.remove((event["scope"], event["item"]))
                self.forget(event["scope"], event["item"])
        return n

    def of(self, user: str, item: int | None) -> list[dict[str, Any]]:
        """Return the known changes of an item, or of a whole scope."""
        return [c for c in self.changes.values() if c["user"] == user and (item is None or c["item"] == item)]

    def forget(self, user: str, item: int | None) -> None:
        """Expect an item, or a scope, to be gone with its turns."""
        gone = self.of(user, item)
        turns = {turn for c in gone for turn in (c["turn"], *c["turns"]) if turn}
        if item is None:
            turns = {turn_id for one, turn_id in self.turns if one == user}
        for change in gone:
            del self.changes[change["id"]]
            self.gone_words |= set(_WORD.findall(change["text"] or ""))
        for turn_id in turns:
            text = self.turns.pop((user, turn_id), "")
            self.gone_words |= set(_WORD.findall(text)) if item is None else set()


class Inspector:
    """Opens the bank after a kill and looks for broken promises."""

    def __init__(self, path: Path, known: Known) -> None:
        self.path, self.known = path, known
        self.failures: list[str] = []

    def look(self, *, heal: bool) -> None:
        """Compare the file with what is known; with `heal`, first manage what is pending."""
        if heal:
            with crash_writer.opened(str(self.path)) as memory:
                memory.flush()
                self._expect(memory.bank.waiting() == 0, "turns are pending after a flush")
        with Bank.open(self.path, HashEmbedder(DIM), persist_from=PERSIST_FROM) as bank:
            self.failures += [f"check: {line}" for line in bank.check()]
            self._forgotten(bank)
            for scope in SCOPES:
                self._acknowledged(bank, scope)
                self._whole(bank, scope)
                self._index(bank, scope)
                self._adopt(bank, scope)
        self._bytes()

    def _expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.failures.append(otherwise)

    def _forgotten(self, bank: Bank) -> None:
        """Decide what became of forgettings that were not acknowledged: all of it, or nothing."""
        for user, item in self.known.unsure:
            scope = next(s for s in SCOPES if s.user == user)
            known = {c["id"] for c in self.known.of(user, item)}
            there = {change.id for change in bank.history(scope)} & known
            self._expect(there in (set(), known), f"item {item} of {user} is half forgotten: {there} of {known}")
            if not there and known:
                self.known.forget(user, item)
        self.known.unsure.clear()

    def _acknowledged(self, bank: Bank, scope: Scope) -> None:
        turns = {turn.id: turn.text for turn in bank.turns(scope)}
        changes = {change.id: change for change in bank.history(scope)}
        for (user, turn_id), text in self.known.turns.items():
            if user == scope.user:
                self._expect(turns.get(turn_id) == text, f"turn {turn_id} of {user} is {turns.get(turn_id)!r}")
        for change in self.known.of(scope.user, None):
            found = changes.get(change["id"])
            self._expect(found is not None, f"change {change['id']} of {scope.user} is lost")
            if found is not None:
                text = found.after.text if found.after else None
                same = (found.kind.value, found.item_id, text) == (change["kind"], change["item"], change["text"])
                self._expect(same, f"change {change['id']} of {scope.user} is {found}, was {change}")

    def _whole(self, bank: Bank, scope: Scope) -> None:
        """A pending turn has left no trace; a managed one has a change or a rejection for each of its facts."""
        pending = {turn.id for turn in bank.pending(scope)}
        texts, refused = defaultdict(list), self._refused(bank, scope)
        for change in bank.history(scope):
            if change.turn_id and change.kind.value != "DELETE":
                # A NOOP that nothing supports is an ADD; either is one change.
                text = change.after.text if change.after else "skip"
                texts[change.turn_id].append("skip" if text.startswith("skip") else text)
        for turn in bank.turns(scope):
            facts = turn.text.split(" | ")
            written = Counter(
                "skip" if fact.startswith("skip") else fact for fact in facts if not fact.startswith("junk")
            )
            junk = sum(fact.startswith("junk") for fact in facts)
            if turn.id in pending:
                self._expect(not texts[turn.id] and not refused[turn.id], f"pending turn {turn.id} left a trace")
            else:
                self._expect(
                    Counter(texts[turn.id]) == written and refused[turn.id] == junk,
                    f"turn {turn.id} is half applied: {texts[turn.id]} and {refused[turn.id]} rejections of {facts}",
                )

    def _refused(self, bank: Bank, scope: Scope) -> Counter[str]:
        with bank._store.reading() as connection:
            rows = connection.execute(
                "SELECT r.turn_id, count(*) FROM rejections r JOIN scopes s ON s.id = r.scope_id WHERE s.key = ? "
                "AND r.reason = 'unparseable' GROUP BY r.turn_id",
                (scope.key,),
            )
            return Counter(dict(rows.fetchall()))

    def _index(self, bank: Bank, scope: Scope) -> None:
        """What the index finds, from its file or not, is what a rebuild finds and what the texts themselves say."""
        items = bank.items(scope)
        query = bank.embedder.embed(["change add drop corrected"])[0]
        warm = {view: dict(bank.search_vectors(scope, query, 10_000, view=view)) for view in VIEWS}
        bank._indexes.drop()
        for view in VIEWS:
            cold = dict(bank.search_vectors(scope, query, 10_000, view=view))
            own = [f"{i.speaker}: {i.text}" for i in items]
            texts = (
                own
                if view == "text"
                else [f"{i.context} {t}" if i.context else t for i, t in zip(items, own, strict=True)]
            )
            exact = dict(zip([i.id for i in items], (bank.embedder.embed(texts) @ query).tolist(), strict=True))
            for name, found in (("the index", warm[view]), ("its rebuild", cold)):
                same = found.keys() == exact.keys() and np.allclose(
                    [found[i] for i in exact], list(exact.values()), atol=1e-5
                )
                self._expect(same, f"{name} of {scope.user}, {view}, is not what the items say")
        for item in items[-5:]:
            for word in _WORD.findall(item.text):
                found = [item_id for item_id, _ in bank.search_text(scope, word, 10, view="text")]
                self._expect(found == [item.id], f"{word} of item {item.id} is found in {found}")

    def _adopt(self, bank: Bank, scope: Scope) -> None:
        """What was seen once must be there for ever."""
        for turn in bank.turns(scope):
            self.known.turns[scope.user, turn.id] = turn.text
        for change in bank.history(scope):
            self.known.changes[change.id] = {**crash_writer.plain(change), "user": scope.user}

    def _bytes(self) -> None:
        files = [f for f in self.path.parent.rglob("*") if f.is_file() and f.name.startswith(self.path.name)]
        files += [f for f in Path(f"{self.path}.index").glob("*")]
        data = b"".join(file.read_bytes() for file in files)
        # The middle of a word: FTS5 keeps the beginning that a term shares with the one before only once.
        left = [word for word in self.known.gone_words if word[4:11].encode() in data]
        self._expect(not left, f"forgotten words are in the files: {left[:3]}")


@contextmanager
def zygote() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything and forks the writers."""
    path = os.pathsep.join([str(HERE), *sys.path])
    process = subprocess.Popen(
        [sys.executable, str(HERE / "crash_writer.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def _round(rng: random.Random, step: str | None, n: int) -> list[dict[str, Any]]:
    """Plan one kill: at a step, or after a random delay; now and then of two writers at once."""
    mode = "sync" if step is not None or rng.random() < 0.6 else "background"
    twins = step is None and rng.random() < 0.2
    job = {"step": step, "nth": rng.randint(1, 6), "mode": mode, "forgets": 0 if twins else 1}
    if step is None:
        job["delay_s"] = rng.uniform(0.0, 0.4)
    elif step.startswith(("open", "close", "forget", "index file")):
        job["nth"] = 1 if step.startswith("open") else rng.randint(1, 2)
    return [{**job, "seed": rng.random(), "name": f"w{n}{which}"} for which in ("a", "b")[: 1 + twins]]


def plan(kills: int, seed: int) -> list[str | None]:
    """Return the step of each kill, None for a random moment: every step if there is room, at least half at random."""
    rng = random.Random(seed)
    steps: list[str | None] = list(STEPS)
    rng.shuffle(steps)
    at_steps = max(kills // 2, min(len(steps), kills - kills // 3))
    chosen: list[str | None] = (steps * (at_steps // len(steps) + 1))[:at_steps]
    chosen += [None] * (kills - len(chosen))
    rng.shuffle(chosen)
    return chosen


def run(kills: int, seed: int, folder: Path) -> Report:
    """Kill `kills` times and report."""
    rng, failures = random.Random(seed), []
    events, reached, missed = 0, Counter[str](), Counter[str]()
    known, path = Known(), folder
    with zygote() as forks:
        assert forks.stdin is not None and forks.stdout is not None
        for n, step in enumerate(plan(kills, seed)):
            if n % KILLS_PER_FILE == 0 or (step or "").startswith("open"):
                known, path = Known(), folder / f"bank{n}" / "bank.db"
                path.parent.mkdir()
            jobs = _round(rng, step, n)
            for job in jobs:
                job |= {"path": str(path), "witness": str(folder / f"{job['name']}.jsonl")}
            forks.stdin.write(json.dumps(jobs) + "\n")
            forks.stdin.flush()
            ends = json.loads(forks.stdout.readline())
            (reached if -signal.SIGKILL in ends else missed)[step or "a random moment"] += 1
            events += sum(known.hear(Path(job["witness"])) for job in jobs)
            inspector = Inspector(path, known)
            inspector.look(heal=n % 5 == 4)
            if not set(ends) <= {-signal.SIGKILL, 0}:
                inspector.failures.append(f"a writer ended with {ends}; its error is above")
            failures += [f"kill {n} ({step or 'random'}): {failure}" for failure in inspector.failures]
    numbers = (
        ("killed at a labelled step", f"{sum(reached.values()) - reached['a random moment']}"),
        ("killed at a random moment", f"{reached['a random moment']}"),
        ("labelled steps reached", f"{len(reached.keys() & set(STEPS))} of {len(STEPS)}"),
        ("events on the witnesses' record", f"{events:,}"),
    )
    if kills >= 4 * len(STEPS):
        failures += [f"no writer came to the step {step!r}" for step in STEPS if not reached[step]]
    return Report("crashes", f"{sum(reached.values())} kills with SIGKILL", tuple(failures), numbers, seed)
