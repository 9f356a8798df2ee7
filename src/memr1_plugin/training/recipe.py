"""Recipes: training runs as TOML files, read and checked before they cost anything.

A recipe names a base and one stage or several (``[[stages]]``), each a role and an algorithm; what stands above the
stages holds for all of them. The trainers' own settings pass through unrenamed: ``[sft]`` goes to `SFTConfig`,
``[grpo]`` to `GRPOConfig`, ``[ppo]`` to `PPOConfig`, ``[lora]`` to `LoraConfig`, ``[memory]`` to `Settings`. What a
recipe would take is `plan`, what it trains on `split` and `material`, and `pipeline` runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from memr1_plugin.agents.engine import Role
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALGORITHMS = ("sft", "grpo", "ppo")
SHIPPED = "shipped"
"""As ``start`` or ``partner``: the LoRA that ships for the base."""
NOBODY = "base"
"""As ``partner``: the base itself, zero-shot."""
_TABLES = ("data", "lora", "rewards", *ALGORITHMS)


@dataclass(frozen=True)
class Data:
    """Where a stage's examples come from; what is 0 or "" is left out."""

    files: tuple[str, ...] = ()
    """Conversations with questions, in any format that `datasets.load` reads; ``--data`` adds to them."""
    given: bool = True
    """Whether ``--data`` adds to them in this stage."""
    only: tuple[str, ...] = ()
    """Ids of the conversations of `files` to train on; empty: all."""
    categories: tuple[str, ...] = ()
    """Only questions of these categories, of the files and the validation; empty: all."""
    validation: str = ""
    """Conversations with questions that choose the checkpoint; never trained on."""
    validation_only: tuple[str, ...] = ()
    """Ids of the conversations of `validation` to use; empty: all."""
    holdout: float = 0.1
    """Without `validation`: about this share of the conversations with questions is kept for it, one at least."""
    bank: str = "manager"
    """Who manages the bank that questions are asked of: "manager", as it serves now, or "add": every fact is added."""
    window: int = 50
    """Turns before the one in question whose memories the Manager is shown (RL); 0: all of them, as in serving."""
    unlinked: str = "link"
    """Questions without evidence: "link" guesses it by retrieval, "skip" leaves them out."""
    episodes: int = 0
    """RL: at most so many, drawn by the seed; 0: all."""
    synthetic_conversations: int = 0
    synthetic_questions: int = 20
    """SFT of the Answer Agent: questions of each synthetic conversation, on average and at most; 0: all, some 80."""
    synthetic_seed: int = 7
    statements: int = 0
    """SFT: plain statements to a bot ("I live in Lisbon."): turns for the Manager, or conversations, each with some
    five questions, for the Answer Agent."""
    longmemeval: str = ""
    """SFT: path of LongMemEval's evidence turns, or of the published files."""
    longmemeval_rounds: int = 2
    chats: int = 0
    """SFT of the Answer Agent: dialogues of the package chitchat-dataset, with questions made of their statements."""
    chatter: bool = False
    """SFT: mix in real small talk from the package chitchat-dataset."""


@dataclass(frozen=True)
class Stage:
    """One training: a role, an algorithm, and what it starts from."""

    role: Role
    algorithm: str = "sft"
    start: str = ""
    """LoRA to go on from: a folder, "shipped", or "": what an earlier stage made of this role, else a fresh one."""
    partner: str = ""
    """The other agent, frozen: a folder, "shipped", "base" (zero-shot), or "": what an earlier stage made, else what
    ships for the base, else the base."""
    max_tokens: int = 900
    """SFT: longest row; several examples are packed into one, and one that alone is longer is left out."""
    save_minutes: float = 10.0
    """SFT: a checkpoint at least this often, beside those of every validation."""
    validate_steps: int = 25
    """Steps between validations, each with a checkpoint; the best one is served."""
    validate_questions: int = 32
    data: Data = field(default_factory=Data)
    lora: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Weights of the reward's parts; empty: `rewards.MANAGER_WEIGHTS` or `rewards.ANSWER_WEIGHTS`."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """The table named after the algorithm."""

    @property
    def name(self) -> str:
        """As messages call it: "answer/grpo"."""
        return f"{self.role.value}/{self.algorithm}"


@dataclass(frozen=True)
class Recipe:
    """A training run: stages on one base."""

    name: str
    stages: tuple[Stage, ...]
    model: str = ""
    """Base model as `Memory.open` takes it; "" is the default."""
    seed: int = 0
    dense: bool = False
    """On a GPU: the 4-bit base written out in bfloat16, which FSDP and ZeRO-3 can shard and vLLM can be given."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Settings`; serve with the same ones."""
    text: str = field(default="", compare=False, repr=False)
    """The file it was read from, for the run's folder."""

    @property
    def settings(self) -> Settings:
        """How much of the memory the agents are shown."""
        return Settings(**self.memory)

    def with_files(self, files: Sequence[str | Path], validation: str | Path = "") -> Recipe:
        """Add one's own conversations to every stage, and name those that choose the checkpoint."""
        more, chosen = tuple(map(str, files)), str(validation or "")

        def told(data: Data) -> Data:
            files = (*data.files, *more) if data.given else data.files
            return replace(data, files=files, validation=chosen or data.validation)

        return replace(self, stages=tuple(replace(s, data=told(s.data)) for s in self.stages))

    def with_max_steps(self, steps: int) -> Recipe:
        """Cut every stage after `steps` optimiser steps (a trial)."""
        if steps < 1:
            raise InputError(f"max_steps is {steps}; expected at least 1.")
        return replace(self, stages=tuple(replace(s, trainer={**s.trainer, "max_steps": steps}) for s in self.stages))

    def to_json(self) -> dict[str, Any]:
        """Return everything that decides what is trained, for the run's folder."""
        row = asdict(self)
        del row["text"]
        for stage, made in zip(self.stages, row["stages"], strict=True):
            made["role"] = stage.role.value
        return row


def load(path: str | Path) -> Recipe:
    """Read a recipe; an unknown key, role or algorithm is a `DataError` that lists the known ones."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        row = tomllib.loads(text)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; recipes that come with the project are in training/recipes/."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is no TOML: {error}.") from error
    listed = row.pop("stages", None)
    if listed is not None and (not isinstance(listed, list) or not listed):
        raise DataError(f'{path}: "stages" is {listed!r}; expected at least one [[stages]] table.')
    own: dict[str, Any] = {name: row.pop(name) for name in ("name", "model", "seed", "dense", "memory") if name in row}
    tables = [_merged(row, one) for one in listed or [{}]]
    where = [f"{path}, stage {n}" if listed else str(path) for n in range(1, len(tables) + 1)]
    stages = tuple(_stage(table, place) for table, place in zip(tables, where, strict=True))
    recipe = Recipe(stages=stages, **{"name": path.stem, "text": text, **own})
    try:
        recipe.settings  # noqa: B018 (read for its errors)
    except (TypeError, InputError) as error:
        raise DataError(f"{path}, [memory]: {error}; expected fields of Settings.") from error
    return recipe


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's table: its own keys over the shared ones; of tables, key by key."""
    merged = {**shared, **own}
    for name in _TABLES:
        if name in shared and name in own:
            merged[name] = {**shared[name], **own[name]}
    return merged


def _stage(row: dict[str, Any], where: str) -> Stage:
    algorithm = row.get("algorithm", "sft")
    if algorithm not in ALGORITHMS:
        raise DataError(f'{where}: "algorithm" is {algorithm!r}; expected one of {", ".join(ALGORITHMS)}.')
    if row.get("role") not in (Role.MANAGER.value, Role.ANSWER.value):
        raise DataError(f'{where}: "role" is {row.get("role")!r}; expected "manager" or "answer".')
    trainer = row.get(algorithm, {})
    rest = {key: value for key, value in row.items() if key not in ALGORITHMS}  # settings of other algorithms may stand
    data = Data(**_known(rest.pop("data", {}), Data, f"{where}, [data]"))
    for name, allowed in (("bank", ("manager", "add")), ("unlinked", ("link", "skip"))):
        if getattr(data, name) not in allowed:
            raise DataError(f"{where}, [data]: {name!r} is {getattr(data, name)!r}; expected one of {allowed}.")
    known = _known(rest, Stage, where)
    return Stage(**{**known, "role": Role(row["role"]), "algorithm": algorithm, "data": data, "trainer": trainer})


def _known(row: Mapping[str, Any], kind: type, where: str) -> dict[str, Any]:
    names = {f.name for f in fields(kind)} - {"trainer"}
    if extra := sorted(set(row) - names):
        raise DataError(f"{where}: unknown key {extra[0]!r}; expected some of {sorted(names)}.")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
