"""One evaluation run: systems side by side on the same questions, written as it goes.

A run is a folder: ``run.json`` (what it compares), ``answers.jsonl`` (a line for each answer, the moment it is there),
``banks/`` (what was remembered), ``vectors.db`` (embeddings, which can be deleted). A run that was stopped goes on
where it was; one that is asked for more questions or systems asks those alone. Scores are `scores`, tables `report`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
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
        DataError: `out` holds a run with other settings.
        InputError: there is nothing to ask.
    """
    settings, folder = settings or Settings(), Path(out)
    _same_run(folder, settings, systems, model)
    questions = chosen(conversations, categories, limit)
    replies = {_key(reply): reply for reply in read(folder)}
    kept_embedder = KeptEmbedder(embedder, folder / "vectors.db")
    banks, finder = Banks(folder / "banks", kept_embedder, settings), Finder(settings.candidates)
    rows: dict[str, list[BankRow]] = {}
    try:
        with (folder / "answers.jsonl").open("a", encoding="utf-8") as file:
            for system in systems:
                todo = [(c, q) for c, q in _for(system, questions) if (system.name, c.id, q.id) not in replies]
                asked_about = list({c.id: c for c, _ in questions}.values())

                def engine(system: System = system) -> Engine:
                    return engine_for(system)

                with banks.open(system, asked_about, engine, progress) as kept:
                    rows[system.name] = banks.rows(system, kept)
                    asked = finder.ask(system, todo, kept)
                    for part in reply_all(system, asked, engine(), batch) if asked else ():
                        file.writelines(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in part)
                        file.flush()
                        replies.update((_key(r), r) for r in part)
                        progress(f"{system.name}, questions", sum(k[0] == system.name for k in replies), len(questions))
    finally:
        kept_embedder.close()
    wanted = {(s.name, c.id, q.id): None for s in systems for c, q in questions}
    return Run([replies[key] for key in wanted if key in replies], rows)


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
    if not found:
        raise InputError(f"no question is of the categories {sorted(categories)}; the data has {sorted(present)}.")
    return found


def _for(system: System, questions: Iterable[tuple[Conversation, Question]]) -> list[tuple[Conversation, Question]]:
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
