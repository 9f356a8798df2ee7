"""The verb that measures: eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memr1_plugin.cli._shell import Json, Model, emit, out, progress
from memr1_plugin.errors import InputError


def register(app: typer.Typer) -> None:
    """Add this file's verbs to the command line."""
    app.command(name="eval")(evaluate)


def evaluate(
    data: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Conversations with questions.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the run; it resumes what is there.")],
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="no-memory, full-context, rag, untrained, untrained-raw, or NAME=FOLDER of LoRAs (NAME=FOLDER:raw: "
            "without the Manager). May be given several times.",
            show_default="no-memory, rag, untrained",
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Ids of the conversations to ask about.")] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Categories to ask; all: every one.", show_default="1, 2, 3, 4")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Memories shown per question.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per conversation.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The system that the others are compared with.")] = None,
    model: Model = "",
    as_json: Json = False,
) -> None:
    """Ask several systems the same questions, side by side, and print their scores with intervals.

    Reads LoCoMo, LongMemEval evidence and this project's JSONL. Every answer is written as it comes; the same
    command goes on where a stopped run was. F1 and BLEU-1 are the paper's.
    """
    from memr1_plugin.agents.local import LocalEngine, shared_engine
    from memr1_plugin.embedding import as_embedder
    from memr1_plugin.evaluation import report
    from memr1_plugin.evaluation.datasets import load
    from memr1_plugin.evaluation.systems import System, parse_system
    from memr1_plugin.settings import Settings

    conversations = [one for one in load(data) if not only or one.id in only]
    if not conversations:
        raise InputError(f"{data} has no conversation called {', '.join(only or [])}.")
    systems = [parse_system(word) for word in system or ["no-memory", "rag", "untrained"]]
    bare: list[LocalEngine] = []

    def engine_for(one: System) -> LocalEngine:
        if one.loras is not None:
            return shared_engine(model or None, one.loras)
        if not bare:  # one engine without LoRAs for all baselines
            bare.append(LocalEngine(model or None, {}))
        return bare[0]

    chosen = () if category and "all" in category else tuple(category or ("1", "2", "3", "4"))
    with progress("eval", as_json) as tick:
        rows = report.evaluate(
            conversations,
            systems,
            to,
            engine_for=engine_for,
            embedder=as_embedder(None),
            settings=Settings(candidates=candidates),
            categories=chosen,
            limit=limit,
            progress=lambda what, done, of: tick(done, of),
        )
    summaries = report.table(rows, baseline=baseline)
    (to / "table.md").write_text(report.markdown(summaries) + "\n", encoding="utf-8")
    report.plot(summaries, to / "f1.png")
    emit(summaries, as_json, lambda: out.print(report.markdown(summaries)))
