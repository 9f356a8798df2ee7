"""`memr1 data` through the `main` that a shell calls: logs in, training data out, and what is wrong with it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_shell import Shell

from memr1_plugin.evaluation import datasets
from memr1_plugin.memory import Memory
from memr1_plugin.testing import HashEmbedder, ScriptedModel
from memr1_plugin.types import Scope


def _row(name: str, city: str) -> dict[str, Any]:
    """A conversation of two turns with a question, as a line of the file."""
    turns = [
        {
            "id": "t1",
            "speaker": "user",
            "text": f"I live in {city}, a fine city by the sea.",
            "time": "2026-05-01",
        },
        {"id": "t2", "speaker": "user", "text": f"My dog from {city} is called Rex, as ever.", "time": "2026-05-02"},
    ]
    asked = {"question": "Where do I live?", "answer": city, "evidence": ["t1"]}
    return {"conversation": name, "turns": turns, "questions": [asked]}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Three conversations with questions."""
    path = tmp_path / "logs.jsonl"
    rows = (_row("ana", "Lisbon"), _row("ben", "Oslo"), _row("eva", "Bonn"))
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def memr1(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in an empty folder, whose banks open with an embedder that has no weights."""
    monkeypatch.setattr("memr1_plugin.memory.as_embedder", lambda given: given or HashEmbedder(64))
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


def test_a_bots_journal_and_its_feedback_become_training_data(memr1: Shell, tmp_path: Path) -> None:
    """Each scope is a conversation, each correction a question; the memory that a right answer used is its evidence."""
    ana = Scope(user="ana")
    with Memory.open("bot.db", engine=ScriptedModel([" 1 -> Lisbon"] * 2), embedder=HashEmbedder(64)) as memory:
        memory.observe("I live in Lisbon.", scope=ana, id="t1")
        memory.observe("My dog is called Rex.", scope=Scope(user="ben"), id="t2")
        answer = memory.answer("Where do I live?", scope=ana)
        memory.feedback(answer, correct="Lisbon")
        memory.feedback(memory.answer("Where did I live?", scope=ana), correct="Porto")
    report = memr1.json("data", "import", "bot.db", "--from", "journal", "--out", "logs.jsonl")
    assert (report["conversations"], report["turns"], report["questions"]) == (2, 2, 2)
    [first, second] = datasets.load("logs.jsonl")[0].questions
    assert (first.answer, first.evidence) == ("Lisbon", ("t1",))
    assert (second.answer, second.evidence) == ("Porto", ())
    assert os.stat("logs.jsonl").st_mode & 0o077 == 0  # what people said is for its owner alone
    checked = memr1("data", "check", "logs.jsonl")
    assert "2 conversations, 2 turns, 2 questions" in checked and "1 questions without evidence" in checked


SAID, REPLIED = "I live in Lisbon.", "Nice!"
CHATS = {
    "openai": {"messages": [{"role": "user", "content": SAID}, {"role": "assistant", "content": REPLIED}]},
    "langchain": [{"type": "human", "data": {"content": SAID}}, {"type": "ai", "data": {"content": REPLIED}}],
    "llama-index": {"store": {"a": [{"role": "user", "content": SAID}, {"role": "assistant", "content": REPLIED}]}},
}


@pytest.mark.parametrize("source", CHATS)
def test_chats_of_other_frameworks_are_imported(memr1: Shell, source: str) -> None:
    """Each becomes the project's JSONL, with its speakers; without a time they are reported as undated."""
    Path("chats").write_text(json.dumps(CHATS[source]))
    assert "1 conversations, 0 questions" in memr1("data", "import", "chats", "--from", source, "--out", "logs.jsonl")
    [told] = datasets.load("logs.jsonl")
    assert [t.role for t in told.turns] == ["user", "assistant"] and told.turns[0].text == SAID
    checked = memr1("data", "check", "logs.jsonl", code=5)
    assert "messages have no time" in checked and "do not train: no question" in checked
    memr1("data", "import", "chats", "--from", source, "--out", "logs.jsonl", code=2)
    assert "exists; give --force" in memr1.err
    memr1("data", "import", "chats", "--from", source, "--out", "logs.jsonl", "--force")


def test_locomo_and_longmemeval_are_imported(memr1: Shell, data_dir: Path) -> None:
    """The published files become the project's JSONL, question for question."""
    for source, path in (
        ("locomo", "locomo/locomo_dev.json"),
        ("longmemeval", "longmemeval_evidence/longmemeval_oracle_evidence_turns.jsonl"),
    ):
        memr1("data", "import", data_dir / path, "--from", source, "--out", f"{source}.jsonl")
        told, original = datasets.load(f"{source}.jsonl"), datasets.load(data_dir / path)
        assert [len(c.questions) for c in told] == [len(c.questions) for c in original]


def test_the_check_names_what_should_stop_a_run(memr1: Shell, tmp_path: Path, logs: Path) -> None:
    """A leak to the held-out side exits with 5 and names it; a bad line is an error with its number and field."""
    assert "conversations that are held out too" in memr1("data", "check", logs, "--held-out", logs, code=5)
    found = memr1.json("data", "check", logs, "--held-out", logs, code=5)
    assert len(found["leaks"]) == 3 and found["blocking"]
    told = datasets.load(logs)
    pytest.importorskip("datafog")
    said = replace(told[0].turns[0], text="Write to ana@example.com, or call +49 170 1234567.")
    datasets.save([replace(told[0], turns=(said, *told[0].turns[1:]))], tmp_path / "pii.jsonl")
    assert "held personal data or secrets: " in memr1("data", "check", tmp_path / "pii.jsonl")
    memr1("data", "import", tmp_path / "pii.jsonl", "--out", "clean.jsonl", "--redact", "all")
    assert datasets.load("clean.jsonl")[0].turns[0].text == "Write to [EMAIL], or call [PHONE]."
    assert "personal data" not in memr1("data", "check", "clean.jsonl")
    memr1("data", "import", tmp_path / "pii.jsonl", "--out", "clean.jsonl", "--redact", "names", "--force", code=2)
    (tmp_path / "bad.jsonl").write_text(logs.read_text().splitlines()[0] + '\n{"conversation": "x", "turns": 1}\n')
    memr1("data", "check", tmp_path / "bad.jsonl", code=2)
    assert 'line 2: "turns" is int; expected list' in memr1.err
