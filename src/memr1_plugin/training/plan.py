"""What a recipe would take, and what is missing for it, on any machine: nothing is loaded, built or trained.

Counts are of the files, read as training reads them; what only building tells (SFT rows, turns that need the Manager's
model) is estimated and marked with "about". Memory is an estimate from the shape of the model: see `shapes`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.models import Weights, resolve
from memr1_plugin.errors import LoraMismatchError, WeightsNotFoundError
from memr1_plugin.training import lineage, qa_log, shapes
from memr1_plugin.training.recipe import Recipe, Stage
from memr1_plugin.training.split import Split, split

NEEDED = ("torch", "transformers", "peft", "trl", "datasets", "faker", "bitsandbytes", "matplotlib")
REPORTERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
MANAGER_EXAMPLES = 11
"""Gold operations that one synthetic conversation yields for the Manager; measured over 36."""
MANAGER_TOKENS = 95
"""Tokens of one of them, measured over 8 conversations."""
SHOWN = 0.5
"""Share of the candidates that are near enough to the best to be shown (`Settings.margin`), on average."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do."""

    stage: str
    start: str
    partner: str
    train: str
    """What it trains on, in words."""
    validation: str
    rows: int
    """Packed rows (SFT) or episodes (RL) of one epoch; SFT's is an estimate."""
    completions: int
    """RL: completions that are sampled in all."""
    steps: int
    memory_gb: float
    """Of a GPU, if there is one or the recipe asks for one (bf16, vLLM); else of the machine."""


@dataclass(frozen=True)
class Plan:
    """What a run would take, and what is missing for it."""

    recipe: str
    base: str
    parameters: int
    """0 where neither the weights nor the name tell."""
    device: str
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]
    """What is worth knowing and stops nothing."""
    missing: tuple[str, ...]
    """What stops the run."""

    def to_json(self) -> dict[str, Any]:
        """Return what ``memr1 train --dry-run --json`` prints."""
        return asdict(self)


def plan(recipe: Recipe) -> Plan:
    """Check a recipe without training.

    Raises:
        DataError: a file has a bad line: no plan is made of half a file.
    """
    missing = [*_packages(recipe), *_files(recipe)]
    weights = _weights(recipe, missing)
    shape = shapes.of(recipe.model, weights)
    gpu_gb = _gpu_gb()
    on_gpu = gpu_gb is not None or _wants_gpu(recipe)
    notes: list[str] = []
    read: dict[tuple[Any, ...], Split] = {}
    made: dict[Role, Path] = {}
    stages = []
    for stage in recipe.stages:
        parted = _split(stage, recipe.seed, notes, read)
        missing += _unfit(stage, made, weights) if weights else []
        stages.append(_stage(recipe, stage, parted, made, weights, shape, on_gpu=on_gpu))
        made[stage.role] = Path(f"what {stage.name} makes")
        missing += _nothing(stage, parted)
    missing += _fields(recipe) if find_spec("trl") and find_spec("peft") else []
    most = max(s.memory_gb for s in stages)
    notes += _room(most, gpu_gb, recipe)
    if shape is None:
        notes.append("the base's size is not known here, so memory is not estimated")
    return Plan(
        recipe.name,
        weights.name if weights else recipe.model or "(default)",
        shape.parameters if shape else 0,
        "cpu" if gpu_gb is None else f"GPU with {gpu_gb:.0f} GB",
        tuple(stages),
        tuple(dict.fromkeys(notes)),
        tuple(dict.fromkeys(missing)),
    )


# ── what is missing ──────────────────────────────────────────────────────────────────────────────────────────────


def _packages(recipe: Recipe) -> Iterator[str]:
    for name in NEEDED:
        if find_spec(name) is None:
            yield f"package {name}: pip install 'memr1-plugin[train]'"
    for stage in recipe.stages:
        if (stage.data.chatter or stage.data.chats) and find_spec("chitchat_dataset") is None:
            yield "package chitchat-dataset: pip install chitchat-dataset"
        if stage.trainer.get("use_vllm") and find_spec("vllm") is None:
            yield "package vllm (use_vllm): pip install vllm"
        if stage.trainer.get("deepspeed") and find_spec("deepspeed") is None:
            yield "package deepspeed: pip install deepspeed"
        wanted = stage.trainer.get("report_to", "none")
        for name in [wanted] if isinstance(wanted, str) else wanted:
            options = REPORTERS.get(name, ())
            if options and not any(find_spec(option) for option in options):
                yield f"package {options[-1]} (report_to): pip install {options[-1]}"


def _files(recipe: Recipe) -> Iterator[str]:
    for stage in recipe.stages:
        data = stage.data
        for path in (*data.files, data.validation, data.longmemeval):
            if path and not Path(path).exists():
                yield f"file {path}"


def _weights(recipe: Recipe, missing: list[str]) -> Weights | None:
    try:
        return resolve(recipe.model or None)
    except WeightsNotFoundError as error:
        missing.append(f"base model: {error}")
        return None


def _unfit(stage: Stage, made: Mapping[Role, Path], weights: Weights) -> Iterator[str]:
    """LoRAs to start from, and partners, that are not there or do not fit."""
    for find, role in ((lineage.start_of, stage.role), (lineage.partner_of, lineage.other(stage.role))):
        try:
            folder = find(stage, made, weights)
            if folder is not None and folder not in made.values():
                lineage.check(folder, role, weights)
        except (WeightsNotFoundError, LoraMismatchError) as error:
            yield f"{stage.name}: {error}"


def _nothing(stage: Stage, parted: Split) -> Iterator[str]:
    data = stage.data
    invented = data.synthetic_conversations or (
        stage.algorithm == "sft"
        and (data.statements or data.chats or (data.longmemeval and Path(data.longmemeval).exists()))
    )
    reads_files = stage.algorithm != "sft" or stage.role is Role.ANSWER
    if not invented and not (reads_files and parted.questions):
        what = "files with questions (--data)" if reads_files else "synthetic_conversations"
        yield f"{stage.name}: nothing to train on; give {what}"


def _fields(recipe: Recipe) -> Iterator[str]:
    """Settings that the trainers do not have."""
    from memr1_plugin.agents.hardware import quiet_bitsandbytes

    with quiet_bitsandbytes():
        from peft import LoraConfig
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.sft_config import SFTConfig

        from memr1_plugin.training.ppo import PPOConfig

    kinds: dict[str, Any] = {"sft": SFTConfig, "grpo": GRPOConfig, "ppo": PPOConfig}
    for stage in recipe.stages:
        for table, kind in ((stage.trainer, kinds[stage.algorithm]), (stage.lora, LoraConfig)):
            known = {f.name for f in fields(kind)}
            for name in sorted(set(table) - known):
                yield f"{stage.name}: {kind.__name__} has no field {name!r}"


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _split(stage: Stage, seed: int, notes: list[str], read: dict[tuple[Any, ...], Split]) -> Split:
    """The stage's conversations; files that stages share are read and checked once."""
    data = stage.data
    if any(not Path(path).exists() for path in (*data.files, data.validation) if path):
        return Split((), (), "not read: a file is missing")
    key = (data.files, data.only, data.validation, data.validation_only, data.categories, data.unlinked, data.holdout)
    if key not in read:
        read[key] = split(data, seed)
        report = qa_log.check(read[key].train)
        if report.unlinked:
            notes.append(f"{len(report.unlinked)} questions without evidence are linked to turns by retrieval: a guess")
        if report.pii:
            notes.append(f"{len(report.pii)} texts look as if they held personal data: see `memr1 data check`")
        if report.undated:
            notes.append(f"{len(report.undated)} conversations have no times: what asks 'when' teaches nothing there")
    return read[key]


def _stage(
    recipe: Recipe,
    stage: Stage,
    parted: Split,
    made: Mapping[Role, Path],
    weights: Weights | None,
    shape: shapes.Shape | None,
    *,
    on_gpu: bool,
) -> StagePlan:
    rl = stage.algorithm != "sft"
    rows = _episodes(stage, parted) if rl else _rows(recipe, stage, parted)
    steps = _steps(stage, rows)
    tokens, learned = _tokens(recipe, stage)
    rank = int(stage.lora.get("r", 16))
    memory = shapes.training_gb(shape, rank, tokens, learned, on_gpu=on_gpu, dense=recipe.dense) if shape else 0.0
    return StagePlan(
        stage.name,
        _said(lineage.start_of, stage, made, weights, stage.start or "a fresh LoRA"),
        _said(lineage.partner_of, stage, made, weights, stage.partner or "the base, zero-shot"),
        _train(stage, parted, rows),
        _validation(stage, parted),
        rows,
        steps * _batch(stage) if rl else 0,
        steps,
        round(memory, 2),
    )


def _said(find: Any, stage: Stage, made: Mapping[Role, Path], weights: Weights | None, otherwise: str) -> str:
    """The folder that `find` finds, in words; what cannot be told without the base's weights is as the recipe says."""
    try:
        folder = find(stage, made, weights or Weights("", "", Path(), ""))
    except (WeightsNotFoundError, LoraMismatchError):
        return otherwise
    return otherwise if folder is None else str(folder)


def _train(stage: Stage, parted: Split, rows: int) -> str:
    data, parts = stage.data, []
    if stage.algorithm == "sft" and stage.role is Role.MANAGER:
        parts = [f"{data.synthetic_conversations} synthetic conversations", f"{data.statements} statements"]
    elif stage.data.files:
        parts.append(f"{parted.questions} questions of {len(parted.train)} conversations")
        parts.append(f"{sum(len(c.turns) for c in parted.train)} turns")
    if data.synthetic_conversations and not (stage.algorithm == "sft" and stage.role is Role.MANAGER):
        parts.append(f"{data.synthetic_conversations} synthetic conversations")
    what = "rows" if stage.algorithm == "sft" else "episodes"
    return f"about {rows} {what}: {', '.join(parts)}" if parts else f"about {rows} {what}"


def _validation(stage: Stage, parted: Split) -> str:
    if stage.algorithm == "sft" and stage.role is Role.MANAGER:
        return "gold operations of other synthetic conversations"
    if not parted.validation and stage.algorithm == "sft" and stage.data.synthetic_conversations:
        return "other synthetic conversations"
    return parted.how


def _rows(recipe: Recipe, stage: Stage, parted: Split) -> int:
    """Packed rows of SFT, as far as they can be told without building them."""
    data = stage.data
    if stage.role is Role.MANAGER:
        examples, tokens = MANAGER_EXAMPLES * data.synthetic_conversations + data.statements, MANAGER_TOKENS
    else:
        invented = (data.synthetic_questions or 80) * data.synthetic_conversations
        examples = invented + 5 * data.statements + 7 * data.chats + parted.questions
        margin = recipe.settings.margin
        share = SHOWN if margin is not None and math.isfinite(margin) else 1.0
        tokens = _prompt_tokens(share * recipe.settings.candidates)
    return math.ceil(examples / max(1, stage.max_tokens // tokens))


def _episodes(stage: Stage, parted: Split) -> int:
    """Episodes of RL. A Manager's episode is a turn that completes the evidence of some question."""
    if stage.role is Role.ANSWER:
        found = parted.questions
    else:
        found = 0
        for one in parted.train:
            place = {turn.id: n for n, turn in enumerate(one.turns)}
            linked = {max(place[t] for t in q.evidence) for q in one.questions if q.evidence}
            found += len(linked) + sum(1 for q in one.questions if not q.evidence and not q.unanswerable)
    found += 40 * stage.data.synthetic_conversations
    return min(found, stage.data.episodes) if stage.data.episodes else found


def _batch(stage: Stage) -> int:
    """Rows, or completions, of one optimiser step on one device."""
    sft = stage.algorithm == "sft"
    size = int(stage.trainer.get("per_device_train_batch_size", 1 if sft else 8))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return size * int(stage.trainer.get("gradient_accumulation_steps", 4 if sft else 1)) * world


def _steps(stage: Stage, rows: int) -> int:
    given = int(stage.trainer.get("max_steps", -1))
    if given > 0:
        return given
    epochs = float(stage.trainer.get("num_train_epochs", 1 if stage.algorithm == "sft" else 3))
    if stage.algorithm != "sft":
        rows *= int(stage.trainer.get("num_generations", 8)) * int(stage.trainer.get("num_iterations", 1))
    return math.ceil(epochs * (rows // _batch(stage))) if rows else 0


def _tokens(recipe: Recipe, stage: Stage) -> tuple[int, int]:
    """(tokens in one forward pass, those of them that are predicted): a row of SFT; RL's prompts and completions."""
    if stage.algorithm == "sft":
        return stage.max_tokens, stage.max_tokens // 8
    shown = recipe.settings.candidates if stage.role is Role.ANSWER else recipe.settings.related
    rows = int(stage.trainer.get("per_device_train_batch_size", 8))
    completion = int(stage.trainer.get("max_completion_length", 256))
    prompts = math.ceil(rows / int(stage.trainer.get("num_generations", 8)))
    return prompts * _prompt_tokens(shown) + rows * completion, rows * completion


def _prompt_tokens(memories: float) -> int:
    return int(80 + 45 * memories)


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────


def _gpu_gb() -> float | None:
    """Memory of the first GPU in GB; None where there is none, or no torch to ask."""
    if find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / 1e9


def _room(most_gb: float, gpu_gb: float | None, recipe: Recipe) -> Iterator[str]:
    if gpu_gb is not None and most_gb > gpu_gb:
        yield f"about {most_gb:.0f} GB are needed and the GPU has {gpu_gb:.0f}: lower per_device_train_batch_size"
    if gpu_gb is None and _wants_gpu(recipe):
        yield "this recipe is for a GPU, and there is none here: on this machine it would take days"


def _wants_gpu(recipe: Recipe) -> bool:
    return any(s.trainer.get("bf16") or s.trainer.get("use_vllm") for s in recipe.stages)
