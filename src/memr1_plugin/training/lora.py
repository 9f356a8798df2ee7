"""What a LoRA of ours is: its shape, where it came from, and the small folder it is saved as.

`training_run.json` beside the weights names the base and its revision, the role, the hash of the prompt, the data, the
seed, the versions and the scores: `agents.models.read_lora` refuses one whose base or prompt is not its own. Training
is `sft`, `grpo` and `ppo`; packing for a release is `export`.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.models import Weights, trained_prompt_hash
from memr1_plugin.errors import DataError, InputError, MissingExtraError

try:
    import torch
    from peft import LoraConfig, PeftModel
    from safetensors.torch import load_file, save_file
except ImportError as error:
    raise MissingExtraError.of("peft", "train") from error

RUN_FILE = "training_run.json"
WEIGHTS = "adapter_model.safetensors"
MAX_BYTES = 16 * 1024 * 1024
"""Largest LoRA that ships in the wheel: two of them stay under the size at which registries ask questions."""
VERSIONED = ("memr1-plugin", "torch", "transformers", "peft", "trl", "bitsandbytes")


def default_config(**changes: Any) -> LoraConfig:
    """A LoRA on all linear layers, r = 16: 9.8 MB in half precision on SmolLM2-135M. `changes` go to `LoraConfig`."""
    settings: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
    return LoraConfig(task_type="CAUSAL_LM", **{**settings, **changes})


@dataclass(frozen=True)
class TrainingRun:
    """What is known of how a LoRA was made."""

    role: str
    base: str
    base_revision: str
    prompt_hash: str
    data_hash: str
    seed: int
    algorithm: str = "sft"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    """Where the examples came from, and how many."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    created_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, role: Role, weights: Weights, data_hash: str, seed: int, **more: Any) -> TrainingRun:
        """Describe a run for `role` on the base `weights`; `more` are other fields of this class."""
        if role is Role.BASE:
            raise InputError("the base has no LoRA; expected Role.MANAGER or Role.ANSWER.")
        return cls(role.value, weights.name, weights.revision, trained_prompt_hash(role), data_hash, seed, **more)

    def write(self, folder: str | Path) -> Path:
        """Write ``training_run.json`` into `folder`."""
        path = Path(folder) / RUN_FILE
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return new.replace(path)

    @classmethod
    def read(cls, folder: str | Path) -> TrainingRun:
        """Read ``training_run.json`` from `folder`."""
        path = Path(folder) / RUN_FILE
        if not path.exists():
            raise DataError(f"{path} is missing: what this LoRA was trained on is unknown. Train or export it again.")
        row = json.loads(path.read_text(encoding="utf-8"))
        known = set(cls.__dataclass_fields__)
        if extra := set(row) - known:
            raise DataError(f"{path} has the field {sorted(extra)}; expected some of {sorted(known)}.")
        return cls(**row)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a run's numbers; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def save(model: PeftModel, folder: str | Path, run: TrainingRun, *, adapter: str = "default") -> Path:
    """Save one adapter of `model` in half precision with its ``training_run.json``; returns the weights' path.

    Raises:
        InputError: the weights are larger than `MAX_BYTES`; train with a smaller r.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), selected_adapters=[adapter])
    path = folder / WEIGHTS
    halve(path)
    run.write(folder)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} ship. Train with a smaller r.")
    return path


def pack(checkpoint: str | Path, folder: str | Path, run: TrainingRun) -> Path:
    """Make a LoRA that serves of a trainer's `checkpoint`: weights in half precision, configuration, `run`.

    ``training_run.json`` is written last: a folder that has it is whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, "adapter_config.json"):
        shutil.copyfile(Path(checkpoint) / name, folder / name)
    halve(folder / WEIGHTS)
    run.write(folder)
    return folder


def halve(path: Path) -> None:
    """Rewrite a safetensors file in bfloat16: LoRA weights keep their range, and half the bytes are enough."""
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in load_file(str(path)).items()}
    save_file(tensors, str(path), metadata={"format": "pt"})


def average(parts: Mapping[Path, float], folder: str | Path, run: TrainingRun) -> Path:
    """Save the weighted mean of LoRAs of one lineage, with the `run` that says so; returns the weights' path.

    Between what SFT taught and what RL went on to, a point often does better than either end: it keeps what RL had no
    reward for. After WiSE-FT (Wortsman et al. 2022). The A and B matrices are averaged each for themselves, which
    makes sense only where one LoRA was trained on from another.

    Args:
        parts: folder of each LoRA, and its weight; the weights add up to 1.

    Raises:
        InputError: the weights do not add up to 1, or the LoRAs have different shapes.
    """
    if abs(sum(parts.values()) - 1.0) > 1e-6:
        raise InputError(f"the weights add up to {sum(parts.values()):g}; expected 1.")
    loaded = [(load_file(str(Path(part) / WEIGHTS)), weight) for part, weight in parts.items()]
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors, _ in loaded]
    if any(other != shapes[0] for other in shapes):
        raise InputError("the LoRAs have different matrices; expected LoRAs of one lineage, with one r and one target.")
    mean = {
        name: torch.stack([tensors[name].float() * weight for tensors, weight in loaded]).sum(0) for name in shapes[0]
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(mean, str(folder / WEIGHTS), metadata={"format": "pt"})
    halve(folder / WEIGHTS)
    shutil.copyfile(Path(next(iter(parts))) / "adapter_config.json", folder / "adapter_config.json")
    run.write(folder)
    return folder / WEIGHTS
