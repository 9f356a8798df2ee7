"""An evaluation asks every system the same questions, writes as it goes, and goes on where it stopped."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from memr1_plugin.errors import DataError, InputError
from memr1_plugin.evaluation import report
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.systems import BASELINES, Reply, System, parse_system
from memr1_plugin.settings import Settings
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Scope, Turn

AT = datetime(2023, 5, 8, 12, tzinfo=timezone.utc)
TEXTS = ["I live in Rome with my parents.", "My cat is called Rex.", "I play the violin in an orchestra."]
TALK = Conversation(
    "c1",
    ("Ana",),
    tuple(Turn(t, "Ana", Scope("c1"), AT + timedelta(days=n), f"t{n}") for n, t in enumerate(TEXTS)),
    (
        Question("q0", "Where does Ana live?", "Rome", "4", ("t0",)),
        Question("q1", "What is Ana's cat called?", "Rex", "4", ("t1",)),
        Question("q2", "Who won the match?", "", "5", unanswerable=True),
    ),
)
SYSTEMS = [BASELINES["rag"], BASELINES["untrained"], BASELINES["untrained-raw"], BASELINES["no-memory"]]


def run(out: Path, systems: list[System], **options: object) -> tuple[list[report.Row], ScriptedModel]:
    engine = ScriptedModel.heuristic()
    rows = report.evaluate(
        [TALK], systems, out, engine_for=lambda _: engine, embedder=HashEmbedder(), **options  # type: ignore[arg-type]
    )  # fmt: skip
    return rows, engine


def test_every_system_is_asked_the_same_questions(tmp_path: Path) -> None:
    """One row a system and question; category 5 is left out unless asked for."""
    rows, _ = run(tmp_path, SYSTEMS)
    assert {(r.system, r.question) for r in rows} == {(s.name, q) for s in SYSTEMS for q in ("q0", "q1")}
    agent = [r for r in rows if r.system == "untrained-raw"]
    assert all(r.recall == 1.0 for r in agent) and all(r.prompt_tokens > 0 for r in agent)
    assert all(r.recall == 0.0 for r in rows if r.system == "no-memory")


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Answers that are on the disk are not asked again; a torn last line is."""
    first, _ = run(tmp_path, SYSTEMS)
    again, engine = run(tmp_path, SYSTEMS)
    assert again == first and engine.prompts == []
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text()[:-20])
    mended, _ = run(tmp_path, SYSTEMS)
    assert [(r.system, r.question, r.text) for r in mended] == [(r.system, r.question, r.text) for r in first]


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    """Answers of two settings never stand in one table."""
    run(tmp_path, SYSTEMS[:1])
    with pytest.raises(DataError, match="other settings"):
        run(tmp_path, SYSTEMS[:1], settings=Settings(candidates=3))
    with pytest.raises(DataError, match="rag"):
        run(tmp_path, [System("rag", "managed")])


def test_a_right_abstention_scores_one_and_a_wrong_one_zero() -> None:
    """Saying "I don't know" is right exactly where nothing answers the question."""
    known, unknown = TALK.questions[0], TALK.questions[2]
    none, words = Reply("", abstained=True), Reply("Rome")
    assert report.score("s", TALK, unknown, none).f1 == 1.0
    assert report.score("s", TALK, unknown, words).f1 == 0.0
    assert report.score("s", TALK, known, none).f1 == report.score("s", TALK, known, none).em == 0.0
    assert report.score("s", TALK, known, words).f1 == 1.0


def test_the_table_has_intervals_categories_and_the_paired_difference(tmp_path: Path) -> None:
    """One summary a system, the same numbers in Markdown and JSON, and a picture."""
    rows, _ = run(tmp_path, SYSTEMS, categories=())
    summaries = report.table(rows, baseline="no-memory")
    assert [s["system"] for s in summaries] == [s.name for s in SYSTEMS]
    assert all(s["f1_low"] <= s["f1"] <= s["f1_high"] for s in summaries)
    assert "vs_no-memory" in summaries[0] and "vs_no-memory" not in summaries[-1]
    assert json.loads(json.dumps(summaries)) == summaries
    assert "single-hop" in report.markdown(summaries)
    report.plot(summaries, tmp_path / "f1.png")
    assert (tmp_path / "f1.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="nobody"):
        report.table(rows, baseline="nobody")
    with pytest.raises(InputError, match="no answers"):
        report.table([])


def test_systems_are_named_on_the_command_line() -> None:
    """A baseline by its name, LoRAs by NAME=FOLDER, with or without the Manager."""
    assert parse_system("rag") is BASELINES["rag"]
    assert parse_system("sft=runs/x/best") == System("sft", "managed", loras="runs/x/best")
    assert parse_system("sft=runs/x/best:raw") == System("sft", "raw", loras="runs/x/best")
    with pytest.raises(InputError, match="no system"):
        parse_system("magic")
