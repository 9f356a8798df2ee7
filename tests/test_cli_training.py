"""`memr1 train` and `memr1 data` through the `main` that a shell calls: a bot's logs in, LoRAs that serve out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from safetensors.torch import load_file

import memr1_plugin.embedding
from memr1_plugin.agents import models
from memr1_plugin.cli import main
from memr1_plugin.evaluation import datasets
from memr1_plugin.memory import Memory
from memr1_plugin.testing import HashEmbedder, ScriptedModel, tiny_model
from memr1_plugin.training import run_log, synthetic
from memr1_plugin.types import Scope

RECIPE = """
model = "{base}"
[data]
bank = "add"
episodes = 8
[grpo]
learning_rate = 1e-3
per_device_train_batch_size = 8
num_generations = 4
max_completion_length = 4
max_steps = 6
save_steps = 2
[[stages]]
role = "answer"
algorithm = "grpo"
validate_steps = 2
validate_questions = 2
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Three conversations with questions."""
    path = tmp_path / "logs.jsonl"
    datasets.save([one.conversation for one in synthetic.conversations(3, 3, sessions=(2, 2))], path)
    return path


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> Path:
    """GRPO for the Answer Agent on the tiny model."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(base=base))
    return path


class Shell:
    """Runs command lines, and keeps what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.err = capsys, ""

    def __call__(self, *words: Any, code: int = 0) -> str:
        found: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as done:
            found = done.code or 0
        printed = self.capsys.readouterr()
        self.err = printed.err
        assert found == code, printed.out + printed.err
        assert "Traceback" not in printed.err
        return printed.out

    def json(self, *words: Any, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))


@pytest.fixture
def memr1(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in an empty folder, with an embedder that has no weights."""
    monkeypatch.setattr(memr1_plugin.embedding, "as_embedder", lambda given: given or HashEmbedder(64))
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


# ── train ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_says_what_it_would_take_and_trains_nothing(memr1: Shell, recipe: Path, logs: Path) -> None:
    """Counts, steps, memory; what is missing makes it exit with 5, and the run itself refuses with the first of it."""
    planned = memr1.json("train", "--recipe", recipe, "--data", logs, "--dry-run")
    assert planned["missing"] == [] and planned["stages"][0]["steps"] == 6
    text = memr1("train", "--recipe", recipe, "--data", logs, "--dry-run", "--max-steps", "2")
    assert "answer/grpo: about 2 steps, 16 completions" in text
    assert "questions of 2 conversations" in text and "1 of 3 conversations, held out" in text
    assert "nothing to train on" in memr1("train", "--recipe", recipe, "--dry-run", code=5)
    memr1("train", "--recipe", recipe, code=2)
    assert "answer/grpo: nothing to train on" in memr1.err and "--dry-run" in memr1.err
    assert not Path("runs").exists()


def test_a_run_ends_in_a_folder_that_serves(memr1: Shell, recipe: Path, logs: Path, base: Path) -> None:
    """Without --out it is runs/NAME; what is printed names the LoRAs, which a memory opens."""
    done = memr1.json("train", "--recipe", recipe, "--data", logs, "--max-steps", "2")
    assert done["best"] == "runs/tiny/best" and done["stages"][0]["steps"] == 2
    with Memory.open(":memory:", model=str(base), loras=done["best"], embedder=HashEmbedder(64)) as memory:
        memory.observe("I live in Lisbon.", scope=Scope(user="ana"))
        assert memory.answer("Where do I live?", scope=Scope(user="ana")).items
    assert "runs/tiny/best" in memr1("train", "--recipe", recipe, "--data", logs, "--max-steps", "2")
    memr1("train", "--recipe", recipe, "--data", logs, "--max-steps", "3", code=2)
    assert "max_steps was 2, now 3" in memr1.err


def test_progress_shows_the_time_left_and_little_else(memr1: Shell, recipe: Path, logs: Path) -> None:
    """A bar of steps with loss, reward and validation behind it; the other thirty numbers are in metrics.jsonl."""
    memr1("train", "--recipe", recipe, "--data", logs, "--max-steps", "2")
    assert "2/2" in memr1.err and "validation=" in memr1.err and "<" in memr1.err
    assert "clip_ratio" not in memr1.err


def test_killed_and_resumed_equals_uninterrupted(memr1: Shell, tmp_path: Path, recipe: Path, logs: Path) -> None:
    """SIGKILL in the middle of the command, the same command again: the numbers and weights of a run without it."""
    runner = Path(__file__).parent / "training" / "killed_command.py"
    words = ["train", "--recipe", str(recipe), "--data", str(logs), "--json", "--out"]
    killed = subprocess.run([sys.executable, str(runner), *words, "cut"], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "cut/1-answer-grpo/checkpoint-4").exists() and not (tmp_path / "cut" / "best").exists()
    memr1(*words, "cut")
    memr1(*words, "whole")
    one, other = (
        [
            {k: v for k, v in row.items() if "time" not in k and "per_second" not in k}
            for row in run_log.read(tmp_path / to / "1-answer-grpo" / "metrics.jsonl")
        ]
        for to in ("cut", "whole")
    )
    assert one == other and len(one) > 6
    name = "best/answer/adapter_model.safetensors"
    cut, whole = (load_file(str(tmp_path / to / name)) for to in ("cut", "whole"))
    assert all(cut[key].equal(whole[key]) for key in whole)


@pytest.mark.parametrize("reporter", ["tensorboard"])
def test_numbers_reach_a_tracker(memr1: Shell, tmp_path: Path, recipe: Path, logs: Path, reporter: str) -> None:
    """`report_to` is the trainer's own, and arrives."""
    recipe.write_text(recipe.read_text().replace("[grpo]", f'[grpo]\nreport_to = "{reporter}"'))
    memr1("train", "--recipe", recipe, "--data", logs, "--max-steps", "2", "--out", "run")
    events = list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert events and events[0].stat().st_size > 500


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_the_loras_of_a_run_are_refused_for_another_base(
    memr1: Shell, recipe: Path, logs: Path, tmp_path: Path
) -> None:
    """Opened with another model, they are an error that says what they were trained for."""
    memr1("train", "--recipe", recipe, "--data", logs, "--max-steps", "2", "--out", "run")
    other = models.resolve(str(tiny_model(tmp_path / "other", seed=9)))
    with pytest.raises(models.LoraMismatchError, match="trained for this one"):
        models.read_lora(tmp_path / "run/best/answer", models.Role.ANSWER, other)
