"""Packing a run's LoRA for serving: ``adapters/<base>/<role>/`` with weights, ``training_run.json`` and a card.

The last step of a recipe. It checks that what it packs would be served (`agents.models.read_lora`) and is small enough
to ship; it trains and scores nothing. The card's shape is the Hugging Face model card's, with the numbers first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.models import Weights, read_lora
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.training.lora import MAX_BYTES, RUN_FILE, WEIGHTS, TrainingRun

FILES = (WEIGHTS, "adapter_config.json", RUN_FILE)
CARD = "README.md"


def export(source: str | Path, role: Role, weights: Weights, into: str | Path) -> Path:
    """Copy the LoRA in `source` to ``into/<base>/<role>/`` and write its card; returns that folder.

    Raises:
        LoraMismatchError: it was trained for another role, base or prompt.
        DataError: a file is missing.
        InputError: the weights are too large to ship.
    """
    source = Path(source)
    if missing := [name for name in FILES if not (source / name).is_file()]:
        raise DataError(f"{source} lacks {missing}; expected {list(FILES)}. Train to the end, or save a checkpoint.")
    read_lora(source, role, weights)
    if (size := (source / WEIGHTS).stat().st_size) > MAX_BYTES:
        raise InputError(f"{source / WEIGHTS} has {size:,} bytes; at most {MAX_BYTES:,} ship. Train with a smaller r.")
    folder = Path(into) / weights.name / role.value
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, folder / name)
    _plain_base_name(folder / "adapter_config.json", weights.name)
    run = TrainingRun.read(folder)
    (folder / CARD).write_text(card(run), encoding="utf-8")
    if (curves := source / "curves.png").is_file() or (curves := source.parent / "curves.png").is_file():
        shutil.copyfile(curves, folder / "curves.png")
    return folder


def _plain_base_name(path: Path, name: str) -> None:
    """Name the base instead of the folder it lay in on the machine that trained."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def card(run: TrainingRun) -> str:
    """The model card: what it is, how good it is, what it was trained on, and how to use it."""
    what = "Memory Manager" if run.role == Role.MANAGER.value else "Answer Agent"
    return f"""---
license: apache-2.0
base_model: {run.base}
library_name: peft
---
# {what} LoRA for {run.base}

Trained with memr1-plugin's own pipeline ({run.algorithm.upper()}, {run.created_at[:10]}); loaded by default, no
setting needed. It serves under prompt `{run.prompt_hash}` on base revision `{run.base_revision}` and is refused
under any other.

## Scores

{_table(run.metrics) if run.metrics else "Not measured."}

## Data

{_table(run.data)}

Data hash `{run.data_hash}`, seed {run.seed}. No LoCoMo text was trained on: it evaluates only.

## Settings

{_table(run.settings)}

Versions: {", ".join(f"{name} {version}" for name, version in run.versions.items())}.
"""


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(["| what | value |", "| --- | --- |", *rows])
