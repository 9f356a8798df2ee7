"""GRPO: rewards rise, groups share one state, flat groups drop out, a resumed run is the uninterrupted one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from peft import LoraConfig, get_peft_model  # noqa: E402
from toy_task import config, state_of, toy  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: E402

from memr1_plugin.agents.engine import Role  # noqa: E402
from memr1_plugin.errors import DataError, InputError, ModelError  # noqa: E402
from memr1_plugin.testing import HashEmbedder, tiny_model  # noqa: E402
from memr1_plugin.training.environment import ManagerEnvironment  # noqa: E402
from memr1_plugin.training.grpo import (  # noqa: E402
    MemoryGRPOTrainer,
    laptop_config,
    last_checkpoint,
    mean_rewards,
)
from memr1_plugin.training.ppo import MemoryPPOTrainer, PPOConfig  # noqa: E402
from memr1_plugin.training.run_log import CURVES, METRICS, TRANSCRIPTS, read  # noqa: E402
from memr1_plugin.training.shared import keep_trainable, share, using_adapter  # noqa: E402

WALL_CLOCK = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def numbers(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics, seconds left out."""
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in read(folder / METRICS)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_raises_the_reward_of_a_toy_memory_task(tmp_path: Path, seed: int) -> None:
    """From chance to nearly all right in two dozen steps, for three seeds."""
    task = toy(tmp_path, seed=seed)
    args = config(tmp_path / "run", seed=seed)
    trainer = MemoryGRPOTrainer(task.model, args, task.environment, task.tokenizer, validation=task.environment)
    start = trainer.evaluate()["eval_reward"]
    trainer.fit()
    assert trainer.evaluate()["eval_reward"] > start + 0.4
    first, last = mean_rewards(read(tmp_path / "run" / METRICS), first=3, last=5)
    assert last > first + 0.25


def test_a_run_leaves_metrics_transcripts_and_curves(tmp_path: Path) -> None:
    """Each part of the reward and each operation's share is logged; completions can be read beside their answers."""
    task = toy(tmp_path, seed=0)
    MemoryGRPOTrainer(task.model, config(tmp_path / "run", max_steps=2), task.environment, task.tokenizer).fit()
    rows = read(tmp_path / "run" / METRICS)
    assert [r["step"] for r in rows] == [1, 2, 2]
    for name in ("reward", "rewards/exact_match/mean", "rewards/compression/mean", "operations/ADD", "groups/dropped"):
        assert name in rows[0]
    sample = read(tmp_path / "run" / TRANSCRIPTS)[0]
    assert sample["prompt"].endswith("=>") and {"completion", "parts", "answers", "choices"} <= set(sample)
    assert (tmp_path / "run" / CURVES).read_bytes().startswith(b"\x89PNG")


def test_a_group_never_mixes_states(tmp_path: Path) -> None:
    """All completions of a group answer one prompt, and are judged on copies of one bank with one set of questions."""
    task = toy(tmp_path, seed=0)
    args = config(tmp_path / "run", max_steps=5)  # more than an epoch
    trainer = MemoryGRPOTrainer(task.model, args, task.environment, task.tokenizer)
    seen: list[tuple[list[int], list[str]]] = []
    score = trainer._score

    def watch(rows: Any) -> Any:
        found = score(rows)
        seen.append(([n for n, _ in rows], [found[row].state for row in rows]))
        return found

    trainer._score = watch  # type: ignore[method-assign]
    trainer.fit()
    assert len(seen) == 5
    for numbers_, states in seen:
        for start in range(0, len(states), 8):
            assert len(set(numbers_[start : start + 8])) == len(set(states[start : start + 8])) == 1
        assert len(set(numbers_)) == 4


def test_an_environment_that_lets_its_bank_change_is_caught(tmp_path: Path) -> None:
    """Completions of one episode that were judged on two states stop the run: comparing them would be noise."""
    task = toy(tmp_path, seed=0)
    whole = task.environment.score

    def leaky(number: int, completions: Any) -> Any:
        found = whole(number, completions)
        task.environment.episodes[number].bank.apply(task.environment.episodes[number].scope, [])
        return [type(o)(o.breakdown, f"{o.state}{n}", o.choices, o.detail) for n, o in enumerate(found)]

    task.environment.score = leaky  # type: ignore[method-assign]
    trainer = MemoryGRPOTrainer(task.model, config(tmp_path / "run"), task.environment, task.tokenizer)
    with pytest.raises(InputError, match="expected one per group"):
        trainer.fit()


def test_groups_without_variance_are_dropped(tmp_path: Path) -> None:
    """Equal rewards teach nothing: such a group leaves the loss, KL term included, and its share is logged."""
    task = toy(tmp_path, seed=0)
    trainer = MemoryGRPOTrainer(task.model, config(tmp_path / "run", beta=0.1), task.environment, task.tokenizer)
    trainer.model.train()
    rows = [trainer.train_dataset[n // 8] for n in range(32)]
    calculate = trainer._calculate_rewards

    def flatten(*args: Any) -> Any:
        found = calculate(*args)
        assert trainer._rewards_N is not None
        trainer._rewards_N[:] = torch.arange(32) % 8
        trainer._rewards_N[8:16] = 0.3
        return found

    trainer._calculate_rewards = flatten  # type: ignore[method-assign]
    batch = trainer._generate_and_score_completions(rows)
    kept = batch["tool_mask"].bool().any(dim=1)
    assert kept.tolist() == [True] * 8 + [False] * 8 + [True] * 16
    assert batch["num_items_in_batch"] == batch["completion_mask"][kept].sum()
    assert trainer._metrics["train"]["groups/dropped"] == [0.25]


def test_settings_pass_through_to_trl_unrenamed(tmp_path: Path) -> None:
    """KL, clip and sampling settings are `GRPOConfig`'s own fields; one that it lacks is an error that names it."""
    args = laptop_config(tmp_path, beta=0.04, epsilon=0.1, epsilon_high=0.3, loss_type="dr_grpo", num_generations=4)
    assert (args.beta, args.epsilon, args.epsilon_high, args.loss_type) == (0.04, 0.1, 0.3, "dr_grpo")
    with pytest.raises(InputError, match="kl_coef"):
        laptop_config(tmp_path, kl_coef=0.1)


def test_too_little_data_or_room_is_said_before_the_first_step(tmp_path: Path) -> None:
    """Fewer episodes than a batch needs, or a prompt that does not fit, is an error with a remedy."""
    task = toy(tmp_path, seed=0)
    task.environment.episodes = task.environment.episodes[:3]
    with pytest.raises(DataError, match="3 episodes and one batch takes 4"):
        MemoryGRPOTrainer(task.model, config(tmp_path / "run"), task.environment, task.tokenizer)
    task.environment.episodes = []
    with pytest.raises(DataError, match="no episodes"):
        MemoryGRPOTrainer(task.model, config(tmp_path / "run"), task.environment, task.tokenizer)
    task = toy(tmp_path, seed=0)
    with pytest.raises(DataError, match="Show fewer memories"):
        MemoryGRPOTrainer(
            task.model, config(tmp_path / "run", max_completion_length=2040), task.environment, task.tokenizer
        )


TRAINERS = {
    "grpo": (MemoryGRPOTrainer, {"beta": 0.05}),
    "ppo": (MemoryPPOTrainer, {"kind": PPOConfig, "beta": 0.05, "num_iterations": 2}),
}


def make(kind: str, model_home: Path, run: Path) -> Any:
    """A trainer that saves every three steps and evaluates, over more than two epochs."""
    task = toy(model_home, seed=0)
    trainer, options = TRAINERS[kind]
    args = config(
        run, max_steps=10, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=5, **options
    )
    return trainer(task.model, args, task.environment, task.tokenizer, validation=task.environment)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, kind: str) -> None:
    """SIGKILL in the middle, resume from the last checkpoint: the same numbers and the same weights, bit by bit.

    Step 3 and 9 lie between two uses of one batch of completions for PPO (two iterations), and steps 4 and 8
    end epochs, so that waiting completions, the critic, the shuffles and the random states all have to come back.
    """
    whole = make(kind, tmp_path, tmp_path / "whole")
    whole.fit()
    killed = tmp_path / "killed"
    script = Path(__file__).with_name("killed_run.py")
    model = Path(str(whole.model.get_base_model().config.name_or_path))
    done = subprocess.run([sys.executable, str(script), kind, str(model), str(killed)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert numbers(killed)[-1]["step"] in (7, 8) and last_checkpoint(killed) == killed / "checkpoint-6"
    again = make(kind, tmp_path, killed)
    again.fit(resume=True)
    assert numbers(killed)[:-1] == numbers(tmp_path / "whole")[:-1]  # the last row sums up this process only
    assert state_of(again.model) == state_of(whole.model)
    assert read(killed / TRANSCRIPTS) == read(tmp_path / "whole" / TRANSCRIPTS)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path) -> None:
    """A kill in the middle of saving leaves a folder without its last file: resume takes the one before."""
    for step in (3, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    shutil.rmtree(tmp_path / "checkpoint-3")
    assert last_checkpoint(tmp_path) is None


def frozen_lora(folder: Path, model: Path) -> Path:
    """A LoRA for the Answer Agent, not zero, on the model in `model`."""
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, weight in lora.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    lora.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_frozen_agent_is_byte_identical_after_training_the_other(tmp_path: Path, kind: str) -> None:
    """Both agents on one base: training the Manager changes its LoRA, and not a byte of the base or the other LoRA."""
    task = toy(tmp_path, seed=0)
    path = Path(task.model.get_base_model().config.name_or_path)
    task = toy(tmp_path, seed=0, frozen_lora=frozen_lora(tmp_path / "answer", path))
    before = state_of(task.model)
    trainer, options = TRAINERS[kind]
    trainer(task.model, config(tmp_path / "run", max_steps=4, **options), task.environment, task.tokenizer).fit()
    after = state_of(task.model)
    changed = {name for name in before if before[name] != after[name]}
    assert changed and all(".default." in name for name in changed)
    assert any(".frozen." in name for name in before)


def test_switching_to_the_frozen_agent_and_back_leaves_training_as_it_was(tmp_path: Path) -> None:
    """After the frozen agent has spoken, the same weights are trainable as before, also if it failed in between."""
    task = toy(tmp_path, seed=0)
    path = Path(task.model.get_base_model().config.name_or_path)
    task = toy(tmp_path, seed=0, frozen_lora=frozen_lora(tmp_path / "answer", path))
    trainable = [n for n, p in task.model.named_parameters() if p.requires_grad]
    task.model.train()
    prompt = task.environment.prompt(0)
    spoken = {role: task.engine.complete([prompt], role)[0].text for role in (Role.MANAGER, Role.ANSWER, Role.BASE)}
    assert spoken[Role.MANAGER] == spoken[Role.BASE]  # a fresh LoRA is the base
    with pytest.raises(ZeroDivisionError), using_adapter(task.model, "frozen"):
        raise ZeroDivisionError
    assert task.model.training and task.model.active_adapter == "default"
    assert [n for n, p in task.model.named_parameters() if p.requires_grad] == trainable
    assert trainable and all(".default." in n for n in trainable)


def test_batches_change_nothing(tmp_path: Path) -> None:
    """Eight prompts at once get the completions that they get one by one."""
    task = toy(tmp_path, seed=0)
    prompts = [task.environment.prompt(n) for n in range(8)]
    together = task.engine.complete(prompts, Role.MANAGER)
    assert together == [task.engine.complete([p], Role.MANAGER)[0] for p in prompts]


def test_lora_weights_stay_in_full_precision_on_a_4_bit_base(tmp_path: Path) -> None:
    """On an nf4 base the LoRA is float32 after the trainer is made: bfloat16 would round away steps of 1e-6."""
    pytest.importorskip("bitsandbytes")
    task = toy(tmp_path, seed=0)
    path = Path(task.model.get_base_model().config.name_or_path)
    model, shared = share(four_bit(path), task.tokenizer, Role.MANAGER, start=LoraConfig(target_modules="all-linear"))
    task.environment.engine = shared
    trainer = MemoryGRPOTrainer(model, config(tmp_path / "run"), task.environment, task.tokenizer)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def four_bit(path: Path) -> Any:
    """The model in `path` as nf4, computing in float32."""
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=settings)


def test_both_agents_train_and_speak_on_one_4_bit_base(tmp_path: Path) -> None:
    """QLoRA as on a consumer GPU: the frozen agent answers between the policy's steps, and keeps its weights."""
    pytest.importorskip("bitsandbytes")
    task = toy(tmp_path, seed=0)
    path = Path(task.model.get_base_model().config.name_or_path)
    other = frozen_lora(tmp_path / "answer", path)
    lora = LoraConfig(r=4, target_modules="all-linear")
    model, shared = share(four_bit(path), task.tokenizer, Role.MANAGER, start=lora, frozen=other)
    weights = {"compression": 1.0, "exact_match": 1.0}
    env = ManagerEnvironment(task.environment.episodes, shared, HashEmbedder(), weights=weights)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = MemoryGRPOTrainer(model, config(tmp_path / "run", max_steps=3), env, task.tokenizer, validation=env)
    trainer.evaluate()  # serving's decoder runs in inference mode: nothing of it may be left in the way of gradients
    trainer.fit()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert env.asked > 0 and changed and all(".default." in name for name in changed)


def test_evaluating_a_4_bit_base_between_steps_does_not_cost_its_gradients(tmp_path: Path) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes packed the weights for inference at the first evaluation.

    The kernel for packed weights has no gradient: the run went on, warned once, and learned nothing. A model that
    was packed before is refused.
    """
    bitsandbytes = pytest.importorskip("bitsandbytes")
    task = toy(tmp_path, seed=0)
    path = Path(task.model.get_base_model().config.name_or_path)
    base = four_bit(path)
    layers = [m for m in base.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    share(base, task.tokenizer, Role.MANAGER, start=LoraConfig(r=4, target_modules="all-linear"))
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    layers[0].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match="Load the model anew"):
        keep_trainable(base)


def test_the_best_checkpoint_is_the_one_that_validates_best(tmp_path: Path) -> None:
    """Validation decides which checkpoint is served; without it the last one is."""
    task = toy(tmp_path, seed=0)
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    args = config(tmp_path / "run", **every)
    trainer = MemoryGRPOTrainer(task.model, args, task.environment, task.tokenizer, validation=task.environment)
    trainer.fit()
    scored = [(row["eval_reward"], -row["step"]) for row in read(tmp_path / "run" / METRICS) if "eval_reward" in row]
    assert trainer.best_checkpoint == tmp_path / "run" / f"checkpoint-{-max(scored)[1]}"
    assert (trainer.best_checkpoint / "adapter_model.safetensors").exists()


def test_the_tiny_model_trains_without_a_warm_up_too(tmp_path: Path) -> None:
    """A model that knows nothing of the language yields refused lines and rewards of 0, not an error."""
    task = toy(tmp_path, seed=0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "raw", seed=3))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    MemoryGRPOTrainer(model, config(tmp_path / "run", max_steps=1), task.environment, task.tokenizer).fit()
    assert read(tmp_path / "run" / METRICS)[0]["operations/refused"] > 0.9
