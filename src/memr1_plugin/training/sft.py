"""Supervised fine-tuning of either agent, on TRL's `SFTTrainer`: the warm start before RL, and most of the gain.

Examples are the prompts that serving sends and the completions that it reads. They are packed into rows of one length:
what all prompts of a row begin with is computed once, and each example sees that and itself alone, at the positions it
would have alone. The loss is that of the single examples, and no row is padded. Rewards and RL are `grpo` and `ppo`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Prompt
from memr1_plugin.errors import DataError, InputError, MissingExtraError
from memr1_plugin.training import checkpoints
from memr1_plugin.training.progress import shorten
from memr1_plugin.training.run_log import RunLog
from memr1_plugin.training.shared import encode
from memr1_plugin.training.validation import ValidateFirst, Validation, scores

try:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import (
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise MissingExtraError.of("trl", "train") from error

IGNORED = -100
"""Label of a token that is not learned."""


@dataclass(frozen=True)
class Example:
    """One prompt as serving sends it, and the completion to learn."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class Packed:
    """Examples that begin alike, as one sequence. Four lists of one length, in tokens."""

    input_ids: list[int]
    position_ids: list[int]
    segments: list[int]
    """0 for the common beginning, n for the n-th example's own tokens."""
    labels: list[int]


def pack(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Packed:
    """Join `examples`: their common beginning once, then each one's own tokens and its completion.

    Raises:
        InputError: no examples.
    """
    if not examples:
        raise InputError("pack got no examples; expected at least one.")
    prompts = [encode(tokenizer, example.prompt) for example in examples]
    shared = min(_common(prompts[0], other) for other in prompts)
    shared = min(shared, min(map(len, prompts)) - 1)  # an example's last prompt token predicts: it stays its own
    packed = Packed(prompts[0][:shared], list(range(shared)), [0] * shared, [IGNORED] * shared)
    for n, (prompt, example) in enumerate(zip(prompts, examples, strict=True), 1):
        answer = [*tokenizer(example.completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        own = [*prompt[shared:], *answer]
        packed.input_ids.extend(own)
        packed.position_ids.extend(range(shared, shared + len(own)))
        packed.segments.extend([n] * len(own))
        packed.labels.extend([IGNORED] * (len(prompt) - shared) + answer)
    return packed


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def attention(segments: torch.Tensor) -> torch.Tensor:
    """Return the (1, 1, T, T) bool mask of a packed sequence: what is before, and common or of one's own example."""
    own = segments[:, None] == segments[None, :]
    return (torch.tril(own | (segments == 0)[None, :]))[None, None]


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Turn one packed row into tensors. One row a step: rows are long already, and steps accumulate."""
    if len(rows) != 1:
        raise InputError(f"{len(rows)} packed rows in one batch; expected per_device_train_batch_size=1.")
    row = {name: torch.tensor(rows[0][name]) for name in ("input_ids", "position_ids", "segments", "labels")}
    return {
        "input_ids": row["input_ids"][None],
        "position_ids": row["position_ids"][None],
        "attention_mask": attention(row["segments"]),
        "labels": row["labels"][None],
    }


def loss_of(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (sum of the completion tokens' negative log likelihoods, how many were the most likely token).

    Logits are computed at completion tokens only: with 49,152 words in the vocabulary they are a quarter of the cost.
    """
    learned = batch["labels"][0] != IGNORED
    predicting = _previous(batch, learned.nonzero()[:, 0])
    out = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_to_keep=predicting,
        use_cache=False,
    )
    logits, gold = out.logits[0].float(), batch["labels"][0][learned]
    return torch.nn.functional.cross_entropy(logits, gold, reduction="sum"), (logits.argmax(-1) == gold).sum()


def _previous(batch: Mapping[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """The place of the token before each of `places`: an example keeps its last prompt token, so it is one back."""
    return places - 1


class PackedTrainer(SFTTrainer):
    """`SFTTrainer` over packed rows: same optimiser, logging, checkpoints; a loss that knows the packing.

    With `validation`, ``eval_strategy`` means what it means in `grpo`: held-out episodes are completed greedily, and
    ``eval_on_start`` does so once, not at each resume.
    """

    def __init__(self, model: PeftModel, args: SFTConfig, rows: Dataset, *, validation: Validation | None, **more: Any):
        self.validation = validation
        first, args.eval_on_start = args.eval_on_start, False
        held = rows.select(range(1)) if validation else None  # only so that Trainer allows evaluation
        super().__init__(model=model, args=args, train_dataset=rows, eval_dataset=held, data_collator=collate, **more)
        if first:
            self.add_callback(ValidateFirst(self.evaluate))
        shorten(self)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Complete the validation episodes greedily; return and log the mean reward and each part's mean."""
        if self.validation is None:
            raise InputError("there are no validation episodes. Pass `validation`, or set eval_strategy='no'.")
        metrics = scores(self.validation, metric_key_prefix)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint that validated best; without validation the last one."""
        best = self.state.best_model_checkpoint
        return Path(best) if best else checkpoints.last_checkpoint(str(self.args.output_dir))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum over completion tokens, divided by their number in the whole (accumulated) batch."""
        total, right = loss_of(model, inputs)
        learned = (inputs["labels"] != IGNORED).sum()
        self._metrics["train" if model.training else "eval"]["token_accuracy"].append((right / learned).item())
        loss = total / (learned if num_items_in_batch is None else num_items_in_batch)
        return (loss, {"loss": loss}) if return_outputs else loss


class SaveByTime(TrainerCallback):
    """Saves a checkpoint when `minutes` have passed since the last one, and at the last step.

    Steps have no fixed length here; and what comes after training can fail, and must not cost the run.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds, self.last = minutes * 60, time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a save when it is time."""
        if time.monotonic() - self.last >= self.seconds or state.global_step >= state.max_steps:
            control.should_save = True
            self.last = time.monotonic()


class Score(TrainerCallback):
    """Calls `score` every `steps` steps and logs what it returns as "val_...": numbers to look at, not to choose by."""

    def __init__(self, score: Callable[[int], Mapping[str, float]], steps: int, log: RunLog) -> None:
        self.score, self.steps, self.run_log = score, steps, log

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Score and append to metrics.jsonl."""
        if self.steps and state.global_step % self.steps == 0:
            found = {f"val_{name}": value for name, value in self.score(state.global_step).items()}
            self.run_log.on_log(args, state, control, found)


def rows_of(tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_tokens: int) -> Dataset:
    """Pack examples into rows of up to `max_tokens`, in their order; one that alone is longer is left out.

    Raises:
        DataError: no example is short enough.
    """
    rows: list[list[Example]] = []
    filled = max_tokens
    for example in examples:
        length = len(pack(tokenizer, [example]).input_ids)
        if length > max_tokens:
            continue
        if filled + length > max_tokens:
            rows.append([])
            filled = 0
        rows[-1].append(example)
        filled += length
    if not rows:
        raise DataError(f"no example fits {max_tokens} tokens; raise max_tokens or show fewer memories.")
    return Dataset.from_list([asdict(pack(tokenizer, row)) for row in rows])


def config(folder: str | Path, *, seed: int = 0, **changes: Any) -> SFTConfig:
    """The `SFTConfig` of a run; `changes` go to it unrenamed. Computes in bfloat16 where that is fast."""
    on_cpu = not torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "learning_rate": 4e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "num_train_epochs": 1,
        "logging_steps": 5,
        "save_strategy": "no",
        "save_total_limit": 2,
        "bf16": bf16_pays(),
        "use_cpu": on_cpu,
        "gradient_checkpointing": False,
        "report_to": "none",
        "seed": seed,
        "data_seed": seed,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_grad_norm": 1.0,
        "metric_for_best_model": "eval_reward",
        "greater_is_better": True,
    }
    known = {f.name for f in fields(SFTConfig)}
    if unknown := sorted(set(changes) - known):
        raise InputError(f"SFTConfig has no field {unknown}; see its documentation for the {len(known)} it has.")
    return SFTConfig(**{**settings, **changes})


def bf16_pays() -> bool:
    """True on a GPU that computes in bfloat16, and on a CPU with AVX512-BF16 or AMX; elsewhere it is far slower."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def data_hash(examples: Iterable[Example]) -> str:
    """16 hex digits that name the examples: their prompts and completions, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.prompt.fixed, example.prompt.body, example.completion]).encode())
    return digest.hexdigest()[:16]


def train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: SFTConfig,
    *,
    max_tokens: int = 1024,
    save_minutes: float = 10.0,
    validation: Validation | None = None,
    score: Callable[[int], Mapping[str, float]] | None = None,
    score_steps: int = 0,
) -> PackedTrainer:
    """Train the LoRA of `model` in place, going on from the newest whole checkpoint in ``settings.output_dir``.

    Args:
        model: a `PeftModel` whose active adapter is the LoRA to train.
        examples: packed in this order into rows of up to `max_tokens`; a step takes several rows.
        validation: completed greedily as often as ``settings.eval_steps`` says; chooses the best checkpoint.
        score: called with the step, every `score_steps` steps; what it returns is logged as "val_...".
    """
    folder = Path(settings.output_dir or "runs")
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder)
    callbacks: list[TrainerCallback] = [log, SaveByTime(save_minutes)]
    if score is not None:
        callbacks.append(Score(score, score_steps, log))
    trainer = PackedTrainer(
        model,
        settings,
        rows_of(tokenizer, examples, max_tokens),
        validation=validation,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    checkpoints.train(trainer, resume=True)
    return trainer
