"""A small conversation with questions, and an evaluation of it with doubles, for the tests of this folder."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.run import Run, evaluate
from memr1_plugin.evaluation.systems import BASELINES, System
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Scope, Turn

AT = datetime(2023, 5, 8, 12, tzinfo=timezone.utc)
TEXTS = ["I live in Rome with my parents.", "My cat is called Rex.", "I play the violin in an orchestra."]
QUESTIONS = (
    Question("q0", "Where does Ana live?", "Rome", "4", ("t0",)),
    Question("q1", "What is Ana's cat called?", "Rex", "4", ("t1",)),
    Question("q2", "Who won the match?", "", "5", unanswerable=True),
)
SYSTEMS = [BASELINES["rag"], BASELINES["untrained"], BASELINES["untrained-raw"], BASELINES["no-memory"]]


def conversation(name: str = "c1", questions: tuple[Question, ...] = QUESTIONS) -> Conversation:
    """Ana tells three things, a day apart."""
    turns = [Turn(t, "Ana", Scope(name), AT + timedelta(days=n), f"t{n}") for n, t in enumerate(TEXTS)]
    return Conversation(name, ("Ana",), tuple(turns), questions)


TALK = conversation()


def run(out: Path, systems: list[System], *, talks: list[Conversation] | None = None, **options: Any) -> Run:
    """Evaluate with a heuristic model, or the ``engine`` given."""
    engine = options.pop("engine", None) or ScriptedModel.heuristic()
    embedder = options.pop("embedder", None) or HashEmbedder()
    return evaluate(talks or [TALK], systems, out, engine_for=lambda _: engine, embedder=embedder, **options)
