"""A memory task small enough to learn in seconds: keep what answers a question, leave out what would mislead.

Real bank, retrieval, prompts, operation language and trainers; a random two-layer model, warmed up until it writes ADD
or NOOP at random. The frozen Answer Agent answers from the latest memory that shares a word with the question, so a
wrongly added memory misleads it and a missing one silences it: adding at random is worth 0.5, deciding rightly 1.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from memr1_plugin.agents.engine import Completion, LoraInfo, Prompt, Role
from memr1_plugin.bank.bank import Bank
from memr1_plugin.testing import HashEmbedder, ScriptedModel, tiny_model, words
from memr1_plugin.training.environment import ManagerEnvironment
from memr1_plugin.training.grpo import laptop_config
from memr1_plugin.training.rewards import PAPER_WEIGHTS
from memr1_plugin.training.shared import SharedBase, encode, share
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Scope

torch.set_num_threads(1)  # threads cost a model this small twenty times what they bring on a busy machine

START = datetime(2026, 3, 1, tzinfo=timezone.utc)
SCOPE = Scope(user="ana")
CITIES = ("Berlin", "Rome", "Oslo", "Lima", "Bonn", "Cork", "Nice", "Bern")


@dataclass(frozen=True)
class Question:
    """A question with its gold answer and evidence."""

    question: str
    answer: str
    evidence: tuple[str, ...]
    asked_at: datetime = START + timedelta(days=9)


@dataclass(frozen=True)
class Episode:
    """One turn: a bank that knows the cat, and a fact that is worth keeping or misleads."""

    id: str
    bank: Bank = field(repr=False)
    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]
    scope: Scope = SCOPE
    ruled: tuple[Operation, ...] = ()
    gold: tuple[Operation, ...] | None = None

    @property
    def memories(self) -> tuple[MemoryItem, ...]:
        """Everything the bank holds."""
        return tuple(self.bank.items(self.scope))

    @property
    def related(self) -> tuple[tuple[MemoryItem, ...], ...]:
        """The same for every fact."""
        return (self.memories,) * len(self.facts)

    def open_bank(self) -> Bank:
        """A copy of the bank before the turn."""
        return self.bank.snapshot(self.scope)


def cat_bank(embedder: HashEmbedder) -> Bank:
    """A bank that holds one memory."""
    bank = Bank.open(":memory:", embedder)
    bank.apply(SCOPE, [Operation(OperationKind.ADD, Fact("My cat is called Rex.", "Ana", START, "t-cat"))])
    return bank


def episodes(bank: Bank) -> list[Episode]:
    """Eight facts to keep, eight that mislead; half of each one's words are in the bank, so that a NOOP is followed."""
    at = START + timedelta(days=1)
    made = []
    for n, city in enumerate(CITIES):
        keep = Fact(f"My cat called Rex moved to {city}.", "Ana", at, f"t-keep-{n}")
        made.append(Episode(f"keep-{n}", bank, (keep,), (Question("Where did Rex move?", city, (keep.turn_id,)),)))
        lead = Fact(f"That film's cat was called {city}.", "Ana", at, f"t-lead-{n}")
        made.append(Episode(f"lead-{n}", bank, (lead,), (Question("What is the cat called?", "Rex", ("t-cat",)),)))
    return made


_MEMORY = re.compile(r"^(\d+)\. \[([^\]]*)\] [^:]*: (.*)$", re.MULTILINE)


def latest_match(prompt: Prompt, role: Role) -> str:
    """Answer with the last word of the latest memory that shares a word with the question."""
    shown, _, asked = prompt.body.rpartition("Question [")
    wanted = set(words(asked.split("]:", 1)[1].replace("Answer:", "")))
    matching = [
        (datetime.strptime(date, "%d %B %Y"), place, text.split()[-1])
        for place, date, text in _MEMORY.findall(shown)
        if wanted & set(words(text))
    ]
    if not matching:
        return " none"
    _, place, last = max(matching)
    return f" {place} -> {last}"


class TwoEngines:
    """The policy from the shared base, the frozen Answer Agent from a script."""

    def __init__(self, policy: SharedBase, frozen: ScriptedModel) -> None:
        self.policy, self.frozen = policy, frozen

    @property
    def id(self) -> str:
        """Both names."""
        return f"{self.policy.id} + {self.frozen.id}"

    def _of(self, role: Role) -> SharedBase | ScriptedModel:
        return self.policy if role is Role.MANAGER else self.frozen

    def lora(self, role: Role) -> LoraInfo | None:
        """As the engine of the role says."""
        return self._of(role).lora(role)

    def complete(self, prompts: Sequence[Prompt], role: Role) -> list[Completion]:
        """Hand on to the engine of the role."""
        return self._of(role).complete(prompts, role)

    def close(self) -> None:
        """Close the script."""
        self.frozen.close()


@dataclass
class Toy:
    """The pieces of one toy task."""

    folder: Path
    model: Any
    tokenizer: Any
    environment: ManagerEnvironment
    engine: SharedBase
    frozen: ScriptedModel


def warm(model: Any, tokenizer: Any, prompts: Sequence[Prompt], seed: int, steps: int = 60) -> None:
    """Train all weights to write ADD or NOOP at random: the language, none of the skill."""
    chance = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        for prompt in chance.sample(list(prompts), 8):
            asked = encode(tokenizer, prompt)
            told = tokenizer(chance.choice(["ADD", "NOOP"]), add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*asked, *told, tokenizer.eos_token_id]])
            labels = ids.clone()
            labels[:, : len(asked)] = -100
            (model(input_ids=ids, labels=labels).loss / 8).backward()
        optimizer.step()
        optimizer.zero_grad()


_WARM: dict[int, Path] = {}


def warm_model(folder: Path, seed: int, prompts: Sequence[Prompt]) -> Path:
    """The folder of the warmed-up model of `seed`, made once a session."""
    if seed not in _WARM:
        path = tiny_model(folder / "model", seed=seed)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        torch.manual_seed(seed)
        warm(model, tokenizer, prompts, seed)
        model.save_pretrained(path)
        _WARM[seed] = path
    return _WARM[seed]


WEIGHTS = {**PAPER_WEIGHTS, "format_validity": 0.2}


def toy(folder: Path, seed: int, *, frozen_lora: Path | None = None, weights: Mapping[str, float] = WEIGHTS) -> Toy:
    """Set the task up; `frozen_lora` puts the Answer Agent on the shared base instead of in a script."""
    embedder = HashEmbedder()
    turns = episodes(cat_bank(embedder))
    script = ScriptedModel(latest_match)
    prompts = [ManagerEnvironment(turns, script, embedder, weights=PAPER_WEIGHTS).prompt(n) for n in range(len(turns))]
    path = warm_model(folder, seed, prompts)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model, shared = share(base, tokenizer, Role.MANAGER, start=lora, frozen=frozen_lora)
    engine: Any = TwoEngines(shared, script) if frozen_lora is None else shared
    environment = ManagerEnvironment(turns, engine, embedder, weights=weights)
    return Toy(folder, model, tokenizer, environment, shared, script)


def config(folder: Path, kind: type[GRPOConfig] = GRPOConfig, **values: Any) -> Any:
    """A configuration for seconds on one CPU core."""
    defaults: dict[str, Any] = {
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_steps": 24,
        "max_completion_length": 4,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return laptop_config(folder, kind, **{**defaults, **values})


def state_of(module: Any) -> dict[str, bytes]:
    """The bytes of every weight, to compare."""
    return {name: value.detach().cpu().contiguous().numpy().tobytes() for name, value in module.state_dict().items()}
