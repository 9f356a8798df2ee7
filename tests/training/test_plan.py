"""The dry run: every recipe that comes with the project can be planned on any machine, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl")

from memr1_plugin.evaluation import datasets
from memr1_plugin.training import plan, recipe, shapes, synthetic

RECIPES = Path(__file__).parents[2] / "training" / "recipes"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three conversations with questions."""
    path = tmp_path_factory.mktemp("logs") / "logs.jsonl"
    datasets.save([one.conversation for one in synthetic.conversations(5, 3, sessions=(2, 2))], path)
    return str(path)


def planned(tmp_path: Path, text: str) -> plan.Plan:
    """The plan of a recipe given as text."""
    path = tmp_path / "r.toml"
    path.write_text(text)
    return plan.plan(recipe.load(path))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_that_come_with_the_project_can_be_dry_run(path: Path, logs: str) -> None:
    """Each one is planned with somebody's logs: nothing but weights or optional packages is missing here.

    Every setting is one that its trainer has, every stage has something to train on and takes some steps.
    """
    made = recipe.load(path)
    if any(s.data.only for s in made.stages):  # the paper's split of LoCoMo, by the names of its conversations
        names = [c.id for c in datasets.load(logs)]
        table = path.read_text().replace('["conv-26"]', f'["{names[0]}"]').replace('["conv-30"]', f'["{names[1]}"]')
        made = _parsed(table.replace('categories = ["1", "2", "3", "4"]', ""), logs)
        made = made.with_files([logs], logs)
    else:
        made = made.with_files([logs])
    found = plan.plan(made)
    assert all(line.startswith(("base model", "package chitchat")) for line in found.missing), found.missing
    assert all(stage.steps > 0 and stage.rows > 0 and stage.memory_gb > 0.5 for stage in found.stages)
    assert found.to_json()["recipe"] == path.stem and found.parameters > 1e8


def _parsed(text: str, logs: str) -> recipe.Recipe:
    path = Path(logs).with_name("parsed.toml")
    path.write_text(text)
    return recipe.load(path)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("paper-*.toml")), ids=lambda p: p.stem)
def test_the_papers_recipes_do_ppo_too(path: Path, tmp_path: Path) -> None:
    """With the one word changed that the recipe names, PPO's table is the trainer's; both hold the paper's numbers."""
    made = recipe.load(path)
    learned = [s for s in made.stages if s.algorithm == "grpo"]
    assert [s.name for s in made.stages] == ["answer/sft", "answer/grpo", "manager/sft", "manager/grpo"]
    assert all(s.trainer["learning_rate"] == 1e-6 and s.trainer["temperature"] == 1.0 for s in learned)
    batch = learned[0].trainer
    gpus = 8 if "14b" in path.stem else 4
    assert batch["per_device_train_batch_size"] * batch["gradient_accumulation_steps"] * gpus == 128
    changed = tmp_path / path.name
    changed.write_text(path.read_text().replace('algorithm = "grpo"', 'algorithm = "ppo"'))
    ppo = recipe.load(changed)
    assert [s.trainer["critic_learning_rate"] for s in ppo.stages if s.algorithm == "ppo"] == [1e-5, 1e-5]
    assert not [line for line in plan.plan(ppo).missing if "no field" in line]


@pytest.mark.parametrize("path", sorted((RECIPES.parent / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_configurations_for_several_gpus_are_read_by_accelerate(path: Path) -> None:
    """Each is what `accelerate launch --config_file` takes: no key that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(path))
    assert found.num_processes == 4 and found.mixed_precision == "bf16"
    assert found.distributed_type.value in ("MULTI_GPU", "FSDP", "DEEPSPEED")


def test_the_plan_names_what_is_missing(tmp_path: Path) -> None:
    """A file, a base, a LoRA to start from and a package are said before anything runs, all at once."""
    text = """
    model = "/nowhere/model"
    [data]
    files = ["/nowhere/logs.jsonl"]
    [grpo]
    use_vllm = true
    report_to = "trackio"
    [[stages]]
    role = "answer"
    algorithm = "grpo"
    """
    missing = " ".join(planned(tmp_path, text).missing)
    for words in ("/nowhere/logs.jsonl", "base model", "vllm", "trackio", "nothing to train on"):
        assert words in missing
    missing = " ".join(planned(tmp_path, 'role = "answer"\nstart = "/nowhere/lora"').missing)
    assert "/nowhere/lora holds no LoRA" in missing


def test_a_setting_that_its_trainer_does_not_have_is_named(tmp_path: Path) -> None:
    """The trainers' own names are checked against the trainers, for every stage."""
    text = 'role = "answer"\nalgorithm = "ppo"\n[ppo]\nclip = 0.2\n[lora]\nrank = 8'
    missing = planned(tmp_path, text).missing
    assert "answer/ppo: PPOConfig has no field 'clip'" in missing
    assert "answer/ppo: LoraConfig has no field 'rank'" in missing


def test_steps_are_counted_as_the_trainers_count_them(tmp_path: Path, logs: str) -> None:
    """Episodes times completions times epochs by the batch; `max_steps` wins."""
    asked = sum(len(c.questions) for c in datasets.load(logs))
    text = f"""
    role = "answer"
    algorithm = "grpo"
    [data]
    files = ["{logs}"]
    holdout = 0
    [grpo]
    per_device_train_batch_size = 4
    num_generations = 4
    num_train_epochs = 2
    """
    [stage] = planned(tmp_path, text).stages
    assert (stage.rows, stage.steps, stage.completions) == (asked, 2 * asked, 8 * asked)
    [stage] = planned(tmp_path, f"{text}\nmax_steps = 3").stages
    assert (stage.steps, stage.completions) == (3, 12)


def test_shapes_have_the_sizes_that_their_makers_name() -> None:
    """8.0, 3.1, 7.6 and 14.8 billion weights, and 134.5 million of SmolLM2."""
    sizes = {name: shape.parameters for name, shape in shapes.KNOWN.items()}
    assert [round(size / 1e9, 1) for size in sizes.values()] == [8.0, 3.1, 7.6, 14.8]
    assert round(shapes.SMOLLM2_135M.parameters / 1e6, 1) == 134.5
    assert shapes.SMOLLM2_135M.lora(16) * 2 == pytest.approx(9_824_056, rel=0.02)  # the file that ships


def test_four_bits_on_a_gpu_take_less_than_a_dense_base() -> None:
    """QLoRA on an 8B base stays within 24 GB at the recipe's row length; the dense base does not."""
    llama = shapes.KNOWN["meta-llama/llama-3.1-8b-instruct"]
    assert shapes.training_gb(llama, 16, 2000, 250, on_gpu=True) < 24
    assert shapes.training_gb(llama, 16, 2000, 250, on_gpu=True, dense=True) > 16
