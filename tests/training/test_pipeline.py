"""From a recipe and one's own logs to LoRAs that serve: each stage, the folder, going on, and refusing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from safetensors.torch import load_file, save_file  # noqa: E402

from memr1_plugin.agents import models  # noqa: E402
from memr1_plugin.agents.engine import Role  # noqa: E402
from memr1_plugin.errors import DataError, InputError, LoraMismatchError, WeightsNotFoundError  # noqa: E402
from memr1_plugin.evaluation import datasets  # noqa: E402
from memr1_plugin.memory import Memory  # noqa: E402
from memr1_plugin.testing import HashEmbedder, tiny_model  # noqa: E402
from memr1_plugin.training import pipeline, recipe, run_log, synthetic  # noqa: E402
from memr1_plugin.training.lora import RUN_FILE, TrainingRun  # noqa: E402
from memr1_plugin.types import Scope  # noqa: E402

torch.set_num_threads(1)

HEAD = """
model = "{base}"
[memory]
candidates = 4
related_floor = 0.0
[data]
bank = "add"
episodes = 8
[lora]
r = 4
[sft]
bf16 = false
learning_rate = 1e-2
max_steps = 2
[grpo]
learning_rate = 1e-3
per_device_train_batch_size = 8
num_generations = 4
max_completion_length = 4
max_steps = 2
[ppo]
learning_rate = 1e-3
per_device_train_batch_size = 8
num_generations = 4
max_completion_length = 4
max_steps = 2
"""
STAGE = """
[[stages]]
role = "{0}"
algorithm = "{1}"
max_tokens = 4000
validate_steps = 2
validate_questions = 4
"""
GOLD = "[stages.data]\nsynthetic_conversations = 1\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three conversations with questions."""
    path = tmp_path_factory.mktemp("logs") / "logs.jsonl"
    datasets.save([one.conversation for one in synthetic.conversations(3, 3, sessions=(2, 2))], path)
    return path


def made(folder: Path, base: Path, logs: Path, *stages: str, more: str = "") -> recipe.Recipe:
    """A recipe of stages like "answer/sft", with somebody's logs."""
    text = HEAD.format(base=base)
    for stage in stages:
        role, algorithm = stage.split("/")
        text += STAGE.format(role, algorithm) + more + (GOLD if stage == "manager/sft" else "")
    path = folder / "r.toml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return recipe.load(path).with_files([logs])


def train(wanted: recipe.Recipe, folder: Path) -> list[pipeline.Result]:
    """Run it without bars."""
    return pipeline.run(wanted, folder, HashEmbedder(64), quiet=True)


def weights_of(folder: Path) -> dict[str, Any]:
    """The tensors of a LoRA."""
    return dict(load_file(str(folder / "adapter_model.safetensors")))


@pytest.mark.parametrize("algorithm", ["sft", "grpo", "ppo"])
@pytest.mark.parametrize("role", ["manager", "answer"])
def test_either_agent_by_any_algorithm_to_a_lora_that_serving_takes(
    tmp_path: Path, base: Path, logs: Path, role: str, algorithm: str
) -> None:
    """One stage: a folder with its numbers, and ``best`` with a LoRA that names base, prompt, data and settings.

    The bank is kept by the base itself, zero-shot: it is the Manager as it serves now.
    """
    more = '[stages.data]\nbank = "manager"\n' if role == "answer" else ""
    [result] = train(made(tmp_path, base, logs, f"{role}/{algorithm}", more=more), tmp_path / "run")
    best = tmp_path / "run" / "best"
    weights = models.resolve(str(base))
    assert {r: p.name for r, p in models.find_loras("", best).items()} == {Role(role): role}
    assert models.read_lora(best / role, Role(role), weights).name.endswith(role)
    run = TrainingRun.read(best / role)
    assert (run.algorithm, run.role, run.base_revision) == (algorithm, role, weights.revision)
    assert run.settings["memory candidates"] == 4 and run.settings["lora r"] == 4 and len(run.data_hash) == 16
    stage = tmp_path / "run" / f"1-{role}-{algorithm}"
    steps = [row["step"] for row in run_log.read(stage / "metrics.jsonl") if "eval_reward" in row]
    assert steps == [0, 2] and result.steps == 2  # before the first step, and after the last
    assert (stage / "curves.png").stat().st_size > 1_000 and (stage / RUN_FILE).exists()
    assert (stage / "transcripts.jsonl").exists() == (algorithm != "sft")
    assert (tmp_path / "run" / "recipe.toml").read_text() == (tmp_path / "r.toml").read_text()


def test_stages_build_on_each_other_and_the_partner_comes_along(tmp_path: Path, base: Path, logs: Path) -> None:
    """The second Answer stage starts from the first, the Manager is rewarded through it, and both are in ``best``."""
    wanted = made(tmp_path, base, logs, "answer/sft", "answer/grpo", "manager/grpo")
    results = train(wanted, tmp_path / "run")
    assert [r.stage for r in results] == ["answer/sft", "answer/grpo", "manager/grpo"]
    run = tmp_path / "run"
    assert TrainingRun.read(run / "2-answer-grpo").settings["start"] == "the stage before"
    assert TrainingRun.read(run / "3-manager-grpo").settings["partner"] == "its LoRA, frozen"
    before, after = results[0].best, results[1].before
    assert after == pytest.approx(before, abs=0.05)  # what validated best goes on, in half precision
    served = weights_of(run / "best" / "answer")
    assert all(torch.equal(t, served[n]) for n, t in weights_of(run / "2-answer-grpo" / "lora").items())
    assert set(models.find_loras("", run / "best")) == {Role.MANAGER, Role.ANSWER}


def test_the_partner_of_a_single_stage_is_served_with_it(tmp_path: Path, base: Path, logs: Path) -> None:
    """A Manager trained beside a named Answer LoRA is served beside the same one, byte by byte."""
    train(made(tmp_path / "one", base, logs, "answer/sft"), tmp_path / "first")
    partner = f'partner = "{tmp_path / "first" / "best"}"\n'
    train(made(tmp_path / "two", base, logs, "manager/grpo", more=partner), tmp_path / "second")
    name = "answer/adapter_model.safetensors"
    assert (tmp_path / "second/best" / name).read_bytes() == (tmp_path / "first/best" / name).read_bytes()


def test_what_validates_no_better_than_its_start_is_not_served(tmp_path: Path, base: Path, logs: Path) -> None:
    """With a learning rate of nothing no step is better, and ``best`` holds the start, as the result says."""
    train(made(tmp_path / "one", base, logs, "answer/sft"), tmp_path / "first")
    more = f'start = "{tmp_path / "first" / "best" / "answer"}"\n'
    wanted = made(tmp_path / "two", base, logs, "answer/grpo", more=more + "[stages.grpo]\nlearning_rate = 0.0\n")
    [result] = train(wanted, tmp_path / "second")
    assert result.best_step == 0 and result.best == result.before
    assert TrainingRun.read(tmp_path / "second/best/answer") == TrainingRun.read(tmp_path / "first/best/answer")
    assert TrainingRun.read(tmp_path / "second/1-answer-grpo").algorithm == "grpo"


def test_a_finished_run_is_not_done_again_and_an_unfinished_one_goes_on(tmp_path: Path, base: Path, logs: Path) -> None:
    """Called again, stages that are done are read; the one that lost its result goes on from its checkpoint."""
    wanted = made(tmp_path, base, logs, "answer/sft", "answer/grpo")
    first = train(wanted, tmp_path / "run")
    stage = tmp_path / "run" / "2-answer-grpo"
    before, done = weights_of(stage / "lora"), (tmp_path / "run/1-answer-sft/result.json").stat().st_mtime_ns
    shutil.rmtree(stage / "lora")
    (stage / "result.json").unlink()
    assert train(wanted, tmp_path / "run") == first
    assert (tmp_path / "run/1-answer-sft/result.json").stat().st_mtime_ns == done
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(stage / "lora").items())


def test_a_folder_of_another_run_is_refused(tmp_path: Path, base: Path, logs: Path) -> None:
    """Another setting, or a file whose content has changed, is named; nothing is mixed."""
    copy = tmp_path / "mine.jsonl"
    shutil.copyfile(logs, copy)
    train(made(tmp_path, base, copy, "answer/sft"), tmp_path / "run")
    with pytest.raises(InputError, match=r"max_steps was 2, now 9"):
        train(made(tmp_path, base, copy, "answer/sft").with_max_steps(9), tmp_path / "run")
    copy.write_text("\n".join(copy.read_text().splitlines()[:2]))
    with pytest.raises(InputError, match=r"files.*mine.jsonl was"):
        train(made(tmp_path, base, copy, "answer/sft"), tmp_path / "run")


def test_a_lora_for_another_base_or_prompt_is_refused_before_training(tmp_path: Path, base: Path, logs: Path) -> None:
    """As a start or as a partner, and named with a remedy; one that is not there is, too."""
    train(made(tmp_path / "one", base, logs, "answer/sft"), tmp_path / "first")
    lora = tmp_path / "first" / "best" / "answer"
    row = json.loads((lora / RUN_FILE).read_text())
    for key in ("base_revision", "prompt_hash"):
        (lora / RUN_FILE).write_text(json.dumps({**row, key: "0" * 16}))
        for where, stage in (("start", "answer/sft"), ("partner", "manager/grpo")):
            wanted = made(tmp_path / "two", base, logs, stage, more=f'{where} = "{lora}"\n')
            with pytest.raises(LoraMismatchError, match=key):
                train(wanted, tmp_path / f"run-{where}-{key}")
    with pytest.raises(WeightsNotFoundError, match="no answer LoRA ships for"):
        train(made(tmp_path / "two", base, logs, "answer/sft", more='start = "shipped"\n'), tmp_path / "third")


def test_nothing_to_train_on_is_said_before_the_base_is_loaded(tmp_path: Path, base: Path) -> None:
    """Conversations without questions teach neither agent anything."""
    path = tmp_path / "mute.jsonl"
    told = next(iter(synthetic.conversations(3, 1, sessions=(1, 1)))).conversation
    datasets.save([datasets.Conversation("mute", told.speakers, told.turns)], path)
    for stage in ("answer/sft", "answer/grpo", "manager/grpo"):
        with pytest.raises(DataError, match=stage):
            train(made(tmp_path / stage, base, path, stage), tmp_path / stage / "run")


def test_what_was_trained_changes_what_the_memory_decides(tmp_path: Path, base: Path, logs: Path) -> None:
    """``Memory.open(loras=best)`` answers by the trained LoRA: turned up, it says something else than without it."""
    train(made(tmp_path, base, logs, "answer/sft", "manager/sft"), tmp_path / "run")
    best = tmp_path / "run" / "best"
    for role in ("answer", "manager"):  # two steps move a LoRA little: ten times as far, in the direction they took
        path = best / role / "adapter_model.safetensors"
        save_file({n: t * 10 if "lora_B" in n else t for n, t in load_file(str(path)).items()}, str(path))

    def told(loras: Path | None) -> tuple[str, list[str]]:
        options: dict[str, Any] = {"model": str(base), "embedder": HashEmbedder(64)}
        with Memory.open(":memory:", loras=loras, **options) as memory:
            scope = Scope(user="ana")
            for text in ("I live in Lisbon.", "I moved to Berlin, I live there now.", "I live by the sea now."):
                memory.observe(text, speaker="Ana", scope=scope)
            answer = memory.answer("Where does Ana live?", scope=scope)
            return answer.text, [change.kind.value for change in memory.history(scope=scope)]

    with_loras, without = told(best), told(None)
    assert with_loras != without
    assert with_loras == told(best)


def test_a_question_without_evidence_is_trained_on_by_a_guess(tmp_path: Path, base: Path, logs: Path) -> None:
    """Both agents get it, linked by retrieval, and the run says how many were."""
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in logs.read_text().splitlines()]
    for row in rows:
        for question in row["questions"]:
            question["evidence"] = []
    bare.write_text("\n".join(json.dumps(row) for row in rows))
    for role in ("manager", "answer"):
        train(made(tmp_path / role, base, bare, f"{role}/grpo"), tmp_path / role / "run")
        assert TrainingRun.read(tmp_path / role / "run/best" / role).data["questions linked by retrieval"] > 0


def test_a_bot_trains_on_what_it_serves(tmp_path: Path, base: Path) -> None:
    """A bot's own turns become no memories, neither in serving nor in the bank that it is trained on.

    They did in training: the Answer Agent learned to answer from lists that no user would ever see.
    """
    from memr1_plugin.training.episodes import answer_episodes

    row = {
        "conversation": "c1",
        "turns": [
            {"id": "t1", "speaker": "user", "text": "I live in Lisbon.", "time": "2026-05-01"},
            {
                "id": "t2",
                "speaker": "bot",
                "role": "assistant",
                "text": "Lisbon is a lovely place to live in.",
                "time": "2026-05-01",
            },
        ],
        "questions": [{"question": "Where do I live, in Lisbon?", "answer": "Lisbon", "evidence": ["t1"]}],
    }
    path = tmp_path / "bot.jsonl"
    path.write_text(json.dumps(row))
    [episode] = answer_episodes(datasets.load(path)[0], HashEmbedder(64))
    assert [item.text for item in episode.items] == ["I live in Lisbon."]
