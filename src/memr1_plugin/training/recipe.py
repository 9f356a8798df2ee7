"""Recipes: a training run as a TOML file, checked before it costs anything, then run to a LoRA that serves.

A recipe names a role, an algorithm, the base, where examples come from and the trainer's own settings, unrenamed
(``[sft]`` goes to `SFTConfig`, ``[grpo]`` to `GRPOConfig`, ``[ppo]`` to `PPOConfig`, ``[lora]`` to `LoraConfig`).
`plan` is what ``memr1 train --dry-run`` prints; `run` trains. Data is `sources`, trainers are `sft`, `grpo` and `ppo`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.models import Weights, resolve
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError, InputError, WeightsNotFoundError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALGORITHMS = ("sft", "grpo", "ppo")
NEEDED = ("torch", "transformers", "peft", "trl", "datasets", "faker")


@dataclass(frozen=True)
class Data:
    """Where the examples come from; what is 0 or "" is left out."""

    synthetic_conversations: int = 0
    synthetic_groups: int = 3
    """Groups of questions per synthetic conversation (Answer Agent), each one row of a step."""
    synthetic_seed: int = 7
    longmemeval: str = ""
    """Path of LongMemEval's evidence turns, or of the published files."""
    longmemeval_rounds: int = 2
    files: tuple[str, ...] = ()
    """One's own conversations with questions (`memr1 data check` first)."""
    file_groups: int = 10
    chatter: bool = False
    """Mix in real small talk from the package chitchat-dataset."""
    validation: str = ""
    """Conversations with questions that choose the checkpoint; never trained on."""
    validation_only: str = ""
    """Id of the one conversation in `validation` to use; "" uses all."""


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: str
    role: Role
    algorithm: str = "sft"
    model: str = ""
    """Base model as `Memory.open` takes it; "" is the default."""
    start: str = ""
    """Folder of a LoRA to go on from (RL starts from the SFT one); "" starts afresh."""
    seed: int = 0
    max_tokens: int = 900
    """Longest packed row."""
    save_minutes: float = 10.0
    validate_steps: int = 0
    validate_questions: int = 32
    data: Data = field(default_factory=Data)
    lora: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """The table named after the algorithm."""


def load(path: str | Path) -> Recipe:
    """Read a recipe; an unknown key, role or algorithm is a `DataError` that lists the known ones."""
    path = Path(path)
    try:
        row = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; recipes that come with the project are in training/recipes/."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is no TOML: {error}.") from error
    algorithm = row.get("algorithm", "sft")
    if algorithm not in ALGORITHMS:
        raise DataError(f'{path}: "algorithm" is {algorithm!r}; expected one of {", ".join(ALGORITHMS)}.')
    trainer = row.pop(algorithm, {})
    for other in ALGORITHMS:
        row.pop(other, None)  # one file may hold the settings of several algorithms
    data = Data(**_known(row.pop("data", {}), Data, f"{path}, [data]"))
    known = _known(row, Recipe, str(path))
    if "role" not in known or known["role"] not in ("manager", "answer"):
        raise DataError(f'{path}: "role" is {known.get("role")!r}; expected "manager" or "answer".')
    known |= {"role": Role(known["role"]), "name": known.get("name", path.stem)}
    return Recipe(**{**known, "data": data, "trainer": trainer})


def _known(row: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    if extra := sorted(set(row) - names):
        raise DataError(f"{where}: unknown key {extra[0]!r}; expected some of {sorted(names)}.")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}


@dataclass(frozen=True)
class Plan:
    """What a run would take, and what is missing for it."""

    recipe: str
    base: str
    conversations: int
    """Conversations that examples come from, as far as they can be counted without building them."""
    rows: int
    """Packed rows (SFT) that one epoch trains on, as an estimate; 0 where only building the data tells."""
    steps: int
    memory_gb: float
    """Weights, gradients and optimiser of the LoRA, and one row's activations; the base at 4 bytes on a CPU."""
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what ``memr1 train --dry-run --json`` prints."""
        return asdict(self)


def plan(recipe: Recipe) -> Plan:
    """Check a recipe on any machine, without training and without building its data."""
    missing = [f"package {name}: pip install 'memr1-plugin[train]'" for name in NEEDED if find_spec(name) is None]
    if recipe.data.chatter and find_spec("chitchat_dataset") is None:
        missing.append("package chitchat-dataset: pip install chitchat-dataset")
    paths = [*recipe.data.files, recipe.data.longmemeval, recipe.data.validation, recipe.start]
    missing += [f"file {path}" for path in paths if path and not Path(path).exists()]
    parameters, base = _base(recipe, missing)
    rows = _rows(recipe)
    return Plan(
        recipe.name,
        base,
        recipe.data.synthetic_conversations,
        rows,
        _steps(recipe, rows),
        round(_memory(parameters, recipe.max_tokens), 2),
        tuple(missing),
    )


def _base(recipe: Recipe, missing: list[str]) -> tuple[int, str]:
    """(parameters, name) of the base; 0 where its weights are not on this machine."""
    try:
        weights = resolve(recipe.model or None)
    except WeightsNotFoundError as error:
        missing.append(f"base model: {error}")
        return 0, recipe.model or "(default)"
    files = list(weights.path.glob("*.safetensors")) if weights.path.exists() else []
    size = sum(p.stat().st_size for p in files) or (weights.gguf.stat().st_size * 6 if weights.gguf else 0)
    return size // 4, weights.name


def _rows(recipe: Recipe) -> int:
    data = recipe.data
    groups = 1 if recipe.role is Role.MANAGER else data.synthetic_groups
    return data.synthetic_conversations * groups


def _steps(recipe: Recipe, rows: int) -> int:
    if "max_steps" in recipe.trainer:
        return int(recipe.trainer["max_steps"])
    batch = int(recipe.trainer.get("gradient_accumulation_steps", 4))
    return int(rows * float(recipe.trainer.get("num_train_epochs", 1)) // batch)


def _memory(parameters: int, tokens: int) -> float:
    """GB: base in float32, LoRA of 4 % with gradient and Adam, 0.5 kB of activations a token and million weights."""
    return (parameters * 4 + 0.04 * parameters * 16 + tokens * parameters * 0.5e-3) / 1e9


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────


def examples(recipe: Recipe, embedder: Embedder) -> tuple[list[list[Any]], dict[str, Any]]:
    """Build the supervised groups of a recipe, and say what they are made of."""
    from memr1_plugin.training import sources

    data, made, lines = recipe.data, [], []
    counts: dict[str, Any] = {}
    amount = sources.Amount(data.synthetic_seed, data.synthetic_conversations, data.synthetic_groups)
    if recipe.role is Role.MANAGER:
        made = sources.operation_groups(amount, embedder)
        counts["synthetic operations"] = len(made)
        return made, counts
    lines = sources.chatter() if data.chatter else []
    parts: list[tuple[str, Any]] = [("synthetic", sources.synthetic_groups(amount, embedder, lines))]
    if data.longmemeval:
        rounds = data.longmemeval_rounds
        parts.append(
            ("LongMemEval evidence", sources.longmemeval_groups(data.longmemeval, embedder, lines, rounds=rounds))
        )
    parts += [(Path(p).name, sources.file_groups(p, data.file_groups, embedder, recipe.seed)) for p in data.files]
    for name, groups in parts:
        found = list(groups)
        made += found
        counts[f"{name}: examples (groups)"] = f"{sum(map(len, found))} ({len(found)})"
    if not made:
        raise DataError(f"recipe {recipe.name!r} names no data; set synthetic_conversations, longmemeval or files.")
    return sources.mixed(made, recipe.seed), counts


def run_sft(recipe: Recipe, folder: str | Path, embedder: Embedder, *, max_steps: int = -1) -> Path:
    """Train a LoRA as `recipe` says, resuming what `folder` holds; returns the folder of the finished LoRA.

    Raises:
        InputError: the recipe's algorithm is not "sft" (`grpo` and `ppo` have their own trainers).
    """
    if recipe.algorithm != "sft":
        raise InputError(f"recipe {recipe.name!r} is for {recipe.algorithm}; expected sft.")
    from memr1_plugin.training import episodes, lora, sft

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "examples.jsonl"
    groups, counts = (episodes.load(cache), {}) if cache.exists() else examples(recipe, embedder)
    if not cache.exists():
        episodes.save(groups, cache)
    weights = resolve(recipe.model or None)
    model, tokenizer = _start(recipe, weights)
    settings = sft.config(folder, seed=recipe.seed, **{**recipe.trainer, "max_steps": max_steps})
    trainer = sft.train(
        model,
        tokenizer,
        groups,
        settings,
        max_tokens=recipe.max_tokens,
        save_minutes=recipe.save_minutes,
        score=_validation(recipe, model, tokenizer, embedder),
        score_steps=recipe.validate_steps,
    )
    run = lora.TrainingRun.of(
        recipe.role,
        weights,
        sft.data_hash(groups),
        recipe.seed,
        data=counts,
        metrics={"steps": trainer.state.global_step},
        settings={**recipe.trainer, **{f"lora {k}": v for k, v in recipe.lora.items()}},
    )
    lora.save(model, folder / "final", run)
    return folder / "final"


def _start(recipe: Recipe, weights: Weights) -> tuple[Any, Any]:
    """The base in float32 (autocast computes in bfloat16 where that pays), with a fresh LoRA or the one in `start`."""
    import torch
    from peft import PeftModel, get_peft_model

    from memr1_plugin.agents.loading import load_base, load_tokenizer
    from memr1_plugin.agents.setup import prepare
    from memr1_plugin.training import lora

    ready = prepare(weights)
    torch.manual_seed(recipe.seed)
    base = load_base(ready.path, quantize=False, dtype=torch.float32)
    if recipe.start:
        model: Any = PeftModel.from_pretrained(base, recipe.start, is_trainable=True)
    else:
        model = get_peft_model(base, lora.default_config(**recipe.lora))
    return model, load_tokenizer(ready.path)


def _validation(recipe: Recipe, model: Any, tokenizer: Any, embedder: Embedder) -> Any:
    """A function from the step to scores by generation over held-out questions; None without a validation file."""
    if not recipe.data.validation or recipe.role is not Role.ANSWER or not recipe.validate_steps:
        return None
    from memr1_plugin.evaluation.datasets import load as load_data
    from memr1_plugin.training import episodes
    from memr1_plugin.training.shared import POLICY, SharedBase

    wanted = recipe.data.validation_only
    held = [c for c in load_data(recipe.data.validation) if not wanted or c.id == wanted]
    asked = [e for c in held for e in episodes.answer_episodes(c, embedder) if e.question.answer]
    asked = asked[: recipe.validate_questions]
    engine = SharedBase(model, tokenizer, {Role.ANSWER: POLICY}, batch_size=8)
    return lambda step: score_answers(engine, asked)


def score_answers(engine: Any, asked: Sequence[Any]) -> dict[str, float]:
    """Mean F1, exact match, share of gold memories named, and share of abstentions, over answer episodes."""
    from memr1_plugin.agents import answerer
    from memr1_plugin.evaluation.metrics import exact_match, f1

    if not asked:
        raise DataError("no validation question has an answer; name a file with answered questions.")
    totals = dict.fromkeys(("f1", "em", "selected", "abstained"), 0.0)
    for episode, done in zip(asked, engine.complete([e.prompt() for e in asked], Role.ANSWER), strict=True):
        used, text = answerer.parse(done.text, episode.items)
        shown = answerer.by_date(episode.items)
        gold = {shown[n - 1].id for n in episode.places()}
        totals["f1"] += f1(text, episode.question.answer)
        totals["em"] += exact_match(text, episode.question.answer)
        totals["selected"] += len(gold & set(used)) / len(gold) if gold else 0.0
        totals["abstained"] += not text
    return {name: round(total / len(asked), 4) for name, total in totals.items()}
