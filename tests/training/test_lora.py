"""LoRA folders: small, half precision, and telling what they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Role
from memr1_plugin.errors import DataError, InputError, LoraMismatchError
from memr1_plugin.testing import tiny_model
from memr1_plugin.training import export, lora
from memr1_plugin.training.lora import TrainingRun

torch.set_num_threads(1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a tiny random model."""
    return tiny_model(tmp_path / "base")


def _saved(base: Path, folder: Path, role: Role = Role.ANSWER) -> Path:
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora.default_config(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    run = TrainingRun.of(role, models.in_folder(base), "cafe", 3, metrics={"F1": 41.5})
    lora.save(model, folder, run)
    return folder


def test_a_saved_lora_is_half_precision_and_loads_again(base: Path, tmp_path: Path) -> None:
    """Half the bytes, the same weights to bfloat16's precision."""
    folder = _saved(base, tmp_path / "lora")
    assert {t.dtype for t in load_file(str(folder / lora.WEIGHTS)).values()} == {torch.bfloat16}
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    assert any(float(p.abs().max()) > 0 for n, p in again.named_parameters() if "lora_B" in n)


def test_a_training_run_goes_to_json_and_back(base: Path, tmp_path: Path) -> None:
    """What is written is what is read, and it names role, prompt, base and versions."""
    run = TrainingRun.read(_saved(base, tmp_path / "lora"))
    assert (run.role, run.data_hash, run.seed, run.metrics["F1"]) == ("answer", "cafe", 3, 41.5)
    assert run.prompt_hash == models.trained_prompt_hash(Role.ANSWER)
    assert run.versions["torch"] == torch.__version__


def test_what_is_exported_is_what_serving_takes(base: Path, tmp_path: Path) -> None:
    """Export lays the folder out as serving looks for it, with a card, and names no folder of this machine."""
    weights = models.in_folder(base)
    folder = export.export(_saved(base, tmp_path / "run"), Role.ANSWER, weights, tmp_path / "adapters")
    assert models.find_loras(weights.name, tmp_path / "adapters" / weights.name) == {Role.ANSWER: folder}
    assert models.read_lora(folder, Role.ANSWER, weights).prompt_hash == models.trained_prompt_hash(Role.ANSWER)
    assert "| F1 | 41.5 |" in (folder / "README.md").read_text()
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.glob("*.json"))


def test_export_refuses_what_would_not_be_served(base: Path, tmp_path: Path) -> None:
    """Another role, a missing file, too many bytes: each error says what to do."""
    weights, run = models.in_folder(base), _saved(base, tmp_path / "run")
    with pytest.raises(LoraMismatchError, match="role"):
        export.export(run, Role.MANAGER, weights, tmp_path)
    (run / lora.RUN_FILE).unlink()
    with pytest.raises(DataError, match="lacks"):
        export.export(run, Role.ANSWER, weights, tmp_path)


def test_a_lora_that_is_too_large_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel carries two of them, so each has a limit."""
    monkeypatch.setattr(lora, "MAX_BYTES", 1_000)
    with pytest.raises(InputError, match="smaller r"):
        _saved(base, tmp_path / "lora")


def test_unknown_fields_and_the_base_role_are_refused(base: Path, tmp_path: Path) -> None:
    """A training_run.json of another version is not misread."""
    folder = _saved(base, tmp_path / "lora")
    row = json.loads((folder / lora.RUN_FILE).read_text())
    (folder / lora.RUN_FILE).write_text(json.dumps({**row, "colour": "red"}))
    with pytest.raises(DataError, match="colour"):
        TrainingRun.read(folder)
    with pytest.raises(InputError, match="base has no LoRA"):
        TrainingRun.of(Role.BASE, models.in_folder(base), "", 0)


def test_the_average_lies_between_and_serves(base: Path, tmp_path: Path) -> None:
    """Each weight is the weighted mean, and the result is a LoRA that serving takes."""
    first, second = _saved(base, tmp_path / "a"), _saved(base, tmp_path / "b")
    run = TrainingRun.of(Role.ANSWER, models.in_folder(base), "cafe", 3, algorithm="average")
    path = lora.average({first: 0.75, second: 0.25}, tmp_path / "mean", run)
    a, b, mean = load_file(first / lora.WEIGHTS), load_file(second / lora.WEIGHTS), load_file(path)
    for name, tensor in mean.items():
        wanted = (0.75 * a[name].float() + 0.25 * b[name].float()).to(torch.bfloat16)
        assert torch.equal(tensor, wanted)
    assert models.read_lora(tmp_path / "mean", Role.ANSWER, models.in_folder(base))


def test_what_cannot_be_averaged_is_told(base: Path, tmp_path: Path) -> None:
    """Weights that do not add up to 1, and LoRAs of different shapes."""
    first = _saved(base, tmp_path / "a")
    run = TrainingRun.of(Role.ANSWER, models.in_folder(base), "cafe", 3)
    with pytest.raises(InputError, match=r"add up to 0\.5; expected 1"):
        lora.average({first: 0.5}, tmp_path / "mean", run)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora.default_config(r=2))
    lora.save(model, tmp_path / "b", run)
    with pytest.raises(InputError, match="different matrices"):
        lora.average({first: 0.5, tmp_path / "b": 0.5}, tmp_path / "mean", run)
