"""One call: either agent, either algorithm, from episodes to a checkpoint that can be gone on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from peft import LoraConfig  # noqa: E402
from test_environment import Asked, Questioned, items  # noqa: E402
from toy_task import config, toy  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from memr1_plugin.agents.engine import Role  # noqa: E402
from memr1_plugin.errors import InputError  # noqa: E402
from memr1_plugin.testing import HashEmbedder  # noqa: E402
from memr1_plugin.training import rl  # noqa: E402
from memr1_plugin.training.run_log import METRICS, read  # noqa: E402

LORA = LoraConfig(r=4, target_modules="all-linear")


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("role", [Role.MANAGER, Role.ANSWER])
def test_either_agent_by_either_algorithm(tmp_path: Path, algorithm: str, role: Role) -> None:
    """Two steps, a checkpoint with the trained LoRA alone as its root, and a second run that starts from it."""
    task = toy(tmp_path, seed=0)
    path = task.model.get_base_model().config.name_or_path
    asked = [Questioned(Asked(f"Cat {n}?", "Rex", ("t3",)), items(), f"q{n}") for n in range(4)]
    episodes: list[Any] = list(task.environment.episodes) if role is Role.MANAGER else list(asked)

    def run(folder: str, start: Any) -> Any:
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
        args = config(tmp_path / folder, rl.CONFIGS[algorithm], **settings)
        base = AutoModelForCausalLM.from_pretrained(path)
        return rl.train(role, base, task.tokenizer, episodes, args, start=start, embedder=HashEmbedder())

    first = run("one", LORA)
    assert first.environment.role is role and first.best_checkpoint == tmp_path / "one" / "checkpoint-2"
    second = run("two", first.best_checkpoint)
    assert len(read(tmp_path / "two" / METRICS)) == 3 and second.state.global_step == 2


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """No episodes, or no embedder for the Manager, is an error with a remedy."""
    task = toy(tmp_path, seed=0)
    base = AutoModelForCausalLM.from_pretrained(task.model.get_base_model().config.name_or_path)
    with pytest.raises(InputError, match="no episodes to train the answer agent"):
        rl.train(Role.ANSWER, base, task.tokenizer, [], config(tmp_path / "run"), start=LORA)
    with pytest.raises(InputError, match="embedder"):
        rl.environment(Role.MANAGER, task.environment.episodes, task.engine)
