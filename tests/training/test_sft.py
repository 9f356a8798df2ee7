"""Packed supervised fine-tuning: the loss of single examples at a fraction of their cost, and resumable."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from memr1_plugin.agents.engine import Prompt
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.testing import tiny_model
from memr1_plugin.training import sft
from memr1_plugin.training.sft import IGNORED, Example

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return tiny_model(tmp_path_factory.mktemp("base"))


def _model(base: Path) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)


def _group(word: str = "cat") -> list[Example]:
    memories = f"Memories:\n1. [3 May 2025] Ana: My {word} is called Rex.\n2. [4 May 2025] Ana: I live in Rome.\n"
    asked = [(f"What is Ana's {word} called?", " 1 -> Rex"), ("Where does Ana live?", " 2 -> Rome"), ("Why?", " none")]
    return [Example(Prompt("", f"{memories}Question [1 June 2025]: {q}\nAnswer:"), a) for q, a in asked]


def _loss(model: Any, tokenizer: Any, group: list[Example]) -> float:
    with torch.no_grad():
        return float(sft.loss_of(model, sft.collate([asdict(sft.pack(tokenizer, group))]))[0])


def test_a_packed_group_has_the_loss_of_its_examples(base: Path) -> None:
    """Packing changes the cost and nothing else: no question sees another."""
    model, tokenizer = _model(base), AutoTokenizer.from_pretrained(base)
    group = _group()
    assert _loss(model, tokenizer, group) == pytest.approx(sum(_loss(model, tokenizer, [e]) for e in group), rel=1e-5)


def test_a_packed_example_has_the_gradient_of_the_plain_model(base: Path) -> None:
    """One example's loss is the model's own causal loss over the completion tokens."""
    model, tokenizer = _model(base), AutoTokenizer.from_pretrained(base)
    packed = sft.pack(tokenizer, _group()[:1])
    ids, labels = torch.tensor([packed.input_ids]), torch.tensor([packed.labels])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED, reduction="sum")
    assert _loss(model, tokenizer, _group()[:1]) == pytest.approx(float(expected), rel=1e-5)


def test_packing_computes_the_common_beginning_once(base: Path) -> None:
    """Three questions after the same words are one beginning and three short ends."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    together = len(sft.pack(tokenizer, _group()).input_ids)
    apart = sum(len(sft.pack(tokenizer, [e]).input_ids) for e in _group())
    assert together < 0.6 * apart


def test_completions_end_and_prompts_are_not_learned(base: Path) -> None:
    """Labels are the completion and the end token, and nothing of the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    packed = sft.pack(tokenizer, _group()[:1])
    learned = [label for label in packed.labels if label != IGNORED]
    assert learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learned[:-1]) == " 1 -> Rex"


def test_nothing_to_pack_is_refused(base: Path) -> None:
    """The errors say what was expected."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(InputError, match="at least one"):
        sft.pack(tokenizer, [])
    with pytest.raises(DataError, match="raise max_tokens"):
        sft.rows_of(tokenizer, _group(), 10)


def test_rows_are_filled_in_order_and_an_example_that_fits_none_is_left_out(base: Path) -> None:
    """No row is longer than was asked for, and what is learned is every example but the one that is too long."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    long = Example(Prompt("", "and " * 500), " 1 -> Rex")
    alone = max(len(sft.pack(tokenizer, [e]).input_ids) for e in _group())
    rows = sft.rows_of(tokenizer, [*_group(), long, *_group("dog")], 2 * alone)
    assert [max(row["segments"]) for row in rows] == [2, 2, 2]
    assert all(len(row["input_ids"]) <= 2 * alone for row in rows)
    learned = [token for row in rows for token in row["labels"] if token != IGNORED]
    answers = [e.completion for e in (*_group(), *_group("dog"))]
    assert tokenizer.decode(learned, skip_special_tokens=True) == "".join(answers)


def _train(base: Path, folder: Path, steps: int, epochs: int = 20) -> Any:
    settings = sft.config(
        folder,
        learning_rate=1e-2,
        warmup_steps=0,
        gradient_accumulation_steps=2,
        num_train_epochs=epochs,
        bf16=False,
        save_strategy="steps",
        save_steps=5,
        lr_scheduler_type="constant",
        max_steps=steps,
        disable_tqdm=True,
    )
    examples = [example for word in ("cat", "dog", "bird", "fish") for example in _group(word)]
    return sft.train(_model(base), AutoTokenizer.from_pretrained(base), examples, settings)


def test_training_learns_resumes_and_logs(base: Path, tmp_path: Path) -> None:
    """A killed run that goes on ends with the weights of one that was never killed; metrics.jsonl has the curve."""
    whole = _train(base, tmp_path / "whole", 15)
    _train(base, tmp_path / "cut", 5)
    cut = _train(base, tmp_path / "cut", 15)
    assert cut.state.global_step == whole.state.global_step == 15
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
