"""The systems that an evaluation compares: what each remembers of a conversation, and who answers.

Baselines (no memory, full context, RAG over raw turns) and this pipeline with any LoRAs, all on one base model, one
retrieval and one machine. A name and what it stands for, no more: banks are filled by `banks`, questions answered by
`replies`. The set follows the paper's section 4.1, with RAG done properly: the same retrieval as the pipeline's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from memr1_plugin.agents import models
from memr1_plugin.agents.engine import Engine, Role
from memr1_plugin.errors import InputError, WeightsNotFoundError

Reads = Literal["nothing", "everything", "raw", "evidence", "managed"]


@dataclass(frozen=True)
class System:
    """One row of the table."""

    name: str
    reads: Reads
    """"nothing", "everything" (the whole dialogue in the prompt), "raw" (retrieval over unmanaged turns: every fact is
    added), "evidence" (of those, the ones that the gold evidence turns left: an oracle in the place of retrieval)
    or "managed" (retrieval over the bank that the Memory Manager keeps)."""
    answers: Literal["base", "agent"] = "agent"
    """"base": the base model with a plain question prompt; "agent": the Answer Agent."""
    manager: Path | None = None
    """Folder of the Manager's LoRA; None: it runs zero-shot."""
    answer: Path | None = None
    """Folder of the Answer Agent's LoRA; None: it runs zero-shot."""
    always_add: bool = False
    """A "managed" bank whose Manager adds whatever is not certain: the pipeline without its decisions."""
    selects: bool = True
    """False: the Answer Agent chooses no memories; the best-ranked ones are named for it (`replies`)."""

    @property
    def retrieves(self) -> bool:
        """True when memories are found by ranking them."""
        return self.reads in ("raw", "managed")

    @property
    def bank(self) -> str | None:
        """Name of the bank that it reads: the same for systems whose Manager is the same, down to the weights."""
        if self.reads in ("nothing", "everything"):
            return None
        if self.reads != "managed":
            return "raw"
        return "always-add" if self.always_add else f"managed-{fingerprint(self.manager) or 'zero-shot'}"

    @property
    def loras(self) -> dict[Role, Path | None]:
        """The roles that this system's engine must serve, and the LoRA of each; None: zero-shot."""
        needed = {Role.ANSWER: self.answer} if self.answers == "agent" else {}
        if self.reads == "managed" and not self.always_add:
            needed[Role.MANAGER] = self.manager
        return needed

    def to_json(self) -> dict[str, Any]:
        """What an answer depends on: with another value here, it is another system."""
        loras = {role.value: fingerprint(folder) for role, folder in self.loras.items()}
        return {
            "reads": self.reads,
            "answers": self.answers,
            "bank": self.bank,
            "selects": self.selects,
            "loras": loras,
        }


def fingerprint(folder: Path | None) -> str | None:
    """Return 12 digits that name a LoRA's weights, whatever its folder is called; None for no LoRA."""
    if folder is None:
        return None
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise WeightsNotFoundError(f"{folder} holds no LoRA; expected adapter_model.safetensors inside.")
    return _fingerprint(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _fingerprint(file: Path, changed: int) -> str:
    return models.sha256(file)[:12]


BASELINES = {
    "no-memory": System("no-memory", "nothing", "base"),
    "full-context": System("full-context", "everything", "base"),
    "rag": System("rag", "raw", "base"),
    "untrained": System("untrained", "managed"),
    "untrained-raw": System("untrained-raw", "raw"),
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "raw": {"reads": "raw"},
    "gold": {"reads": "evidence"},
    "always-add": {"reads": "managed", "always_add": True},
    "unselected": {"selects": False},
}
SYNTAX = (
    f"one of {', '.join(BASELINES)}; shipped; NAME=FOLDER; or NAME=answer:FOLDER,manager:FOLDER, where FOLDER may be "
    f"shipped or none. Options follow: {', '.join(f':{name}' for name in OPTIONS)}"
)


def parse_system(text: str, shipped: Mapping[Role, Path] | None = None) -> System:
    """Read a command-line word (`SYNTAX`).

    Args:
        text: "rag", "shipped", "sft=runs/sft", "mix=answer:runs/grpo,manager:shipped:raw", "shipped:raw:unselected".
        shipped: the LoRAs that "shipped" stands for; None: those of the default model.

    Raises:
        InputError: it is no system.
        WeightsNotFoundError: a folder holds no LoRA.
    """
    word, options = _options(text)
    if word in BASELINES:
        if options and BASELINES[word].answers == "base":
            raise InputError(f"{text!r}: {word} has no agents, so no options; expected {SYNTAX}.")
        system = BASELINES[word]
    else:
        name, given, spec = word.partition("=")
        if word != "shipped" and not (given and spec and re.fullmatch(r"[\w.+-]+", name)):
            raise InputError(f"{text!r} is no system; expected {SYNTAX}.")
        found = models.find_loras(models.DEFAULT.name) if shipped is None else shipped
        folders = _folders(spec or "shipped", found)
        system = System(name, "managed", manager=folders.get(Role.MANAGER), answer=folders.get(Role.ANSWER))
    for option in options:
        system = replace(system, **OPTIONS[option])
    return replace(system, name=":".join([system.name, *options]) if "=" not in word else system.name)


def _options(text: str) -> tuple[str, list[str]]:
    """Split the options off the end: "a=b:raw:gold" -> ("a=b", ["raw", "gold"])."""
    word, found = text, list[str]()
    while (head := word.rpartition(":"))[2] in OPTIONS and head[0]:
        word = head[0]
        found.insert(0, head[2])
    return word, found


def _folders(spec: str, shipped: Mapping[Role, Path]) -> dict[Role, Path | None]:
    parts = re.findall(r"(?:^|,)(answer|manager):([^,]*)", spec)
    if not parts:
        return dict(shipped) if spec == "shipped" else dict(models.find_loras("", spec))
    return {Role(role): _folder(Role(role), place, shipped) for role, place in parts}


def _folder(role: Role, place: str, shipped: Mapping[Role, Path]) -> Path | None:
    """The LoRA of one role in ``place``: the folder itself, or the role's folder inside it."""
    if place == "none":
        return None
    if place == "shipped":
        if role not in shipped:
            raise WeightsNotFoundError(f"no LoRA of the {role.value} ships for this model. Name a folder, or none.")
        return shipped[role]
    folder = Path(place).expanduser()
    if (folder / "adapter_model.safetensors").is_file():
        return folder
    inside = models.find_loras("", folder)
    if role not in inside:
        raise WeightsNotFoundError(f"{place} holds no LoRA of the {role.value}; expected {role.value}/ inside.")
    return inside[role]


class Engines:
    """The engine for each system, one at a time: a base model with the LoRAs of whose turn it is.

    An engine that is open serves a system as it is if it has the LoRAs that the system needs, others beside or not.
    """

    def __init__(self, model: str | Path | None = None, *, batch: int = 8, dtype: str | None = None) -> None:
        from memr1_plugin.agents.local import LocalOptions

        self._model, self._options = model, LocalOptions(max_batch=batch, dtype=dtype)
        self._open: tuple[dict[Role, Path], Engine] | None = None

    def __call__(self, system: System) -> Engine:
        """Return an engine that serves `system`; the one before it may be closed for it."""
        if self._open is not None:
            loras, engine = self._open
            if all(loras.get(role) == folder for role, folder in system.loras.items()):
                return engine
            engine.close()
        from memr1_plugin.agents.local import LocalEngine

        loras = {role: folder for role, folder in system.loras.items() if folder is not None}
        engine = LocalEngine(self._model, loras, options=self._options)
        engine.check()
        self._open = (loras, engine)
        return engine

    def close(self) -> None:
        """Release the model."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
