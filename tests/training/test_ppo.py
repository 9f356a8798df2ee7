"""PPO: the estimator by hand, the losses' gradients, and a critic that learns without touching the policy."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from toy_task import config, state_of, toy  # noqa: E402

from memr1_plugin.errors import InputError  # noqa: E402
from memr1_plugin.training import ppo  # noqa: E402
from memr1_plugin.training.ppo import MemoryPPOTrainer, PPOConfig  # noqa: E402
from memr1_plugin.training.run_log import METRICS, read  # noqa: E402


def test_worked_examples_run() -> None:
    """The examples in the docstrings give what they show."""
    assert doctest.testmod(ppo).failed == 0


def test_gae_equals_the_sum_done_by_hand() -> None:
    """Three tokens, gamma 0.9, lambda 0.8: every delta and advantage worked out on paper."""
    rewards = torch.tensor([[0.1, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.4, 0.6]])
    d2 = 1.0 - 0.6
    d1 = 0.0 + 0.9 * 0.6 - 0.4
    d0 = 0.1 + 0.9 * 0.4 - 0.5
    a2 = d2
    a1 = d1 + 0.72 * a2
    a0 = d0 + 0.72 * a1
    advantages, returns = ppo.gae(rewards, values, torch.ones(1, 3), 0.9, 0.8)
    assert advantages[0].tolist() == pytest.approx([a0, a1, a2], rel=1e-6)
    assert returns[0].tolist() == pytest.approx([a0 + 0.5, a1 + 0.4, a2 + 0.6], rel=1e-6)


def test_gae_at_its_two_ends() -> None:
    """Lambda 0 is the one-step error, lambda 1 the sampled return less the value."""
    rewards, values = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[0.1, 0.7, 0.4]])
    mask = torch.ones(1, 3)
    one_step, _ = ppo.gae(rewards, values, mask, 1.0, 0.0)
    assert one_step[0].tolist() == pytest.approx([0.2 + 0.7 - 0.1, 0.3 + 0.4 - 0.7, 0.5 - 0.4], abs=1e-6)
    whole, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    assert returns[0].tolist() == pytest.approx([1.0, 0.8, 0.5]) and torch.allclose(whole, returns - values)


def test_gae_of_a_padded_completion_is_that_of_the_completion_alone() -> None:
    """What lies behind the last token, values included, changes nothing before it."""
    alone, _ = ppo.gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.3, 0.2]]), torch.ones(1, 2), 0.95, 0.9)
    padded, returns = ppo.gae(
        torch.tensor([[0.0, 1.0, 0.0, 0.0]]),
        torch.tensor([[0.3, 0.2, 9.0, 9.0]]),
        torch.tensor([[1, 1, 0, 0]]),
        0.95,
        0.9,
    )
    assert torch.allclose(padded[:, :2], alone) and padded[:, 2:].abs().sum() == returns[:, 2:].abs().sum() == 0


def test_the_score_comes_at_the_last_token_and_kl_at_every_one() -> None:
    """Each completion's score lands on its own last token; beta times KL is taken off each token's reward."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.5, 7.0, 7.0]])
    found = ppo.token_rewards(torch.tensor([1.0, 2.0]), mask, kl, 0.1)
    assert torch.allclose(found, torch.tensor([[-0.01, -0.02, 0.97], [1.95, 0.0, 0.0]]))


def test_value_loss_is_clipped_and_says_how_often() -> None:
    """A value that ran further from its old one than the clip allows is charged for the clipped one."""
    values, old = torch.tensor([[1.0, 0.1]]), torch.tensor([[0.0, 0.0]])
    returns, mask = torch.tensor([[1.0, 1.0]]), torch.ones(1, 2)
    loss, share = ppo.value_loss(values, old, returns, mask, 0.2)
    assert loss.item() == pytest.approx(0.5 * ((0.2 - 1) ** 2 + (0.1 - 1) ** 2) / 2) and share.item() == 0.5


def test_value_loss_has_the_gradient_of_its_formula() -> None:
    """Autograd agrees with finite differences, through both sides of the clip and the mask."""
    torch.manual_seed(0)
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    old, returns = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert torch.autograd.gradcheck(lambda v: ppo.value_loss(v, old, returns, mask, 0.2)[0], (values,))
    ppo.value_loss(values, old, returns, mask, 0.2)[0].backward()
    assert values.grad is not None and (values.grad * (1 - mask)).abs().sum() == 0


def test_explained_variance_tells_a_critic_from_a_constant() -> None:
    """1 for a perfect critic, 0 for a constant one, NaN where all returns are the same."""
    returns, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3)
    assert ppo.explained_variance(returns.clone(), returns, mask) == 1.0
    assert ppo.explained_variance(torch.full((1, 3), 5.0), returns, mask) == pytest.approx(0.0)
    assert ppo.explained_variance(returns, torch.ones(1, 3), mask) != ppo.explained_variance(returns, returns, mask)


def test_a_discount_out_of_range_is_refused(tmp_path: Path) -> None:
    """gamma and lambda are shares; the message names the one that is not."""
    with pytest.raises(InputError, match=r"gae_lambda is 1\.5"):
        config(tmp_path, PPOConfig, gae_lambda=1.5)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryPPOTrainer, dict[str, object]]:
    """A trainer and one scored batch of completions."""
    task = toy(tmp_path_factory.mktemp("ppo"), seed=0)
    args = config(task.folder / "run", PPOConfig, beta=0.1, max_steps=1)
    trainer = MemoryPPOTrainer(task.model, args, task.environment, task.tokenizer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [trainer.train_dataset[n // 8] for n in range(args.generation_batch_size)]
    return trainer, trainer._generate_and_score_completions(rows)


def test_advantages_are_per_token_and_whitened(batch: tuple[MemoryPPOTrainer, dict[str, object]]) -> None:
    """Each token has its own advantage; over all tokens they have mean 0 and deviation 1, and padding has none."""
    _, found = batch
    advantages, mask = found["advantages"], found["completion_mask"].bool()
    assert advantages.shape == mask.shape and (advantages[~mask] == 0).all()
    assert advantages[mask].mean().abs() < 1e-4 and abs(advantages[mask].std(unbiased=False) - 1) < 1e-2


def test_the_critic_reads_the_state_before_each_token(batch: tuple[MemoryPPOTrainer, dict[str, object]]) -> None:
    """Its values come from the hidden state that predicts the token: a forward pass of our own finds the same ones."""
    trainer, found = batch
    trainer.critic.outer.weight.data.normal_()
    ids = torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)
    attention = torch.cat([found["prompt_mask"], found["completion_mask"]], dim=1)
    n_tokens = found["completion_ids"].size(1)
    with torch.no_grad(), trainer._keeping_states() as kept:
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, n_tokens)
        values = trainer._values(kept)
        states = trainer.model(input_ids=ids, attention_mask=attention, output_hidden_states=True).hidden_states[-1]
    place = found["prompt_ids"].size(1)
    expected = trainer.critic(states[:, place - 1 : place + n_tokens - 1])
    mask = found["completion_mask"].bool()
    assert torch.allclose(values[mask], expected[mask], atol=1e-5)


def test_each_loss_moves_its_own_weights_only(batch: tuple[MemoryPPOTrainer, dict[str, object]]) -> None:
    """The value loss leaves no gradient on the policy, and the policy loss none on the critic."""
    trainer, found = batch
    before = state_of(trainer.critic)
    loss = trainer._compute_loss(trainer.model, found)
    lora = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(p.grad is None for p in lora) and state_of(trainer.critic) != before  # it has stepped already
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in lora)
    assert all(p.grad is None for p in trainer.critic.parameters())


def test_the_critic_comes_to_explain_the_returns(tmp_path: Path) -> None:
    """From 0 (a constant) to most of the variance of a batch whose reward hangs on the operation alone."""
    task = toy(tmp_path, seed=0, weights={"compression": 1.0})  # ADD is worth 0.7, NOOP 1, whatever the fact
    args = config(tmp_path / "run", PPOConfig, max_steps=1, value_clip=10.0, critic_learning_rate=1e-2, gae_lambda=1.0)
    trainer = MemoryPPOTrainer(task.model, args, task.environment, task.tokenizer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    found = trainer._generate_and_score_completions([trainer.train_dataset[n // 8] for n in range(32)])
    ids = torch.cat([found["prompt_ids"], found["completion_ids"]], dim=1)
    attention = torch.cat([found["prompt_mask"], found["completion_mask"]], dim=1)
    n_tokens = found["completion_ids"].size(1)
    with torch.no_grad(), trainer._keeping_states() as kept:
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, n_tokens)
    for _ in range(400):
        trainer._learn_values(kept, found)
    values = trainer._values(kept)
    assert trainer._metrics["train"]["value/explained_variance"] == pytest.approx([0.0], abs=0.05)
    decided = found["completion_mask"].clone()
    decided[:, 0] = 0  # before its first token nothing says which operation it will be
    assert ppo.explained_variance(values, found["returns"], decided) > 0.5


def test_the_policy_gradient_is_that_of_the_clipped_objective(
    batch: tuple[MemoryPPOTrainer, dict[str, object]],
) -> None:
    """Moving one LoRA weight changes the loss by what its gradient says (finite differences)."""
    trainer, found = batch
    weight = next(p for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_B" in n)
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, found).backward()
    place = divmod(int(weight.grad.abs().argmax()), weight.size(1))
    slope, step = weight.grad[place].item(), 1e-3
    with torch.no_grad():
        weight[place] += step
        up = trainer._compute_loss(trainer.model, found).item()
        weight[place] -= 2 * step
        down = trainer._compute_loss(trainer.model, found).item()
        weight[place] += step
    assert (up - down) / (2 * step) == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_raises_the_reward_of_a_toy_memory_task(tmp_path: Path, seed: int) -> None:
    """From chance to nearly all right, for three seeds; what PPO watches is logged."""
    task = toy(tmp_path, seed=seed)
    options = {"num_iterations": 2, "max_steps": 32, "beta": 0.01, "critic_learning_rate": 1e-2, "seed": seed}
    args = config(tmp_path / "run", PPOConfig, **options)
    trainer = MemoryPPOTrainer(task.model, args, task.environment, task.tokenizer, validation=task.environment)
    start = trainer.evaluate()["eval_reward"]
    trainer.fit()
    assert trainer.evaluate()["eval_reward"] > start + 0.4
    logged = {name for row in read(tmp_path / "run" / METRICS) for name in row}
    assert {"value/explained_variance", "value/clip_fraction", "clip_ratio/region_mean", "kl", "value/loss"} <= logged


def test_an_actor_of_rate_0_stays_while_the_critic_moves(tmp_path: Path) -> None:
    """The two rates are two: not a byte of the policy changes, and the critic does."""
    task = toy(tmp_path, seed=0)
    args = config(tmp_path / "run", PPOConfig, max_steps=2, learning_rate=0.0, critic_learning_rate=1e-2)
    trainer = MemoryPPOTrainer(task.model, args, task.environment, task.tokenizer)
    policy, critic = state_of(trainer.model), state_of(trainer.critic)
    trainer.fit()
    assert state_of(trainer.model) == policy and state_of(trainer.critic) != critic
