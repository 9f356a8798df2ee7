"""Recipes: read and checked before they cost anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from memr1_plugin.agents.engine import Role
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.training import recipe


def _load(tmp_path: Path, text: str) -> recipe.Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return recipe.load(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('role = "cook"', 'expected "manager" or "answer"'),
        ('role = "answer"\nalgorithm = "dpo"', "expected one of sft, grpo, ppo"),
        ('role = "answer"\ncolour = "red"', "unknown key 'colour'"),
        ('role = "answer"\n[data]\nfile = "x"', "unknown key 'file'"),
        ('role = "answer"\n[data]\nbank = "mine"', "'bank' is 'mine'"),
        ('role = "answer"\n[memory]\ncandidate = 3', "expected fields of Settings"),
        ('stages = []\nrole = "answer"', "at least one"),
        ('[[stages]]\nrole = "answer"\n[[stages]]\nalgorithm = "sft"', "stage 2"),
        ("role = ", "is no TOML"),
    ],
)
def test_a_bad_recipe_is_refused_with_what_it_may_hold(tmp_path: Path, text: str, says: str) -> None:
    """The message names the key and the known ones."""
    with pytest.raises(DataError, match=says):
        _load(tmp_path, text)


def test_a_recipe_that_is_not_there_says_where_some_are(tmp_path: Path) -> None:
    """The project's own are named."""
    with pytest.raises(DataError, match="training/recipes/"):
        recipe.load(tmp_path / "none.toml")


def test_what_stands_above_the_stages_holds_for_all_of_them(tmp_path: Path) -> None:
    """Tables are merged key by key, a stage's own keys last; each stage gets the trainer table of its algorithm."""
    made = _load(
        tmp_path,
        """
        seed = 3
        [data]
        window = 24
        [sft]
        learning_rate = 1e-4
        [grpo]
        beta = 0.01
        max_steps = 5
        [[stages]]
        role = "answer"
        [[stages]]
        role = "manager"
        algorithm = "grpo"
        [stages.data]
        episodes = 9
        [stages.grpo]
        max_steps = 7
        """,
    )
    first, second = made.stages
    assert made.name == "r" and made.seed == 3
    assert (first.name, first.trainer) == ("answer/sft", {"learning_rate": 1e-4})
    assert second.role is Role.MANAGER and second.trainer == {"beta": 0.01, "max_steps": 7}
    assert (second.data.window, second.data.episodes, first.data.episodes) == (24, 9, 0)


def test_the_command_line_adds_data_and_cuts_steps(tmp_path: Path) -> None:
    """--data goes to every stage beside what the recipe names, --validation instead of it, --max-steps to every one."""
    made = _load(tmp_path, 'role = "answer"\n[data]\nfiles = ["a.jsonl"]\nvalidation = "v.jsonl"')
    given = made.with_files(["b.jsonl"], "w.jsonl").with_max_steps(2)
    [stage] = given.stages
    assert stage.data.files == ("a.jsonl", "b.jsonl") and stage.data.validation == "w.jsonl"
    assert stage.trainer["max_steps"] == 2
    assert made.with_files(["b.jsonl"]).stages[0].data.validation == "v.jsonl"
    alone = _load(tmp_path, 'role = "answer"\n[data]\ngiven = false').with_files(["b.jsonl"], "w.jsonl")
    assert alone.stages[0].data.files == () and alone.stages[0].data.validation == "w.jsonl"
    with pytest.raises(InputError, match="at least 1"):
        made.with_max_steps(0)
