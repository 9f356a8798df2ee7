"""What the tests of both ways to compute a model share: a tiny random model, and LoRAs on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Role
from memr1_plugin.testing import tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def loras(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random LoRAs, strong enough to change what the tiny model writes, for both roles."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from memr1_plugin.agents import loading

    folder = tmp_path_factory.mktemp("loras")
    weights = models.resolve(tiny)
    for seed, role in enumerate((Role.MANAGER, Role.ANSWER)):
        base = loading.load_base(tiny, quantize=False, dtype=torch.float32, device="cpu")
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False
        )
        peft.get_peft_model(base, config).save_pretrained(folder / role.value)
        run = {"role": role.value, "base": weights.name, "base_revision": weights.revision}
        run["prompt_hash"] = models.trained_prompt_hash(role)
        (folder / role.value / "training_run.json").write_text(json.dumps(run))
    return folder
