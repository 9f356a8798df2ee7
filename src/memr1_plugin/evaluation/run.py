"""One evaluation run: systems side by side on the same questions, written as it goes.

A run is a folder: ``run.json`` (what it compares), ``answers.jsonl`` (a line for each answer, the moment it is there),
``banks/`` (what was remembered), ``vectors.db`` (embeddings, which can be deleted). A run that was stopped goes on
where it was; one that is asked for more questions or systems asks those alone. Scores are `scores`, tables `report`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Engine
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.evaluation.banks import BankRow, Banks, Progress
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.replies import Finder, Reply, reply_all
from memr1_plugin.evaluation.systems import System
from memr1_plugin.evaluation.vectors import KeptEmbedder
from memr1_plugin.settings import Settings

LOCOMO_SCORED = ("1", "2", "3", "4")
"""LoCoMo's categories that published tables score; 5 is asked to see who abstains."""
BATCH = 8
TOGETHER = 32
"""Conversations whose banks are open at the same time: LongMemEval has one for each of its 500 questions."""


@dataclass(frozen=True)
class Run:
    """What a run has: every answer to the questions asked for, and the banks behind them."""

    replies: list[Reply]
    banks: dict[str, list[BankRow]]
    """By system; systems that share a bank have the same rows."""


def evaluate(
    conversations: Sequence[Conversation],
    systems: Sequence[System],
    out: str | Path,
    *,
    engine_for: Callable[[System], Engine],
    embedder: Embedder,
    model: str = "",
    settings: Settings | None = None,
    categories: Collection[str] = LOCOMO_SCORED,
    limit: int | None = None,
    batch: int = BATCH,
    progress: Progress = lambda what, done, of: None,
) -> Run:
    """Ask every system every question.

    Args:
        conversations: what is remembered, and the questions about it.
        systems: who is asked, one after the other.
        out: folder of the run; answers that it already holds are not asked again.
        engine_for: gives the engine that serves a system's LoRAs (`systems.Engines`).
        embedder: of the banks.
        model: name of the base model; a run of another one is refused.
        settings: of the banks; ``candidates`` is how many memories a prompt shows.
        categories: which questions to ask; empty: all. A file that has none of LoCoMo's categories is asked whole.
        limit: at most this many questions per conversation.
        batch: questions computed together.
        progress: called with (what, done, of).

    Raises:
        DataError: `out` holds a run with other settings, or a conversation has no turns.
        InputError: there is nothing to ask.
    """
    settings, folder = settings or Settings(), Path(out)
    _same_run(folder, settings, systems, model)
    questions = chosen(conversations, categories, limit)
    replies = {_key(reply): reply for reply in read(folder)}
    kept_embedder = KeptEmbedder(embedder, folder / "vectors.db")
    banks = Banks(folder / "banks", kept_embedder, settings)
    asking = _Asking(banks, Finder(settings.candidates), engine_for, batch, progress)
    try:
        with (folder / "answers.jsonl").open("a", encoding="utf-8") as file:
            for system in systems:
                asked, done = _for(system, questions), sum(name == system.name for name, _, _ in replies)
                for group in _groups(asked):
                    todo = [(c, q) for c, q in group if (system.name, c.id, q.id) not in replies]
                    for part in asking.ask(system, group, todo):
                        file.writelines(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in part)
                        file.flush()
                        replies.update((_key(r), r) for r in part)
                        progress(f"{system.name}, questions", done := done + len(part), len(asked))
    finally:
        kept_embedder.close()
    wanted = {(s.name, c.id, q.id): None for s in systems for c, q in questions}
    return Run([replies[key] for key in wanted if key in replies], asking.rows)


Asked = list[tuple[Conversation, Question]]


class _Asking:
    """Asks systems about some conversations at a time, and keeps count of the banks behind the answers."""

    def __init__(
        self, banks: Banks, finder: Finder, engine_for: Callable[[System], Engine], batch: int, progress: Progress
    ) -> None:
        self._banks, self._finder, self._engine_for = banks, finder, engine_for
        self._batch, self._progress = batch, progress
        self.rows: dict[str, list[BankRow]] = {}

    def ask(self, system: System, group: Asked, todo: Asked) -> Iterator[list[Reply]]:
        """Remember the conversations of `group`, then answer `todo`; yields the replies of each batch."""
        conversations = list({c.id: c for c, _ in group}.values())
        with self._banks.open(system, conversations, lambda: self._engine_for(system), self._progress) as kept:
            self.rows.setdefault(system.name, []).extend(self._banks.rows(system, kept))
            if todo:
                asked = self._finder.ask(system, todo, kept)
                yield from reply_all(system, asked, self._engine_for(system), self._batch)


def _groups(questions: Asked) -> Iterator[Asked]:
    """Yield the questions of `TOGETHER` conversations at a time."""
    ids = list(dict.fromkeys(conversation.id for conversation, _ in questions))
    for start in range(0, len(ids), TOGETHER):
        some = set(ids[start : start + TOGETHER])
        yield [(c, q) for c, q in questions if c.id in some]


def _key(reply: Reply) -> tuple[str, str, str]:
    return reply.system, reply.conversation, reply.question


def chosen(
    conversations: Sequence[Conversation], categories: Collection[str] = LOCOMO_SCORED, limit: int | None = None
) -> list[tuple[Conversation, Question]]:
    """Return the questions of `categories`, at most `limit` of each conversation."""
    present = {q.category for c in conversations for q in c.questions}
    if not present & set(categories) and tuple(categories) == LOCOMO_SCORED:
        categories = ()  # not LoCoMo: its own categories, or none
    found = [
        (c, q)
        for c in conversations
        for q in [q for q in c.questions if not categories or q.category in categories][:limit]
    ]
    if empty := [c.id for c, _ in found if not c.turns]:
        raise DataError(f"conversation {empty[0]!r} has questions and no turns; there is nothing to answer from.")
    if not found:
        raise InputError(f"no question is of the categories {sorted(categories)}; the data has {sorted(present)}.")
    return found


def _for(system: System, questions: Asked) -> Asked:
    """A system that is given the gold evidence is asked where there is some."""
    return [(c, q) for c, q in questions if system.reads != "evidence" or q.evidence]


def _same_run(folder: Path, settings: Settings, systems: Sequence[System], model: str) -> None:
    names = [system.name for system in systems]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two systems are called {', '.join(sorted(twice))}; give each a name of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "run.json"
    mine: dict[str, Any] = {"model": model, "settings": asdict(settings)}
    mine["systems"] = {system.name: system.to_json() for system in systems}
    mine = json.loads(json.dumps(mine))
    if place.exists():
        theirs = json.loads(place.read_text(encoding="utf-8"))
        for what in ("model", "settings"):
            if theirs.get(what) != mine[what]:
                raise _other(folder, what, theirs.get(what), mine[what])
        for name, system in mine["systems"].items():
            if theirs["systems"].get(name, system) != system:
                raise _other(folder, name, theirs["systems"][name], system)
        mine["systems"] = theirs["systems"] | mine["systems"]
    place.write_text(json.dumps(mine, indent=2), encoding="utf-8")


def _other(folder: Path, what: str, theirs: Any, mine: Any) -> DataError:
    if isinstance(theirs, dict):
        theirs, mine = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((theirs, mine), (mine, theirs)))
    return DataError(
        f"{folder} holds a run with other settings of {what}: {theirs}; expected {mine}, because its answers would be "
        "mixed with these. Give another --out, or the system another name."
    )


def read(folder: Path) -> list[Reply]:
    """Return the answers that a run has written so far; a torn last line (a killed run) is asked again."""
    place = folder / "answers.jsonl"
    if not place.exists():
        return []
    lines = place.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        place.write_text("".join(whole), encoding="utf-8")
    return [Reply.from_json(json.loads(line)) for line in whole]
