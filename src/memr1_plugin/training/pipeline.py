"""Runs a recipe: its stages in order, each from its data to a LoRA, and the best of each role to a folder that serves.

    recipe.toml, run.json      what was asked for: the same command goes on where it stopped, another one is refused
    1-answer-sft/              a stage: metrics.jsonl, transcripts.jsonl, curves.png, checkpoints, lora/, result.json
    best/manager, best/answer  what `Memory.open(loras=FOLDER/best)` takes

What is trained on is `material`, how `sft` and `rl`; what it would take is `plan`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.local import LocalEngine
from memr1_plugin.agents.manager import Manager
from memr1_plugin.agents.models import Weights, resolve
from memr1_plugin.agents.setup import prepare
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.training import checkpoints, lineage, lora, run_log, sft
from memr1_plugin.training.lora import RUN_FILE, TrainingRun
from memr1_plugin.training.material import Maker, Material, Told
from memr1_plugin.training.recipe import Recipe, Stage
from memr1_plugin.training.split import split

try:
    import torch

    from memr1_plugin.agents.loading import load_tokenizer
    from memr1_plugin.training.base import load_trainable
except ImportError as error:
    raise MissingExtraError.of("torch", "train") from error

RESULT = "result.json"
LORA = "lora"
BEST = "best"


@dataclass(frozen=True)
class Result:
    """What one stage came to."""

    stage: str
    lora: str
    """Folder of the LoRA."""
    steps: int
    before: float | None
    """Validation reward before the first step; None without validation."""
    best: float | None
    best_step: int | None
    """0: nothing validated better than what it started from, and that is what `lora` holds."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def run(
    recipe: Recipe, folder: str | Path, embedder: Embedder, *, quiet: bool = False, told: Told = lambda *_: None
) -> list[Result]:
    """Train every stage of `recipe` into `folder`, going on where an earlier call stopped.

    Args:
        embedder: the one that the bot's bank uses.
        quiet: no progress bars.
        told: told what is being prepared, how many of it are done, and of how many.

    Raises:
        InputError: `folder` was begun with another recipe or other data.
        DataError: nothing to train on, or a bad line in a file.
        LoraMismatchError: a LoRA to start from, or a partner, is for another base or prompt.
    """
    folder = Path(folder)
    _claim(recipe, folder)
    weights = prepare(resolve(recipe.model or None))
    made: dict[Role, Path] = {}
    partners: dict[Role, Path | None] = {}
    results = []
    for number, stage in enumerate(recipe.stages, 1):
        to = folder / f"{number}-{stage.role.value}-{stage.algorithm}"
        start, partner = lineage.start_of(stage, made, weights), lineage.partner_of(stage, made, weights)
        lineage.check(start, stage.role, weights)
        lineage.check(partner, lineage.other(stage.role), weights)
        if not (to / RESULT).exists():
            _Stage(recipe, stage, to, weights, embedder, start, partner, quiet, told).run()
        results.append(Result(**json.loads((to / RESULT).read_text(encoding="utf-8"))))
        made[stage.role] = to / LORA
        partners[lineage.other(stage.role)] = partner
    if _is_first_process():
        _assemble(folder / BEST, {**partners, **made})
    return results


def _claim(recipe: Recipe, folder: Path) -> None:
    """Write down what is asked for; a folder that holds a run of something else is refused."""
    files = {path for stage in recipe.stages for path in (*stage.data.files, stage.data.validation) if path}
    hashes = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in sorted(files)}
    asked = json.loads(json.dumps({"recipe": recipe.to_json(), "files": hashes}))
    path = folder / "run.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != asked:
            raise InputError(
                f"{folder} holds a run of another recipe or other data ({_difference(before, asked)}). "
                "Name a new folder with --out, or repeat the command that began it to go on."
            )
        return
    if _is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(recipe.text, encoding="utf-8")
        path.write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _difference(before: Any, now: Any, where: str = "") -> str:
    """The first place where two JSON values differ, in words."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(k for k in now if k not in before)]:
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for n, (one, two) in enumerate(zip(before, now, strict=True)):
            if one != two:
                return _difference(one, two, f"{where}[{n}]")
    return f"{where} was {before!r}, now {now!r}"


@dataclass
class _Stage:
    """One stage on its way."""

    recipe: Recipe
    stage: Stage
    to: Path
    weights: Weights
    embedder: Embedder
    start: Path | None
    partner: Path | None
    quiet: bool
    told: Told

    def run(self) -> None:
        """Data, training, the best checkpoint to a LoRA, the result."""
        material = self._material()
        trainer = self._sft(material) if self.stage.algorithm == "sft" else self._rl(material)
        if trainer.accelerator.is_main_process:
            self._finish(material)
        trainer.accelerator.wait_for_everyone()
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _material(self) -> Material:
        stage, seed = self.stage, self.recipe.seed
        parted = split(stage.data, seed)
        with ExitStack() as stack:
            manager = self._manager(stack) if parted.train else None
            maker = Maker(stage, parted, self.embedder, self.recipe.settings, seed, manager, self.told)
            return maker.make()

    def _manager(self, stack: ExitStack) -> Manager | None:
        """The Manager as it serves at this point, on a base of its own that is let go before training."""
        stage = self.stage
        folder = self.partner if stage.role is Role.ANSWER else self.start
        fresh = stage.role is Role.MANAGER and folder is None
        if stage.data.bank == "add" or fresh or (stage.algorithm == "sft" and stage.role is Role.MANAGER):
            return None
        engine = LocalEngine(self.recipe.model or None, {} if folder is None else {Role.MANAGER: folder})
        stack.callback(engine.close)
        return Manager(engine, self.recipe.settings)

    def _base(self) -> tuple[Any, Any]:
        torch.manual_seed(self.recipe.seed)
        return load_trainable(self.weights.path, dense=self.recipe.dense), load_tokenizer(self.weights.path)

    def _values(self, validated: bool) -> dict[str, Any]:
        """What every trainer is told; the recipe's own table comes last."""
        steps = self.stage.validate_steps or 25
        return {
            "seed": self.recipe.seed,
            "save_strategy": "steps",
            "save_steps": steps,
            "save_total_limit": 2,
            "eval_strategy": "steps" if validated else "no",
            "eval_steps": steps,
            "eval_on_start": validated,
            "disable_tqdm": self.quiet,
            **self.stage.trainer,
        }

    def _first(self) -> Any:
        return self.start or lora.default_config(**self.stage.lora)

    def _sft(self, material: Material) -> Any:
        from memr1_plugin.training.environment import AnswerEnvironment
        from memr1_plugin.training.shared import share
        from memr1_plugin.training.validation import GoldOperations

        stage = self.stage
        base, tokenizer = self._base()
        model, engine = share(base, tokenizer, stage.role, start=self._first())
        held: Any = None
        if material.validation and stage.role is Role.MANAGER:
            held = GoldOperations(material.validation, engine, self.recipe.settings)
        elif material.validation:
            weights = {"weights": stage.rewards} if stage.rewards else {}
            held = AnswerEnvironment(material.validation, engine, **weights)
        return sft.train(
            model,
            tokenizer,
            material.examples,
            sft.config(self.to, **self._values(held is not None)),
            max_tokens=stage.max_tokens,
            save_minutes=stage.save_minutes,
            validation=held,
        )

    def _rl(self, material: Material) -> Any:
        from memr1_plugin.training import rl
        from memr1_plugin.training.grpo import laptop_config

        stage = self.stage
        base, tokenizer = self._base()
        return rl.train(
            stage.role,
            base,
            tokenizer,
            material.episodes,
            laptop_config(self.to, rl.CONFIGS[stage.algorithm], **self._values(bool(material.validation))),
            start=self._first(),
            frozen=self.partner,
            validation=material.validation,
            embedder=self.embedder,
            weights=stage.rewards or None,
            settings=self.recipe.settings,
        )

    def _finish(self, material: Material) -> None:
        """Pack the best checkpoint; what validated no better than the start is not what is served."""
        validated = {
            int(row["step"]): float(row["eval_reward"])
            for row in run_log.read(self.to / run_log.METRICS)
            if row.get("eval_reward") is not None
        }
        last, chosen = checkpoints.last_checkpoint(self.to), checkpoints.best_checkpoint(self.to)
        assert last is not None and chosen is not None  # the last step saves, or the trainer raises
        steps, step = (int(path.name.rsplit("-", 1)[1]) for path in (last, chosen))
        before, best = validated.get(0), validated.get(step)
        kept = self.start is not None and before is not None and best is not None and best <= before
        result = Result(
            self.stage.name,
            str(self.to / LORA),
            steps,
            before,
            before if kept else best,
            (0 if kept else step) if validated else None,
        )
        run = TrainingRun.of(
            self.stage.role,
            self.weights,
            material.hash,
            self.recipe.seed,
            algorithm=self.stage.algorithm,
            data=material.counts,
            metrics={k: v for k, v in result.to_json().items() if k not in ("lora", "stage") and v is not None},
            settings=self._settings(),
        )
        if kept and self.start is not None:
            _copy(self.start, self.to / LORA)
        else:
            lora.pack(chosen, self.to / LORA, run)
        run.write(self.to)
        (self.to / RESULT).write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")

    def _settings(self) -> dict[str, Any]:
        stage = self.stage
        named = {"lora": stage.lora, "rewards": stage.rewards, "memory": self.recipe.memory}
        plain = {f"{name} {key}": value for name, table in named.items() for key, value in table.items()}
        where = {
            "start": stage.start or ("the stage before" if self.start else "a fresh LoRA"),
            "partner": "its LoRA, frozen" if self.partner else "the base, zero-shot",
        }
        return {**stage.trainer, **plain, **where}


def _assemble(folder: Path, loras: Mapping[Role, Path | None]) -> None:
    """Lay the LoRAs out as serving looks for them; the folder is replaced as a whole."""
    scratch = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    for role, source in loras.items():
        if source is not None:
            _copy(source, scratch / role.value)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _copy(source: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for name in (lora.WEIGHTS, "adapter_config.json", RUN_FILE):
        shutil.copyfile(source / name, to / name)


def _is_first_process() -> bool:
    """True but for the other processes that ``accelerate launch`` starts."""
    return int(os.environ.get("RANK", "0")) == 0
