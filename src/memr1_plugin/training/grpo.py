"""GRPO for either agent, on TRL's `GRPOTrainer`: what makes an episode of memory management trainable.

TRL samples, logs, steps and saves; every `GRPOConfig` field (KL ``beta``, clip ``epsilon``, vLLM) passes through under
its own name. Here: prompts tokenised as in serving, rewards from an `environment`, groups of one memory state, groups
that teach nothing dropped, and resuming to the same numbers. `ppo`, the twin with a critic, builds on `EpisodeTrainer`.

Departures from TRL, each for a reason:
1. LoRA weights stay float32 (TRL casts them to bfloat16 on a quantised base, where steps of 1e-6 round to nothing).
2. The order of episodes depends on seed and epoch alone (TRL's sampler starts again at the first order when resumed).
3. Completions waiting to be trained on are part of a checkpoint.
4. Validation answers greedily through the environment, not by sampling; ``eval_on_start`` not again at each resume.
5. Completions to one prompt share its computation, in sampling and in the loss (`groups`).
"""

# ruff: noqa: N806 (tensor names carry their shapes: rewards_N)
from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from memr1_plugin.errors import DataError, InputError, MissingExtraError
from memr1_plugin.training import checkpoints, groups
from memr1_plugin.training.checkpoints import PREFIX, last_checkpoint
from memr1_plugin.training.environment import Environment, Outcome
from memr1_plugin.training.progress import shorten
from memr1_plugin.training.run_log import RunLog
from memr1_plugin.training.shared import encode, keep_trainable
from memr1_plugin.training.validation import ValidateFirst, scores

try:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl.models.utils import unwrap_model_for_generation
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import RepeatSampler
except ImportError as error:
    raise MissingExtraError.of("trl", "train") from error

ROLLOUTS = "rollouts.pt"
"""In a checkpoint: completions that are still to be trained on, and metrics that are still to be logged."""


def laptop_config(output_dir: str | Path, kind: type[GRPOConfig] = GRPOConfig, **values: Any) -> GRPOConfig:
    """Return a `GRPOConfig` (or `kind`) with defaults that work on a CPU; `values` are its own fields, unrenamed.

    Raises:
        InputError: a value is for a field that the config does not have; the message lists near ones.
    """
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise InputError(f"{kind.__name__} has no field {unknown}; see its documentation for the {len(known)} it has.")
    gpu = torch.cuda.is_available()
    defaults = {
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": gpu,
        "logging_steps": 1,
        "report_to": "none",
        "num_generations_eval": 1,
        "disable_dropout": True,
        "lr_scheduler_type": "constant",
        "metric_for_best_model": "eval_reward",
        "greater_is_better": True,
    }
    return kind(output_dir=str(output_dir), **{**defaults, **values})


class EpisodeTrainer(GRPOTrainer):
    """What GRPO and PPO share: episodes in, rewards from an environment, exact resume.

    Args:
        model: a `PeftModel` whose adapter "default" is trained; other adapters (the frozen agent's) stay as they are.
        args: a `GRPOConfig`, untouched.
        environment: the training episodes and what a completion to one is worth.
        validation: episodes of other conversations; with ``eval_strategy`` set, they are answered greedily.
        samples: completions written to transcripts.jsonl at each logged step.
    """

    args: Any  # a GRPOConfig; transformers types both of these more widely than TRL keeps them
    model: Any

    def __init__(
        self,
        model: Any,
        args: GRPOConfig,
        environment: Environment,
        tokenizer: PreTrainedTokenizerBase,
        *,
        validation: Environment | None = None,
        samples: int = 4,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.environment, self.validation, self.samples = environment, validation, samples
        self._outcomes: dict[tuple[int, str], Outcome] = {}
        self._rewards_N: torch.Tensor | None = None
        self._states: list[torch.Tensor] | None = None
        """A list while somebody (PPO's critic) wants the hidden states that tokens are predicted from."""
        data, self._ids_of = _dataset(environment, tokenizer)
        self._check_sizes(args, model)
        keep_trainable(model)
        self.run_log = RunLog(str(args.output_dir))
        first, args.eval_on_start = args.eval_on_start, False
        super().__init__(
            model=model,
            reward_funcs=[_part(self, name) for name in environment.parts],
            args=_with_weights(args, environment),
            train_dataset=data,
            eval_dataset=data.select(range(1)) if validation else None,  # only so that Trainer allows evaluation
            processing_class=tokenizer,
            callbacks=[self.run_log, *callbacks],
        )
        if first:
            self.add_callback(ValidateFirst(self.evaluate))
        shorten(self)
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.dtype is not torch.float32:
                parameter.data = parameter.data.float()

    def _check_sizes(self, args: Any, model: Any) -> None:
        groups = args.generation_batch_size // args.num_generations
        if len(self.environment) < groups:
            raise DataError(
                f"there are {len(self.environment)} episodes and one batch takes {groups} different ones. "
                "Give more data, or lower generation_batch_size or per_device_train_batch_size."
            )
        room = model.config.get_text_config().max_position_embeddings - args.max_completion_length
        longest = max(self._ids_of.values(), key=len)
        if len(longest) > room:
            raise DataError(
                f"the longest prompt has {len(longest)} tokens and the model has room for {room} beside "
                f"{args.max_completion_length} of completion. Show fewer memories, or lower max_completion_length."
            )

    # -- from an episode to a prompt -------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokenise as serving does (the two parts apart), not as one string with special tokens around it."""
        return [self._ids_of[prompt] for prompt in prompts], None, {}

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        """Order episodes by seed and epoch, so that a resumed run meets them in the same order."""
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    # -- one prompt, several completions ---------------------------------------------------------------------------

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """Sample as TRL does, computing a prompt once for all its completions; vLLM does that by itself."""
        if self.use_vllm or self.use_transformers_continuous_batching:
            given = (prompt_ids, images, multimodal_fields, num_generations, *rest)
            return super()._generate_single_turn(*given)  # type: ignore[no-untyped-call]
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            return groups.sample(model, prompt_ids, self.generation_config, self.eos_token_ids), None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """What TRL computes, packed by prompt; all rows at once, whatever `batch_size` is: they are few tokens now."""
        cut = input_ids.size(1) - logits_to_keep
        with self.accelerator.autocast():
            logps, entropies = groups.logps(
                model,
                groups.rows_of(input_ids[:, :cut], attention_mask[:, :cut]),
                groups.rows_of(input_ids[:, cut:], attention_mask[:, cut:]),
                logits_to_keep,
                temperature=self.temperature,
                entropies=compute_entropy,
                states=self._states,
                at_once=self.accelerator.num_processes > 1,
            )
        return logps, entropies, None

    # -- from a completion to a reward -----------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """Score a batch once; the parts are TRL's reward functions, and read their number from it."""
        rows = [(int(row["episode"]), text) for row, text in zip(inputs, completions, strict=True)]
        self._outcomes = self._score(rows)
        rewards_N_parts: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_N = (rewards_N_parts * self.reward_weights.to(rewards_N_parts.device)).sum(dim=1)
        self._log_outcomes(rows, prompts)
        return rewards_N_parts

    def _score(self, rows: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Outcome]:
        texts: dict[int, dict[str, None]] = defaultdict(dict)
        for episode, text in rows:
            texts[episode][text] = None
        found: dict[tuple[int, str], Outcome] = {}
        for n, of in texts.items():
            found |= {(n, text): out for text, out in zip(of, self.environment.score(n, [*of]), strict=True)}
        for n in texts:
            if len(states := {out.state for (m, _), out in found.items() if m == n}) > 1:
                raise InputError(
                    f"completions of episode {n} were judged on {len(states)} memory states; expected one per group. "
                    "The environment changed its bank between two completions: give it a copy for each."
                )
        return found

    def _log_outcomes(self, rows: Sequence[tuple[int, str]], prompts: Sequence[str]) -> None:
        outcomes = [self._outcomes[row] for row in rows]
        for name, value in self.environment.observe(outcomes).items():
            self._metrics["train"][name].append(value)
        if self.accelerator.is_main_process and self.samples:
            shown = [
                {"episode": n, "prompt": prompt, "completion": text, **outcome.to_json()}
                for (n, text), prompt, outcome in zip(rows, prompts, outcomes, strict=True)
            ]
            self.run_log.transcripts(self.state.global_step + 1, shown[:: max(1, len(shown) // self.samples)])

    # -- validation ------------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Answer the validation episodes greedily; return and log the mean reward and each part's mean."""
        if self.validation is None:
            raise InputError("there are no validation episodes. Pass `validation`, or set eval_strategy='no'.")
        self.model.eval()
        metrics = scores(self.validation, metric_key_prefix)
        self.log(dict(metrics))
        self.model.train()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- resume ----------------------------------------------------------------------------------------------------

    def fit(self, *, resume: bool = False) -> None:
        """Train; with `resume`, go on from the last whole checkpoint of ``output_dir``, if there is one."""
        checkpoints.train(self, resume=resume)

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint with the highest validation reward; without validation the last one."""
        best = self.state.best_model_checkpoint
        return Path(best) if best else last_checkpoint(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First, because trainer_state.json, written last, marks a checkpoint as whole.
        folder = Path(self.args.output_dir) / f"{PREFIX}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self._rollout_state(), folder / f"{self.accelerator.process_index}-{ROLLOUTS}")
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]

    def _rollout_state(self) -> dict[str, Any]:
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        return {"step": self._step, "waiting": self._buffered_inputs, "metrics": metrics}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]
        if checkpoint is not None:
            self._load_rollout_state(Path(checkpoint))

    def _load_rollout_state(self, folder: Path) -> dict[str, Any]:
        path = folder / f"{self.accelerator.process_index}-{ROLLOUTS}"
        state: dict[str, Any] = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self._step, self._buffered_inputs = state["step"], state["waiting"]
        self._metrics["train"] = defaultdict(list, state["metrics"])
        return state


class MemoryGRPOTrainer(EpisodeTrainer):
    """GRPO over episodes: a group is G completions to one prompt, judged on copies of one memory state."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Sample and score; then take the groups that teach nothing out of the loss.

        All rewards of such a group are equal, so its advantages are 0: left in, it would dilute the others and
        still be pulled to the reference by the KL term.
        """
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        assert self._rewards_N is not None
        size = int(self.args.num_generations)
        groups = self._rewards_N.view(-1, size)
        varied = (groups.max(dim=1).values - groups.min(dim=1).values) > 1e-6
        self._metrics["train"]["groups/dropped"].append(1.0 - varied.float().mean().item())
        start = self.accelerator.process_index * len(inputs)
        keep = varied.repeat_interleave(size)[start : start + len(inputs)]
        output["tool_mask"] = keep.long().unsqueeze(1).expand_as(output["completion_mask"]).contiguous()
        kept_tokens = (output["completion_mask"] * output["tool_mask"]).sum()
        output["num_items_in_batch"] = self.accelerator.gather(kept_tokens).sum()
        return output


class EpochSampler(RepeatSampler):
    """TRL's order of repeats, over a shuffle that is a function of (seed, epoch)."""

    def __init__(self, *args: Any, epoch: Callable[[], int], **options: Any) -> None:
        super().__init__(*args, **options)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(random.Random(f"{self.seed}/{self._epoch()}").getrandbits(63))
        yield from super().__iter__()  # type: ignore[no-untyped-call]


def _dataset(environment: Environment, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, dict[str, list[int]]]:
    if not len(environment):
        raise DataError("there are no episodes to train on. Check the data with `memr1 data check`.")
    prompts = [environment.prompt(n) for n in range(len(environment))]
    texts = [p.fixed + p.body for p in prompts]
    ids_of = {text: encode(tokenizer, prompt) for text, prompt in zip(texts, prompts, strict=True)}
    return Dataset.from_dict({"prompt": texts, "episode": list(range(len(texts)))}), ids_of


def _with_weights(args: GRPOConfig, environment: Environment) -> GRPOConfig:
    if args.reward_weights is not None:
        raise InputError("reward_weights is set, but the environment brings its weights. Give them to the environment.")
    args.reward_weights = [float(environment.weights.get(name, 0.0)) for name in environment.parts]
    return args


def _part(trainer: EpisodeTrainer, name: str) -> Callable[..., list[float | None]]:
    """Return the TRL reward function that reads part `name` of what the trainer has scored."""

    def part(completions: Sequence[str], episode: Sequence[int], **_: Any) -> list[float | None]:
        rows = zip(episode, completions, strict=True)
        return [trainer._outcomes[int(n), text].breakdown.parts[name] for n, text in rows]

    part.__name__ = name
    return part


def mean_rewards(rows: Sequence[Mapping[str, Any]], *, first: int, last: int) -> tuple[float, float]:
    """Return the mean reward of the `first` and of the `last` logged steps: did it rise?"""
    rewards = [float(row["reward"]) for row in rows if row.get("reward") is not None]
    if len(rewards) < max(first, last):
        raise InputError(f"{len(rewards)} steps were logged; expected at least {max(first, last)}.")
    return statistics.fmean(rewards[:first]), statistics.fmean(rewards[-last:])
