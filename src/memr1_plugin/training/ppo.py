"""PPO for either agent: an actor that is GRPO's, and a critic on its hidden states.

TRL has had no PPO since 1.13, but its GRPO trainer takes advantages per token from subclasses: sampling, rewards, the
clipped policy loss, vLLM, logging and resume are shared, and this file adds what PPO adds: values, generalised
advantage estimation, a clipped value loss. After Schulman et al. 2017 (PPO) and 2016 (GAE), with the paper's two rates.

Departures from the paper:
1. The critic is a head on the policy's hidden states, not a second model: it fits on the GPU that the policy fits on.
2. Its loss stops at those hidden states and has an optimizer of its own, so it never moves the policy.
"""

# ruff: noqa: N803, N806 (tensor names carry their shapes: B completions, T tokens, H hidden size)
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.training.grpo import EpisodeTrainer

try:
    import torch
    from trl.trainer.grpo_config import GRPOConfig
except ImportError as error:
    raise MissingExtraError.of("trl", "train") from error

Tensor = torch.Tensor


@dataclass
class PPOConfig(GRPOConfig):
    """`GRPOConfig` and what the critic adds. ``num_iterations`` are PPO's epochs over a batch, ``epsilon`` its clip."""

    critic_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of the value head."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token; 1: answers are short, all tokens count."})
    gae_lambda: float = field(default=0.95, metadata={"help": "GAE: 0 trusts the critic, 1 the sampled return."})
    value_clip: float = field(default=0.2, metadata={"help": "How far a value may move from its old one per batch."})
    kl_in_reward: bool = field(
        default=True,
        metadata={"help": "Take beta * KL off each token's reward (PPO's way), not off the loss (GRPO's)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1.")


def gae(rewards_B_T: Tensor, values_B_T: Tensor, mask_B_T: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns), both (B, T), by generalised advantage estimation over tokens.

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = delta_t + gamma lam A_{t+1}``, ``return = A + V``; V and A are 0
    after the last token of `mask_B_T` (right-padded).

    >>> one = torch.ones(1, 2)
    >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), one, 1.0, 1.0)[0].tolist()
    [[0.5, 0.5]]
    """
    mask = mask_B_T.to(rewards_B_T.dtype)
    values = values_B_T * mask
    advantages = torch.zeros_like(rewards_B_T)
    next_advantage = next_value = torch.zeros_like(rewards_B_T[:, 0])
    for t in reversed(range(rewards_B_T.size(1))):
        delta = rewards_B_T[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def token_rewards(scores_B: Tensor, mask_B_T: Tensor, kl_B_T: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """Return (B, T): each completion's score at its last token, less ``beta * kl`` at every token."""
    rewards = torch.zeros(mask_B_T.shape, dtype=scores_B.dtype, device=scores_B.device)
    last = (mask_B_T.sum(dim=1) - 1).clamp(min=0)
    rewards[torch.arange(len(scores_B), device=scores_B.device), last] = scores_B
    if kl_B_T is not None:
        rewards = rewards - beta * kl_B_T
    return rewards * mask_B_T


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Return (clipped value loss, share of tokens where the clip is what counts); all tensors (B, T).

    ``0.5 * mean(max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2))`` over the tokens of `mask`.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    free, held = (values - returns) ** 2, (clipped - returns) ** 2
    tokens = mask.sum().clamp(min=1)
    loss = 0.5 * (torch.max(free, held) * mask).sum() / tokens
    return loss, ((held > free) * mask).sum() / tokens


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return ``1 - Var(R - V) / Var(R)`` over tokens: 1 for a perfect critic, 0 for a constant one, below for worse."""
    kept_values, kept_returns = values.detach()[mask.bool()], returns[mask.bool()]
    spread = kept_returns.var(unbiased=False)
    if kept_returns.numel() < 2 or spread < 1e-12:
        return float("nan")  # nothing to explain; the trainer leaves NaN out of its means
    return float(1 - (kept_returns - kept_values).var(unbiased=False) / spread)


class ValueHead(torch.nn.Module):
    """Hidden states (..., H) to values (...): two layers, the last one 0 at the start."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(hidden_size, hidden_size)
        self.outer = torch.nn.Linear(hidden_size, 1)
        torch.nn.init.zeros_(self.outer.weight)
        torch.nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the value of each state, float32."""
        values: Tensor = self.outer(torch.tanh(self.inner(hidden.float()))).squeeze(-1)
        return values


class MemoryPPOTrainer(EpisodeTrainer):
    """PPO over episodes. ``num_generations`` only sets how many completions of a prompt are sampled at once."""

    def __init__(self, model: Any, args: PPOConfig, *rest: Any, **options: Any) -> None:
        super().__init__(model, args, *rest, **options)
        text_config = self.model.config.get_text_config()
        with torch.random.fork_rng(devices=[]):  # the critic's first weights must not shift what is sampled
            torch.manual_seed(self.args.seed)
            self.critic = ValueHead(text_config.hidden_size).to(self.accelerator.device)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=self.args.critic_learning_rate, weight_decay=0.0
        )

    # -- values ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _keeping_states(self) -> Iterator[list[Tensor]]:
        """Collect the hidden states of every forward pass inside: the critic reads what the policy computed."""
        kept: list[Tensor] = []
        self._states = kept
        try:
            yield kept
        finally:
            self._states = None

    def _values(self, states: list[Tensor]) -> Tensor:
        """Return (B, T): the value before each completion token, read where that token is predicted from."""
        values: Tensor = self.critic(torch.cat(states))
        return values

    # -- a batch of completions ------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Sample and score as GRPO does; then replace its advantage per group by one per token."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        assert self._rewards_N is not None
        start = self.accelerator.process_index * len(inputs)
        scores_B = self._rewards_N[start : start + len(inputs)]
        mask = output["completion_mask"]
        with torch.no_grad(), self._keeping_states() as states:
            logps, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], mask], dim=1),
                mask.size(1),
                batch_size=self.args.per_device_train_batch_size,
            )
            values = self._values(states)
        kl = logps - output["ref_per_token_logps"] if self.beta else None
        rewards = token_rewards(scores_B, mask, kl if self.args.kl_in_reward else None, self.beta)
        advantages, returns = gae(rewards, values, mask, self.args.gamma, self.args.gae_lambda)
        self._log_values(values, returns, mask, kl)
        output.setdefault("old_per_token_logps", logps)
        return output | {"advantages": self._whiten(advantages, mask), "returns": returns, "old_values": values}

    def _whiten(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return advantages of mean 0 and deviation 1 over all tokens of all processes."""
        sums = torch.stack([mask.sum(), (advantages * mask).sum(), (advantages**2 * mask).sum()])
        count, total, squares = self.accelerator.reduce(sums.float(), reduction="sum")
        mean = total / count.clamp(min=1)
        deviation = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
        whitened: Tensor = (advantages - mean) / (deviation + 1e-6) * mask
        return whitened

    def _log_values(self, values: Tensor, returns: Tensor, mask: Tensor, kl: Tensor | None) -> None:
        log = self._metrics["train"]
        tokens = mask.sum().clamp(min=1)
        log["value/mean"].append(((values * mask).sum() / tokens).item())
        log["value/return_mean"].append(((returns * mask).sum() / tokens).item())
        log["value/explained_variance"].append(explained_variance(values, returns, mask))
        if kl is not None and self.args.kl_in_reward:
            log["kl"].append(((kl * mask).sum() / tokens).item())

    # -- losses ----------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return TRL's clipped policy loss; on the way, step the critic on the same hidden states."""
        beta = self.beta
        self.beta = 0.0 if self.args.kl_in_reward else beta
        try:
            with self._keeping_states() as states:
                loss: Tensor = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        finally:
            self.beta = beta
        if model.training:
            self._learn_values(states, inputs)
        return loss

    def _learn_values(self, states: list[Tensor], inputs: dict[str, Any]) -> None:
        mask = inputs["completion_mask"]
        with torch.enable_grad():
            values = self._values(states)
            loss, clipped = value_loss(values, inputs["old_values"], inputs["returns"], mask, self.args.value_clip)
            (loss / self.current_gradient_accumulation_steps).backward()  # type: ignore[no-untyped-call]
        log = self._metrics["train"]
        log["value/loss"].append(loss.item())
        log["value/clip_fraction"].append(clipped.item())
        if self.accelerator.sync_gradients:
            self._step_critic()

    def _step_critic(self) -> None:
        for parameter in self.critic.parameters():
            if parameter.grad is not None and self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        norm = torch.nn.utils.clip_grad_norm_(self.critic.parameters(), self.args.max_grad_norm or float("inf"))
        self._metrics["train"]["value/grad_norm"].append(norm.item())
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()

    # -- resume ----------------------------------------------------------------------------------------------------

    def _rollout_state(self) -> dict[str, Any]:
        critic = {"head": self.critic.state_dict(), "optimizer": self.critic_optimizer.state_dict()}
        return super()._rollout_state() | {"critic": critic}

    def _load_rollout_state(self, folder: Path) -> dict[str, Any]:
        state = super()._load_rollout_state(folder)
        self.critic.load_state_dict(state["critic"]["head"])
        self.critic_optimizer.load_state_dict(state["critic"]["optimizer"])
        return state
