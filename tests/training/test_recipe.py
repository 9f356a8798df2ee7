"""Recipes: checked before they cost anything, then run to a LoRA that serving takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Role
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.testing import HashEmbedder, tiny_model
from memr1_plugin.training import recipe

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
SMALL = """
role = "{role}"
model = "{model}"
max_tokens = 4000
[data]
synthetic_conversations = 1
synthetic_groups = 2
[lora]
r = 4
[sft]
learning_rate = 1e-3
bf16 = false
disable_tqdm = true
"""


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_that_come_with_the_project_can_be_planned(path: Path) -> None:
    """Each one is read and planned on any machine."""
    plan = recipe.plan(recipe.load(path))
    assert plan.steps > 0
    assert plan.to_json()["recipe"] == path.stem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('role = "cook"', 'expected "manager" or "answer"'),
        ('role = "answer"\nalgorithm = "dpo"', "expected one of sft, grpo, ppo"),
        ('role = "answer"\ncolour = "red"', "unknown key 'colour'"),
        ('role = "answer"\n[data]\nfile = "x"', "unknown key 'file'"),
        ("role = ", "is no TOML"),
    ],
)
def test_a_bad_recipe_is_refused_with_what_it_may_hold(tmp_path: Path, text: str, says: str) -> None:
    """The message names the key and the known ones."""
    with pytest.raises(DataError, match=says):
        recipe.load(_write(tmp_path / "bad.toml", text))


def test_the_plan_names_what_is_missing(tmp_path: Path) -> None:
    """A file and a base that are not there are said before anything runs."""
    text = 'role = "answer"\nmodel = "/nowhere/model"\n[data]\nfiles = ["/nowhere/logs.jsonl"]'
    plan = recipe.plan(recipe.load(_write(tmp_path / "r.toml", text)))
    assert any("/nowhere/logs.jsonl" in line for line in plan.missing)
    assert any("base model" in line for line in plan.missing)


@pytest.mark.parametrize("role", ["answer", "manager"])
def test_a_recipe_runs_to_a_lora_that_serving_takes(tmp_path: Path, role: str) -> None:
    """Two steps on a tiny model: data, training, a folder that `read_lora` accepts; a second run reuses the data."""
    base = tiny_model(tmp_path / "base")
    loaded = recipe.load(_write(tmp_path / "r.toml", SMALL.format(role=role, model=base)))
    done = recipe.run_sft(loaded, tmp_path / "run", HashEmbedder(64), max_steps=2)
    assert models.read_lora(done, Role(role), models.resolve(str(base))).name.endswith(role)
    assert (tmp_path / "run" / "examples.jsonl").exists()


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    """An empty recipe and an RL recipe are not run by SFT."""
    empty = recipe.load(_write(tmp_path / "e.toml", 'role = "answer"'))
    with pytest.raises(DataError, match="names no data"):
        recipe.examples(empty, HashEmbedder(16))
    rl = recipe.load(_write(tmp_path / "g.toml", 'role = "answer"\nalgorithm = "grpo"'))
    with pytest.raises(InputError, match="expected sft"):
        recipe.run_sft(rl, tmp_path, HashEmbedder(16))
