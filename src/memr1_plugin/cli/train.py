"""The verb that trains: train."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memr1_plugin.cli._shell import UNHEALTHY, Json, emit, err, out
from memr1_plugin.errors import InputError

if TYPE_CHECKING:
    from memr1_plugin.training.pipeline import Result
    from memr1_plugin.training.plan import Plan
    from memr1_plugin.training.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    app.command()(train)


def train(
    recipe: Annotated[Path, typer.Option(help="A TOML file; those that come with the project: training/recipes/.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="Conversations with questions. May be given several times."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Conversations that choose the checkpoint.",
            show_default="a tenth of those in --data",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run.", show_default="runs/NAME OF THE RECIPE")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop every stage after so many steps: a trial.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take and what is missing.")] = False,
    as_json: Json = False,
) -> None:
    """Train LoRAs for the Manager and the Answer Agent on your own conversations, as a recipe says.

    The same command goes on where a stopped run was. The LoRAs that validated best are in OUT/best, which
    `Memory.open(loras=...)` and every door take. Check the data with `memr1 data check` first.
    """
    from memr1_plugin.training import recipe as recipes
    from memr1_plugin.training.plan import plan

    wanted = recipes.load(recipe).with_files(data or (), validation or "")
    wanted = wanted.with_max_steps(max_steps) if max_steps else wanted
    planned = plan(wanted)
    if dry_run:
        emit(planned.to_json(), as_json, lambda: _show_plan(planned))
        if planned.missing:
            raise typer.Exit(UNHEALTHY)
        return
    if planned.missing:
        raise InputError(f"{planned.missing[0]} (memr1 train --dry-run shows everything that is missing)")
    folder = to or Path("runs") / wanted.name
    if not as_json:
        _show_plan(planned)
    results = _run(wanted, folder, quiet=as_json)
    report = {"best": str(folder / "best"), "stages": [result.to_json() for result in results]}
    emit(report, as_json, lambda: _show_results(results, folder))


def _run(wanted: Recipe, folder: Path, *, quiet: bool) -> list[Result]:
    from memr1_plugin.agents.loading import quiet as silenced
    from memr1_plugin.embedding import as_embedder

    with silenced():
        from memr1_plugin.training import pipeline

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with warnings.catch_warnings(), Progress(*columns, console=err, disable=quiet, transient=True) as bar:
        warnings.simplefilter("ignore", FutureWarning)  # that libraries give about themselves
        task = bar.add_task("preparing", visible=False)

        def told(what: str, done: int, of: int) -> None:
            bar.update(task, description=f"preparing {what}", completed=done, total=of, visible=done < of)

        return pipeline.run(wanted, folder, as_embedder(None), quiet=quiet, told=told)


def _show_plan(planned: Plan) -> None:
    size = f", {planned.parameters / 1e6:,.0f}M parameters" if planned.parameters else ""
    out.print(f"{planned.recipe}: {planned.base}{size}, on {planned.device}")
    for stage in planned.stages:
        sampled = f", {stage.completions:,} completions" if stage.completions else ""
        out.print(f"  {stage.stage}: about {stage.steps} steps{sampled}, {stage.memory_gb:.1f} GB")
        out.print(f"    trains on   {stage.train}")
        out.print(f"    validation  {stage.validation}")
        out.print(f"    starts from {stage.start}; the other agent: {stage.partner}")
    for note in planned.notes:
        out.print(f"  note: {note}")
    for line in planned.missing:
        out.print(f"  missing: {line}", style="red")


def _show_results(results: Sequence[Result], folder: Path) -> None:
    for result in results:
        line = f"{result.stage}: {result.steps} steps"
        if result.best is not None and result.before is not None:
            line += f", validation reward {result.before:.3f} -> {result.best:.3f}"
            line += f" at step {result.best_step}" if result.best_step else " (no step was better: the start is kept)"
        out.print(line)
    out.print(f'LoRAs: {folder / "best"}   use them: Memory.open(..., loras="{folder / "best"}")')
