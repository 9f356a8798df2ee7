"""Which LoRA a stage goes on from, and which frozen LoRA is the other agent beside it.

Names in a recipe to folders; nothing is loaded. What an earlier stage of the same run made comes first, so that stages
written one after the other build on each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from memr1_plugin.agents.engine import Role
from memr1_plugin.agents.models import Weights, find_loras, read_lora
from memr1_plugin.errors import WeightsNotFoundError
from memr1_plugin.training.recipe import NOBODY, SHIPPED, Stage

LORA_FILE = "adapter_model.safetensors"


def other(role: Role) -> Role:
    """The other agent."""
    return Role.ANSWER if role is Role.MANAGER else Role.MANAGER


def start_of(stage: Stage, made: Mapping[Role, Path], weights: Weights) -> Path | None:
    """The folder of the LoRA that `stage` goes on from; None: a fresh one."""
    if stage.start == "":
        return made.get(stage.role)
    return _named(stage.start, stage.role, weights, "start")


def partner_of(stage: Stage, made: Mapping[Role, Path], weights: Weights) -> Path | None:
    """The folder of the other agent's LoRA; None: the base itself, zero-shot."""
    role = other(stage.role)
    if stage.partner == NOBODY:
        return None
    if stage.partner == "":
        return made.get(role) or find_loras(weights.name).get(role)
    return _named(stage.partner, role, weights, "partner")


def _named(name: str, role: Role, weights: Weights, key: str) -> Path:
    """The LoRA folder that a recipe names: one with the weights inside, or with ``manager/`` and ``answer/``."""
    folder = Path(name).expanduser()
    if name != SHIPPED and (folder / LORA_FILE).is_file():
        return folder
    found = find_loras(weights.name) if name == SHIPPED else find_loras(weights.name, folder)
    if role not in found:
        what = f"no {role.value} LoRA ships for {weights.name}" if name == SHIPPED else f"{name} has no {role.value}/"
        raise WeightsNotFoundError(f"{key} is {name!r}, and {what}. Name a LoRA folder, or leave {key} out.")
    return found[role]


def check(folder: Path | None, role: Role, weights: Weights) -> None:
    """Raise `LoraMismatchError` where the LoRA in `folder` is for another role, base or prompt."""
    if folder is not None:
        read_lora(folder, role, weights)
