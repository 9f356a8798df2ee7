"""`memr1 train` through the `main` that a shell calls: a bot's logs in, LoRAs that serve out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from cli_shell import Shell

pytest.importorskip("trl")

from safetensors.torch import load_file

import memr1_plugin.embedding
from memr1_plugin.agents import models
from memr1_plugin.evaluation import datasets
from memr1_plugin.memory import Memory
from memr1_plugin.testing import HashEmbedder, tiny_model
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


@pytest.fixture
def memr1(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in an empty folder, with an embedder that has no weights."""
    monkeypatch.setattr(memr1_plugin.embedding, "as_embedder", lambda given: given or HashEmbedder(64))
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


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


@pytest.mark.parametrize(
    ("reporter", "files"), [("tensorboard", "events.out.tfevents.*"), ("wandb", "run-*.wandb"), ("trackio", "*.db")]
)
def test_numbers_reach_a_tracker(tmp_path: Path, recipe: Path, logs: Path, reporter: str, files: str) -> None:
    """`report_to` is the trainer's own, and arrives, without a network; in a process, for W&B writes as it ends."""
    if find_spec(reporter) is None:
        pytest.skip(f"{reporter} is not installed")
    recipe.write_text(recipe.read_text().replace("[grpo]", f'[grpo]\nreport_to = "{reporter}"'))
    runner = Path(__file__).parent / "training" / "killed_command.py"  # after two steps it is not killed yet
    words = ["train", "--recipe", str(recipe), "--data", str(logs), "--max-steps", "2", "--out", "run"]
    here = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(
        [sys.executable, str(runner), *words], cwd=tmp_path, env=os.environ | here, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert any(b"reward" in file.read_bytes() for file in tmp_path.rglob(files))


def test_the_loras_of_a_run_are_refused_for_another_base(
    memr1: Shell, recipe: Path, logs: Path, tmp_path: Path
) -> None:
    """Opened with another model, they are an error that says what they were trained for."""
    memr1("train", "--recipe", recipe, "--data", logs, "--max-steps", "2", "--out", "run")
    other = models.resolve(str(tiny_model(tmp_path / "other", seed=9)))
    with pytest.raises(models.LoraMismatchError, match="trained for this one"):
        models.read_lora(tmp_path / "run/best/answer", models.Role.ANSWER, other)
