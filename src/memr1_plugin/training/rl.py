"""One call from episodes to a trained LoRA: GRPO or PPO, either agent, on one base.

It puts the pieces together in the order that is right and decides nothing: what a completion is worth is `rewards`, how
it is found out `environment`, how the policy moves `grpo` and `ppo`. Data and recipes are `recipe`'s, weights `lora`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Engine, Role
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.settings import Settings
from memr1_plugin.training import rewards
from memr1_plugin.training.environment import AnswerEnvironment, Environment, ManagerEnvironment
from memr1_plugin.training.grpo import EpisodeTrainer, MemoryGRPOTrainer
from memr1_plugin.training.ppo import MemoryPPOTrainer, PPOConfig
from memr1_plugin.training.shared import share

try:
    from trl.trainer.grpo_config import GRPOConfig
except ImportError as error:
    raise MissingExtraError.of("trl", "train") from error

CONFIGS: Mapping[str, type[GRPOConfig]] = {"grpo": GRPOConfig, "ppo": PPOConfig}
"""The configuration of each algorithm, for `grpo.laptop_config`."""
TRAINERS: Mapping[str, type[EpisodeTrainer]] = {"grpo": MemoryGRPOTrainer, "ppo": MemoryPPOTrainer}


def train(
    role: Role,
    base: Any,
    tokenizer: Any,
    episodes: Sequence[Any],
    args: GRPOConfig,
    *,
    start: Any,
    frozen: str | Path | None = None,
    validation: Sequence[Any] = (),
    embedder: Embedder | None = None,
    weights: Mapping[str, float] | None = None,
    settings: Settings | None = None,
    resume: bool = True,
) -> EpisodeTrainer:
    """Train `role` on `episodes`: by PPO if `args` is a `PPOConfig`, else by GRPO; returns the trainer.

    Its ``best_checkpoint`` is the LoRA to serve, its ``model`` the one of the last step.

    Args:
        base: the loaded base model, 4-bit or not.
        episodes: `episodes.ManagerEpisode` with banks and questions, or `episodes.AnswerEpisode`.
        start: a `LoraConfig`, or the folder of the LoRA to go on from.
        frozen: the folder of the other agent's LoRA; None: the base answers zero-shot.
        validation: episodes of other conversations.
        embedder: the banks' embedder; the Manager's environment needs it.
        weights: of the reward's parts; None: `rewards.MANAGER_WEIGHTS` or `rewards.ANSWER_WEIGHTS`.
        resume: go on from the last whole checkpoint of ``args.output_dir``, if there is one.
    """
    model, engine = share(base, tokenizer, role, start=start, frozen=frozen)
    made = [
        environment(role, those, engine, embedder=embedder, weights=weights, settings=settings) if those else None
        for those in (episodes, validation)
    ]
    if made[0] is None:
        raise InputError(f"there are no episodes to train the {role.value} agent on. Check the data.")
    trainer = TRAINERS["ppo" if isinstance(args, PPOConfig) else "grpo"]
    ready = trainer(model, args, made[0], tokenizer, validation=made[1])
    ready.fit(resume=resume)
    return ready


def environment(
    role: Role,
    episodes: Sequence[Any],
    engine: Engine,
    *,
    embedder: Embedder | None = None,
    weights: Mapping[str, float] | None = None,
    settings: Settings | None = None,
) -> Environment:
    """Return the environment of `role` over `episodes`."""
    if role is Role.ANSWER:
        return AnswerEnvironment(episodes, engine, weights=weights or rewards.ANSWER_WEIGHTS)
    if embedder is None:
        raise InputError("the Manager's environment searches banks and needs their embedder. Pass embedder=...")
    return ManagerEnvironment(episodes, engine, embedder, settings=settings, weights=weights or rewards.MANAGER_WEIGHTS)
