"""The writer that is killed: a process that observes, corrects, undoes and forgets, and says so on paper first.

Run as a program it reads jobs from its input, one JSON line each, and forks a writer for each: a real process, without
the second that importing takes. A writer logs what it is about to do and what was acknowledged in a witness file,
fsynced before it goes on. A job names either a step at which the writer kills itself or a delay after which it is
killed from outside. The steps are hung onto the library's own functions from here; the library knows nothing of them.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
import string
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import faiss  # noqa: F401 - imported once, before the forks

from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.bank import applying, bank, forgetting, index, index_files, journal, migrations, text_index, vectors
from memr1_plugin.bank.bank import Bank
from memr1_plugin.bank.store import Store
from memr1_plugin.errors import InputError
from memr1_plugin.memory import Memory
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Change, Fact, Scope, Turn

DIM = 16
PERSIST_FROM = 6
SCOPES = (Scope(user="ana"), Scope(user="bob", session="s"))
SETTINGS = Settings(certain=False, screen=False, related_floor=0.0, believed_floor=0.0, retry_s=0.01)
OPERATIONS = 150
"""Operations after which a writer that nobody killed ends."""


class Death:
    """Counts the steps that a writer takes, and kills the process at the one it was told."""

    def __init__(self, step: str | None, nth: int) -> None:
        self.step, self.left = step, nth

    def at(self, step: str) -> None:
        """Take a step; maybe the last."""
        if step == self.step:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, death: Death, before: str = "", after: str = "") -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def stepping(*args: Any, **kwargs: Any) -> Any:
        if before:
            death.at(before)
        result = original(*args, **kwargs)
        if after:
            death.at(after)
        return result

    setattr(owner, name, stepping)


_WRAPPED: tuple[tuple[Any, str, str, str], ...] = (
    (migrations, "_step", "open: before a schema step", "open: after a schema step"),
    (journal, "record", "journal: before the rows", "journal: rows written"),
    (Bank, "record", "", "journal: acknowledged"),
    (Retriever, "related", "management: before retrieval", "management: retrieved"),
    (journal, "claim", "transaction: before the claim", "transaction: turn claimed"),
    (applying, "apply_one", "", "transaction: an operation written"),
    (applying, "insert", "", "transaction: item, vectors and words written"),
    (applying, "overwrite", "", "transaction: item overwritten"),
    (applying, "log_change", "transaction: before the change row", ""),
    (applying, "reject", "", "transaction: rejections written"),
    (applying, "undo", "", "transaction: undo written"),
    (text_index, "add", "transaction: before the words", ""),
    (Bank, "_follow", "index: before it follows", "index: followed"),
    (vectors.ScopeVectors, "put", "index: before a vector", "index: vector put"),
    (index.ScopeIndex, "catch_up", "index: before catching up", ""),
    (index_files.IndexFiles, "write", "index file: before", "index file: in place"),
    (index_files, "_write", "", "index file: written beside"),
    (index.IndexCache, "save", "close: before saving", "close: saved"),
    (forgetting, "leave_note", "forget: before the note", "forget: rows gone"),
    (bank, "wipe", "forget: before wiping", "forget: wiped"),
    (Store, "truncate_wal", "forget: vacuumed", "forget: log cut"),
    (Store, "close", "close: before", "close: after"),
)
_ALSO = (
    "transaction: begun", "transaction: before commit", "transaction: committed", "management: extracted",
    "management: model asked", "management: model answered", "index file: half written",
)  # fmt: skip
STEPS = tuple(sorted({step for _, _, *pair in _WRAPPED for step in pair if step} | set(_ALSO)))
"""Every labelled step between journal, management, transaction and index, and of forgetting, opening and closing."""


def arm(death: Death) -> None:
    """Hang the steps onto the library."""
    for owner, name, before, after in _WRAPPED:
        _around(owner, name, death, before, after)
    writing, write = Store.writing, index_files._write

    @contextmanager
    def stepping(self: Store) -> Iterator[Any]:
        with writing(self) as connection:
            death.at("transaction: begun")
            yield connection
            death.at("transaction: before commit")
        death.at("transaction: committed")

    def torn(path: Path, parts: list[bytes]) -> None:
        if death.step == "index file: half written":
            whole = b"".join(parts)
            path.write_bytes(whole[: random.randrange(len(whole))])
            death.at("index file: half written")
        write(path, parts)

    Store.writing, index_files._write = stepping, torn  # type: ignore[method-assign]


class Witness:
    """The independent record: one JSON line an event, on the disk before the next thing happens."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def note(self, what: str, **event: Any) -> None:
        """Write an event and wait for the disk."""
        os.write(self._file, json.dumps({"what": what, **event}).encode() + b"\n")
        os.fsync(self._file)


class Pieces:
    """An extractor: a fact for each part of "a | b | c", with the turn before as context."""

    def __init__(self, death: Death | None = None) -> None:
        self._death = death or Death(None, 0)

    def extract(self, turn: Turn, previous: Turn | None) -> list[Fact]:
        """Return one fact a part."""
        context = f"{previous.speaker}: {previous.text}" if previous else ""
        facts = [Fact(part, turn.speaker, turn.at, turn.id, context) for part in turn.text.split(" | ")]
        self._death.at("management: extracted")
        return facts


_FACT = re.compile(r"^- \[[^\]]*\] [^:\n]*: (\w+)", re.MULTILINE)
_MEMORY = re.compile(r"^\d+\. ", re.MULTILINE)


def reply(prompt: Prompt, role: Role) -> str:
    """Decide by each fact's first word; a memory is touched once, and never more than three."""
    place, memories, lines = 0, min(3, len(_MEMORY.findall(prompt.body))), []
    for word in _FACT.findall(prompt.body):
        line = {"junk": "REMOVE EVERYTHING", "skip": "NOOP"}.get(word, "ADD")
        if word in ("change", "drop") and place < memories:
            place += 1
            line = f"UPDATE {place}" if word == "change" else f"DELETE {place}; ADD"
        lines.append(line)
    return "\n".join(lines)


def opened(path: str, *, write: str = "sync", death: Death | None = None) -> Memory:
    """Open a memory on `path`: small vectors, index files for small scopes, the decisions of `reply`."""
    death = death or Death(None, 0)

    def stepping(prompt: Prompt, role: Role) -> str:
        death.at("management: model asked")
        text = reply(prompt, role)
        death.at("management: model answered")
        return text

    embedder = HashEmbedder(DIM)
    made = Bank.open(path, embedder, persist_from=PERSIST_FROM)
    options: dict[str, Any] = {"settings": SETTINGS, "write": write, "extractor": Pieces(death)}
    return Memory(made, engine=ScriptedModel(stepping), embedder=embedder, **options)


def word(rng: random.Random) -> str:
    """Return a word that nothing else holds, whose middle can be searched for in files."""
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(14))


def plain(change: Change) -> dict[str, Any]:
    """Return what a witness notes of a change."""
    after = change.after
    return {
        "id": change.id, "kind": change.kind.value, "item": change.item_id, "turn": change.turn_id,
        "text": after.text if after else None, "turns": list(after.turn_ids) if after else [],
    }  # fmt: skip


class Writer:
    """One life: random operations until somebody kills it."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.rng = random.Random(job["seed"])
        self.witness = Witness(job["witness"])
        self.death = Death(job.get("step"), job.get("nth", 1))
        self.path, self.mode, self.forgets, self.name = job["path"], job["mode"], job["forgets"], job["name"]
        self.n = 0
        arm(self.death)
        self.memory = opened(self.path, write=self.mode, death=self.death)

    def live(self) -> None:
        """Do one thing after the other."""
        kinds = ["observe"] * 8 + ["many", "correct", "remove", "undo", "search", "reopen", "metadata"]
        kinds += ["forget", "forget"] * self.forgets + (
            ["forget scope"] if self.rng.random() < 0.1 * self.forgets else []
        )
        for _ in range(OPERATIONS):
            kind = self.rng.choice(kinds)
            scope = self.rng.choice(SCOPES)
            getattr(self, f"_{kind.replace(' ', '_')}")(scope)
        self.memory.close()

    def _turn(self, scope: Scope) -> Turn:
        self.n += 1
        words = ["add", "add", "change", "change", "drop", "skip", "junk"]
        parts = [f"{self.rng.choice(words)} {word(self.rng)}" for _ in range(self.rng.randrange(1, 5))]
        return Turn(" | ".join(parts), "Ana", scope, id=f"{self.name}-{self.n}", session="s")

    def _observe(self, scope: Scope, n: int = 1) -> None:
        turns = [self._turn(scope) for _ in range(n)]
        self.witness.note("will observe", turns=[[t.scope.user, t.id, t.text] for t in turns])
        changes = self.memory.observe_many(turns)
        self.witness.note(
            "observed", scope=scope.user, turns=[[t.scope.user, t.id, t.text] for t in turns],
            managed=self.mode == "sync", changes=[plain(c) for c in changes],
        )  # fmt: skip

    def _many(self, scope: Scope) -> None:
        self._observe(scope, self.rng.randrange(2, 6))

    def _by_user(self, scope: Scope, act: Callable[[int], Change]) -> None:
        items = self.memory.bank.items(scope, limit=50)
        if not items:
            return
        item = self.rng.choice(items)
        self.witness.note("will change", scope=scope.user, item=item.id)
        try:
            change = act(item.id)
        except InputError:  # another writer, or the background's, was there first
            return
        self.witness.note("changed", scope=scope.user, changes=[plain(change)])

    def _correct(self, scope: Scope) -> None:
        self._by_user(scope, lambda item_id: self.memory.correct(item_id, f"corrected {word(self.rng)}", scope=scope))

    def _remove(self, scope: Scope) -> None:
        self._by_user(scope, lambda item_id: self.memory.remove(item_id, scope=scope))

    def _metadata(self, scope: Scope) -> None:
        self._by_user(scope, lambda item_id: self.memory.bank.set_metadata(scope, item_id, {"n": self.n}))

    def _undo(self, scope: Scope) -> None:
        changes = self.memory.bank.history(scope, limit=20)
        if changes:
            last = self.rng.choice(changes)
            self._by_user(scope, lambda _: self.memory.undo(last, scope=scope))

    def _search(self, scope: Scope) -> None:
        self.memory.search("change add drop", scope=scope)

    def _reopen(self, scope: Scope) -> None:
        self.memory.close()
        self.memory = opened(self.path, write=self.mode, death=self.death)
        self.memory.search("change add drop", scope=scope)

    def _forget(self, scope: Scope) -> None:
        self._settle(scope)
        items = self.memory.bank.items(scope, include_deleted=True, limit=50)
        if items:
            item_id = self.rng.choice(items).id
            self.witness.note("will forget", scope=scope.user, item=item_id)
            self.memory.forget(item_id, scope=scope)
            self.witness.note("forgot", scope=scope.user, item=item_id)

    def _forget_scope(self, scope: Scope) -> None:
        self._settle(scope)
        self.witness.note("will forget", scope=scope.user, item=None)
        self.memory.forget(scope=scope)
        self.witness.note("forgot", scope=scope.user, item=None)

    def _settle(self, scope: Scope) -> None:
        """Note everything that was managed by now, so that what goes with a forgotten item is known."""
        self.memory.flush()
        for one in SCOPES:
            changes = self.memory.bank.history(one)
            self.witness.note("changed", scope=one.user, changes=[plain(c) for c in changes])


def _serve() -> None:
    """Fork the writers of each line of jobs, kill them when their time has come, and say how they ended."""
    for line in sys.stdin:
        jobs, pids = json.loads(line), []
        for job in jobs:
            pids.append(os.fork())
            if pids[-1] == 0:
                _child(job)
        if (delay_s := jobs[0].get("delay_s")) is not None:
            time.sleep(delay_s)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def _child(job: dict[str, Any]) -> NoReturn:
    os.close(0)
    try:
        Writer(job).live()
    except BaseException:  # noqa: BLE001 - the forked process ends here, whatever it was
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _serve()
